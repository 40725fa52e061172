"""The tiny condition encoders: receptive fields of the features, a hand-computed loss, and text without weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msg_jax.clip import MMAUDIO_16K, TINY
from msg_jax.models.condition_encoder import (
    ConditionEncoder,
    ConditionEncoderConfig,
    PretrainingOutput,
    embed_text,
    pretraining_loss,
)

SMALL = ConditionEncoderConfig(clip_dim=5, sync_dim=6, widths=(8, 8), strides=(4, 4))


@pytest.fixture(scope="module")
def frames():
    keys = jax.random.split(jax.random.key(0))
    return jax.random.normal(keys[0], (2, 80, 24, 24, 3)), jax.random.normal(keys[1], (2, 20, 24, 24, 3))


@pytest.fixture(scope="module")
def params(frames):
    return jax.jit(ConditionEncoder(SMALL).init)(jax.random.key(1), *frames)


def test_shapes_follow_the_clip(frames, params):
    encoder = ConditionEncoder(SMALL)
    features = jax.eval_shape(lambda: encoder.apply(params, *frames, method="encode"))
    output = jax.eval_shape(lambda: encoder.apply(params, *frames))
    assert features.clip.shape == (2, TINY.clip_video_frames, 5) and features.sync.shape == (2, TINY.sync_tokens, 6)
    assert output.latents.shape == (2, TINY.latent_tokens, TINY.latent_channels)
    assert output.envelope.shape == (2, TINY.mel_frames) and output.clip_latents.shape == (2, 20, TINY.latent_channels)


def test_receptive_fields_are_half_a_second_for_sync_and_one_frame_for_clip_features(frames, params):
    def feature(video, clip_video):
        features = ConditionEncoder(SMALL).apply(params, video, clip_video, method="encode")
        return (features.sync[0, 40] ** 2).sum() + (features.clip[0, 7] ** 2).sum()

    sync, clip = (np.abs(g).max(axis=(0, 2, 3, 4)) for g in jax.jit(jax.grad(feature, argnums=(0, 1)))(*frames))
    np.testing.assert_array_equal(np.flatnonzero(sync), np.arange(40 - 6, 40 + 7))
    np.testing.assert_array_equal(np.flatnonzero(clip), [7])


def test_pretraining_loss_by_hand():
    latents = jnp.array([[[0.0], [2.0], [4.0], [6.0]]])  # variance 5; pairs average to 1 and 5
    envelope = jnp.ones((1, 8))
    exact = PretrainingOutput(latents=latents, envelope=envelope, clip_latents=jnp.array([[[1.0], [5.0]]]))
    loss, metrics = pretraining_loss(exact, latents, envelope)
    assert float(loss) == 0.0 and float(metrics["latent_r2"]) == 1.0

    poor = PretrainingOutput(latents=jnp.full((1, 4, 1), 3.0), envelope=envelope + 2, clip_latents=jnp.zeros((1, 2, 1)))
    loss, metrics = pretraining_loss(poor, latents, envelope)
    assert {name: float(value) for name, value in metrics.items()} == {
        "loss_latents": 5.0, "loss_envelope": 4.0, "loss_clip": 13.0, "latent_r2": 0.0
    }
    assert float(loss) == 22.0


def test_misaligned_tokens_raise():
    with pytest.raises(ValueError, match="192 sync tokens, 200 frames"):
        ConditionEncoderConfig(clip=MMAUDIO_16K)
    with pytest.raises(ValueError, match="condition_encoder"):
        ConditionEncoderConfig(clip=dataclasses.replace(TINY, sync_segment_stride=4))


def test_words_are_fixed_vectors_of_unit_variance():
    glass_twice = embed_text(["Glass, breaking glass", "glass"], 4, 8)
    np.testing.assert_array_equal(glass_twice[0, 0], glass_twice[0, 2])
    np.testing.assert_array_equal(glass_twice[0, 0], glass_twice[1, 0])
    assert np.abs(glass_twice[0, 0] - glass_twice[0, 1]).max() > 0.1
    np.testing.assert_array_equal(glass_twice[1, 1:], 0)
    words = embed_text([" ".join(map(str, range(200)))], 200, 64)
    assert words.std() == pytest.approx(1.0, abs=0.03)


def test_text_embedding_is_platform_independent():
    np.testing.assert_allclose(embed_text(["glass"], 1, 3)[0, 0], [-1.148985, 1.185975, -0.353871], rtol=1e-5)


def test_an_empty_caption_is_zeros_and_a_long_one_is_truncated():
    assert not embed_text([""], 3, 4).any()
    np.testing.assert_array_equal(embed_text(["a b c d"], 2, 4), embed_text(["a b"], 2, 4))
