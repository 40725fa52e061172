from golden_files import SMALL
import pytest


@pytest.fixture(params=["small", "full"])
def golden_folder(request):
    """The folder of toy-width reference networks, then the folder of wider ones if it is present."""
    return SMALL if request.param == "small" else request.getfixturevalue("shared") / "golden"
