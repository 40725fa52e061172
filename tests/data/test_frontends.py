"""Spectrograms against those of the publishers' code (torchlibrosa, torchvggish, torchaudio), stored in tests/golden.

Only some frames are stored: every 4th of PANNs, every 8th of VGGish, every 6th of Synchformer.
"""

from golden_files import load
import numpy as np
import pytest

from msg_jax.data import frontends
from msg_jax.models.panns import PRESETS


@pytest.mark.parametrize("name", ["16k", "32k"])
def test_panns(name):
    arrays, _ = load("panns")
    found = frontends.panns_log_mel(arrays["in/waveform"].astype(np.float32), PRESETS[name].mel)
    # in dB; the publisher's transform is a float32 convolution, which differs by a thousandth in quiet bands
    np.testing.assert_allclose(found[::4], arrays[f"out/log_mel_{name}"], atol=2e-3)


def test_vggish():
    arrays, _ = load("vggish")
    found = frontends.vggish_examples(arrays["in/waveform"].astype(np.float32))
    assert found.shape == (2, 96, 64)
    np.testing.assert_allclose(found[:, ::8], arrays["out/examples"], atol=1e-5)


def test_synchformer():
    arrays, _ = load("panns")
    found = frontends.synchformer_spectrograms(arrays["in/waveform"][:15_360].astype(np.float32))
    assert found.shape == (2, 66, 128)
    np.testing.assert_allclose(found[:, ::6], load("synchformer_audio")[0]["out/spectrograms"], atol=2e-4)


def test_there_are_as_many_segments_as_of_the_video():
    assert frontends.synchformer_spectrograms(np.zeros(8 * 16_000, np.float32)).shape == (24, 66, 128)
