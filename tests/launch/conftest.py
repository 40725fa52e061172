"""Stand-ins for the commands of clusters."""

import pytest

from tests.launch.stand_ins import StandIns


@pytest.fixture
def stand_ins(tmp_path) -> StandIns:
    return StandIns(tmp_path / "stand_ins")
