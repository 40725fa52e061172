import pathlib

import numpy as np
import pytest

from msg_jax.clip import MMAUDIO_16K, MMAUDIO_44K, TINY, MelSpec
from msg_jax.data.mel import log_mel, mel_basis

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name, clip", [("vae_16k", MMAUDIO_16K), ("vae_44k", MMAUDIO_44K)])
def test_equals_the_published_front_end(name, clip):
    with np.load(GOLDEN / f"{name}.npz") as golden:
        audio, expected = golden["in/audio"], golden["out/mel"]
    actual, expected = log_mel(audio, clip.mel), np.swapaxes(expected, -1, -2)
    assert actual.dtype == np.float32 and actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("spec", [TINY.mel, MMAUDIO_44K.mel, MelSpec(audio_hz=22_050, low_hz=50.0, high_hz=7_600.0)])
def test_basis_equals_librosa(spec):
    from librosa.filters import mel

    expected = mel(sr=spec.audio_hz, n_fft=spec.n_fft, n_mels=spec.bands, fmin=spec.low_hz, fmax=spec.high_hz)
    np.testing.assert_allclose(mel_basis(spec), expected, atol=1e-6)


def test_a_tone_lands_in_its_band_and_silence_on_the_floor():
    spec = TINY.mel
    samples = np.arange(TINY.audio_samples)
    tone = log_mel(0.5 * np.sin(2 * np.pi * 2000.0 * samples / spec.audio_hz), spec)
    assert tone.shape == (TINY.mel_frames, spec.bands)
    centres_hz = mel_basis(spec) @ np.linspace(0, 8000, 513) / mel_basis(spec).sum(1)
    assert np.all(tone[5:-5].argmax(-1) == np.abs(centres_hz - 2000.0).argmin())
    silence = log_mel(np.zeros(TINY.audio_samples), spec)
    # |X| = sqrt(1e-9) in every bin, weighted by each filter's sum
    np.testing.assert_allclose(np.exp(silence[0]), np.maximum(1e-9**0.5 * mel_basis(spec).sum(1), 1e-5), rtol=1e-4)


def test_clamps_and_keeps_the_leading_axes():
    noise = np.random.default_rng(0).uniform(-3, 3, (2, 3, 3200))
    mel = log_mel(noise, TINY.mel)
    assert mel.shape == (2, 3, 10, 40)
    np.testing.assert_array_equal(mel[1, 2], log_mel(np.clip(noise[1, 2], -1, 1), TINY.mel))
