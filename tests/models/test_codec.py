"""The PCA codec on procedural scenes: scale, variance, inversion and vocoding."""

import jax
import numpy as np
import pytest

from msg_jax.clip import TINY
from msg_jax.data.mel import log_mel, mel_basis
from msg_jax.data.scenes import make_scene
from msg_jax.models.codec import PcaCodec, fit_pca

CODEC = PcaCodec(TINY)


@pytest.fixture(scope="module")
def mels():
    return np.stack([log_mel(make_scene(0, "train", i, TINY)["waveform"], TINY.mel) for i in range(48)])


@pytest.fixture(scope="module")
def fitted(mels):
    return fit_pca(mels[:32], mel_basis(TINY.mel), TINY)


def _apply(params, method, x):
    return np.asarray(jax.jit(lambda p, x: CODEC.apply({"params": p}, x, method=method))(params, x))


def test_latents_have_unit_root_mean_square_and_keep_the_stated_variance(mels, fitted):
    params, kept = fitted
    latents = _apply(params, "encode", mels[:32])
    assert latents.shape == (32, TINY.latent_tokens, TINY.latent_channels)
    assert np.sqrt((latents**2).mean()) == pytest.approx(1, abs=0.01)
    rebuilt = _apply(params, "decode", latents)
    patches = mels[:32].reshape(-1, 160)
    left = ((rebuilt - mels[:32]) ** 2).sum() / ((patches - patches.mean(0)) ** 2).sum()
    assert left == pytest.approx(1 - kept, abs=1e-4)
    assert kept > 0.9


def test_encode_inverts_decode(fitted):
    latents = np.random.default_rng(0).normal(size=(2, 40, 32)).astype(np.float32)
    encoded = _apply(fitted[0], "encode", _apply(fitted[0], "decode", latents))
    np.testing.assert_allclose(encoded, latents, atol=2e-4)


def test_signs_of_the_components_are_deterministic(mels, fitted):
    params, _ = fit_pca(mels[:32][::-1], mel_basis(TINY.mel), TINY)
    np.testing.assert_allclose(params["components"], fitted[0]["components"], atol=1e-3)


def test_vocoded_audio_reproduces_its_log_mel(mels, fitted):
    held_out = mels[40:44]
    waveform = _apply(fitted[0], "vocode", held_out)
    assert waveform.shape == (4, TINY.audio_samples) and np.abs(waveform).max() <= 1
    vocoded = log_mel(waveform, TINY.mel)
    assert np.corrcoef(vocoded.ravel(), held_out.ravel())[0, 1] > 0.95
