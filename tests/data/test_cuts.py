"""Hard cuts of made videos."""

import numpy as np
import pytest

from msg_jax.data import cuts, media_writer
from msg_jax.errors import UserError


def video(path, shots, hz=25.0):
    """A video of (level, frames) shots, in which a bright square moves."""
    frames = np.concatenate([np.full((count, 48, 64, 3), level, np.uint8) for level, count in shots])
    for i, frame in enumerate(frames):
        frame[8 + i % 20 : 16 + i % 20, 10:18] = 255
    path.write_bytes(media_writer.encode_video(frames, hz))
    return path


@pytest.mark.parametrize("hz", [25.0, 10.0])
def test_cuts_are_found_where_they_are(tmp_path, hz):
    path = video(tmp_path / "a.mp4", [(20, 30), (120, 45), (60, 25)], hz)
    assert cuts.cut_times(path) == pytest.approx([30 / hz, 75 / hz])


def test_a_flash_is_no_shot(tmp_path):
    assert cuts.cut_times(video(tmp_path / "a.mp4", [(20, 30), (250, 2), (20, 30)])) == pytest.approx([30 / 25])


def test_slow_changes_are_no_cuts(tmp_path):
    assert cuts.cut_times(video(tmp_path / "a.mp4", [(20 + 2 * i, 1) for i in range(90)])) == []


def test_a_file_that_is_no_video_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"a\.mp4"):
        cuts.cut_times(tmp_path / "a.mp4")
