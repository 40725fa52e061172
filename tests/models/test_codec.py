"""The PCA codec on procedural scenes: scale, variance, inversion and vocoding."""

import dataclasses

import jax
import numpy as np
import pytest

from msg_jax.clip import TINY
from msg_jax.data.mel import log_mel, mel_basis
from msg_jax.data.scenes import make_scene
from msg_jax.models.codec import PcaCodec, PictureCodec, fit_pca, fit_pictures

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


def test_the_codec_of_pictures_inverts_itself_and_whitens_as_told():
    clip = dataclasses.replace(TINY, video_px=4)
    videos = np.random.default_rng(0).integers(0, 256, (6, clip.video_frames, 4, 4, 3)).astype(np.uint8)
    videos[..., 0] = videos[..., :1, 0]  # fewer dimensions than values
    unit = videos.astype(np.float32) / 127.5 - 1
    for whitening, spread in ((0.0, "variance"), (1.0, "one")):
        params, kept = fit_pictures(videos, clip, 40, whitening)
        codec = PictureCodec(clip, 40)
        latents = np.asarray(codec.apply({"params": params}, unit, method="encode"))
        assert latents.shape == (6, clip.latent_tokens, 40) and 0.3 < kept < 1
        assert np.sqrt((latents**2).mean()) == pytest.approx(1, abs=0.02)
        deviations = latents.reshape(-1, 40).std(axis=0)
        assert (deviations.max() / deviations.min() < 1.01) == (spread == "one")
        rebuilt = codec.apply({"params": params}, latents, method="decode")
        left = np.square(rebuilt - unit).sum() / np.square(unit - unit.reshape(240, -1).mean(axis=0).reshape(2, 4, 4, 3)[
            np.arange(80) % 2]).sum()
        assert left <= 1 - kept + 1e-3  # what leaves [-1, 1] is cut, and so nearer


def test_motion_moves_components_to_what_changes_within_a_token():
    clip = dataclasses.replace(TINY, video_px=4)
    random = np.random.default_rng(0)
    still = np.repeat(random.normal(0, 0.3, (20, clip.latent_tokens, 1, 4, 4, 3)), 2, axis=2)
    moving = random.normal(0, 0.1, still.shape) * np.array([1, -1])[:, None, None, None]
    moving[..., 1:] = 0  # in red alone: 16 of 96 dimensions change
    unit = np.clip(still + moving, -1, 1).reshape(20, -1, 4, 4, 3)
    videos = np.round((unit + 1) * 127.5).astype(np.uint8)

    def lost(motion: float) -> np.ndarray:
        """The lost share of the sum and of the difference of a token's frames, with 48 components."""
        params, _ = fit_pictures(videos, clip, 48, 1.0, motion=motion)
        codec = PictureCodec(clip, 48, motion=motion)
        latents = codec.apply({"params": params}, unit, method="encode")
        np.testing.assert_allclose(np.asarray(latents).reshape(-1, 48).std(axis=0), 1, atol=0.01)
        rebuilt = codec.apply({"params": params}, latents, method="decode").reshape(-1, 2, 48)
        frames = unit.reshape(-1, 2, 48)
        parts = [(x[:, 0] + sign * x[:, 1]) for x in (frames, rebuilt - frames) for sign in (1, -1)]
        return np.array([np.square(parts[2 + i]).sum() / np.square(parts[i] - parts[i].mean(0)).sum() for i in (0, 1)])

    plain, weighed = lost(1.0), lost(10.0)
    assert plain[0] < 0.05 and plain[1] > 0.9  # 48 components hold the 48 dimensions of what stands still
    assert weighed[1] < 0.05 and 0.1 < weighed[0] < 0.5


def test_strips_of_pictures_have_a_code_of_their_own_that_is_the_same_for_all():
    clip = dataclasses.replace(TINY, video_px=4)
    videos = np.random.default_rng(0).integers(0, 256, (6, clip.video_frames, 4, 4, 3)).astype(np.uint8)
    params, kept = fit_pictures(videos, clip, 96, 1.0, strips=2)  # all of 2 frames x 4 rows x 2 columns x 3
    assert kept == pytest.approx(1) and params["components"].shape == (48, 48)
    codec, unit = PictureCodec(clip, 96, strips=2), videos.astype(np.float32) / 127.5 - 1
    latents = np.asarray(codec.apply({"params": params}, unit, method="encode"))
    np.testing.assert_allclose(codec.apply({"params": params}, latents, method="decode"), unit, atol=1e-4)
    moved = np.roll(unit, 2, axis=3)  # the left half to the right
    np.testing.assert_allclose(
        codec.apply({"params": params}, moved, method="encode"), np.roll(latents, 48, axis=-1), atol=1e-4
    )
