import numpy as np
import pytest

from msg_jax.data import media_writer
from tests.app.serving import HZ


def write_clip(path, brightest: int):
    """A video of 2 s."""
    frames = np.zeros((50, 96, 160, 3), np.uint8)
    frames[:, 30:60] = np.linspace(0, brightest, 50).astype(np.uint8)[:, None, None, None]
    path.write_bytes(media_writer.encode_video(frames, 25.0, np.zeros(2 * HZ, np.float32), HZ))
    return path


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", 250)


@pytest.fixture(scope="session")
def other_clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", 120)
