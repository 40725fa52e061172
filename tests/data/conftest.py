import pytest
from video_files import KINDS, plain_video


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """One numbered video of each kind by file name; read-only."""
    folder = tmp_path_factory.mktemp("videos")
    return {name: plain_video(folder / name) for name in KINDS}
