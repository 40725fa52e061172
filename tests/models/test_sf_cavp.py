"""SF-CAVP: unit embeddings at a common rate, receptive fields of windows, hand-computed scores, synchronous crops."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msg_jax.clip import MMAUDIO_16K, MMAUDIO_44K, TINY
from msg_jax.models import sf_cavp
from msg_jax.models.sf_cavp import SFCAVP, Embeddings, RewardWeights, random_crop, random_view, score
from msg_jax.models.slowfast import AUDIO_TINY, VIDEO_TINY
from msg_jax.types import AVBatch

SMALL = dataclasses.replace(
    sf_cavp.tiny(), embed_dim=16,
    video=dataclasses.replace(VIDEO_TINY, slow_width=16, beta_inv=2, expansion=1, depths=(1,)),
    audio=dataclasses.replace(AUDIO_TINY, slow_width=16, beta_inv=2, expansion=1, depths=(1,)),
)


def random_batch(clip, size=2):
    key_video, key_mel = jax.random.split(jax.random.key(0))
    video = jax.random.uniform(key_video, (size, clip.video_frames, clip.video_px, clip.video_px, 3), minval=-1)
    return AVBatch(video=video, mel=jax.random.normal(key_mel, (size, clip.mel_frames, clip.mel.bands)) - 5)


@pytest.fixture(scope="module")
def small():
    batch = random_batch(TINY)
    params = jax.jit(SFCAVP(SMALL).init)(jax.random.key(1), batch)
    rng = np.random.default_rng(0)
    # Open the residual branches, which start at zero. Leave the scalars (inverse temperatures) alone.
    return batch, jax.tree.map(lambda p: p + 0.1 * (p.ndim > 0) * rng.standard_normal(p.shape, np.float32), params)


def test_embeddings_have_unit_norm_at_one_rate(small):
    batch, params = small
    output = jax.jit(SFCAVP(SMALL).apply)(params, batch)
    for side in (output.video, output.audio):
        assert side.semantic.shape == (2, 16) and side.dynamic.shape == (2, 80, 16) and side.local.shape == (2, 19, 16)
        for embedding in jax.tree.leaves(side):
            np.testing.assert_allclose(jnp.linalg.norm(embedding, axis=-1), 1.0, atol=1e-5)


def test_inverse_temperatures_start_at_clips_value_and_are_clamped(small):
    batch, params = small
    apply = jax.jit(SFCAVP(SMALL).apply)
    scales = apply(params, batch).scales
    assert {name: round(float(scale), 4) for name, scale in scales.items()} == dict.fromkeys(sf_cavp.TERMS, 14.2857)
    hot = {"params": params["params"] | {f"log_scale_{name}": jnp.float32(9.0) for name in sf_cavp.TERMS}}
    for scale in apply(hot, batch).scales.values():
        assert float(scale) == pytest.approx(100.0, rel=1e-5)


def test_receptive_field_of_a_window_is_that_of_its_frames(small):
    batch, params = small
    model = SFCAVP(SMALL)

    def window(video):
        return model.apply(params, video, method=model.encode_video).local[0, 9, 0]

    seen = np.flatnonzero(np.abs(jax.jit(jax.grad(window))(batch.video[:1])).max(axis=(0, 2, 3, 4)))
    reach = SMALL.video.fast_receptive_field // 2
    first = 9 * SMALL.window_stride  # window 9 is frames 36..43
    assert seen[0] == first - reach and seen[-1] == first + SMALL.window_steps - 1 + reach


@pytest.mark.parametrize("clip", [MMAUDIO_16K, MMAUDIO_44K])
def test_r50_brings_both_modalities_to_the_same_number_of_steps(clip):
    model = SFCAVP(sf_cavp.r50(clip))
    batch = jax.eval_shape(lambda: random_batch(clip))
    output, _ = jax.eval_shape(lambda b: model.init_with_output(jax.random.key(0), b), batch)
    assert output.video.dynamic.shape == output.audio.dynamic.shape == (2, 200, 512)
    assert output.video.local.shape == output.audio.local.shape == (2, 49, 512)
    assert output.video.dynamic.dtype == jnp.float32  # norms and cosines need more than bfloat16


def test_tiny_has_three_million_parameters():
    batch = jax.eval_shape(lambda: random_batch(TINY))
    params = jax.eval_shape(lambda b: SFCAVP(sf_cavp.tiny()).init(jax.random.key(0), b), batch)
    assert sum(math.prod(p.shape) for p in jax.tree.leaves(params)) == pytest.approx(3.0e6, rel=0.05)


def test_resampling_preserves_times():
    """A ramp of seconds at 21.53 Hz (hop 2048 at 44.1 kHz) stays a ramp of seconds at 25 Hz."""
    hz = 44_100 / 2048
    seconds = (jnp.arange(172) + 0.5) / hz
    resampled = sf_cavp._resample(seconds[None, :, None], 25 / hz, 199)
    np.testing.assert_allclose(resampled[0, 2:-2, 0], (np.arange(199)[2:-2] + 0.5) / 25, atol=1e-4)


@pytest.mark.parametrize("clip", [MMAUDIO_16K, MMAUDIO_44K])
def test_mel_centring_is_independent_of_the_logarithm_base(clip):
    magnitudes = np.array([clip.mel.floor, 1.0])
    log_mel = np.log(magnitudes) / np.log(clip.mel.log_base)
    np.testing.assert_allclose(sf_cavp._centred(log_mel, clip.mel), [-1, 1], atol=1e-6)


def test_score_by_hand():
    e0, e1 = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
    video = Embeddings(semantic=e0[None], dynamic=jnp.stack([e0, e1, e0, e1])[None], local=jnp.stack([e0, e1])[None])
    audio = Embeddings(
        semantic=jnp.array([[0.6, 0.8]]), dynamic=jnp.stack([e0, e0, e0, e1])[None], local=jnp.stack([e1, e1])[None]
    )
    scores = score(video, audio, RewardWeights(semantic=1.0, dynamic=2.0, window=4.0, events=8.0))
    assert {name: round(float(value[0]), 5) for name, value in scores.items()} == {
        "semantic": 0.6, "dynamic": 0.75, "window": 0.5, "reward": 0.6 + 1.5 + 2.0
    }


@pytest.mark.parametrize("clip", [TINY, MMAUDIO_44K])
def test_random_crop_cuts_both_modalities_at_the_same_instant(clip):
    size = 64
    frame_times = jnp.arange(clip.video_frames) / clip.video_hz
    mel_times = jnp.arange(clip.mel_frames) / clip.mel.frames_hz
    batch = AVBatch(
        video=jnp.broadcast_to(frame_times[None, :, None, None, None], (size, clip.video_frames, 1, 1, 1)),
        mel=jnp.broadcast_to(mel_times[None, :, None], (size, clip.mel_frames, 1)),
    )
    cropped = random_crop(batch, jax.random.key(0), clip, 1.6)
    assert cropped.video.shape[1] == 40 and cropped.mel.shape[1] == round(1.6 * clip.mel.frames_hz)
    starts = cropped.video[:, 0, 0, 0, 0]
    assert float(jnp.abs(cropped.mel[:, 0, 0] - starts).max()) <= 0.5 / clip.mel.frames_hz + 1e-6
    np.testing.assert_allclose(cropped.video[:, -1, 0, 0, 0] - starts, 39 / clip.video_hz, atol=1e-6)
    np.testing.assert_allclose(jnp.diff(cropped.mel[..., 0], axis=1), 1 / clip.mel.frames_hz, atol=1e-5)
    assert len(np.unique(starts)) > 20 and float(starts.max() - starts.min()) > 0.9 * (clip.duration_sec - 1.6)


def test_random_view_preserves_time_and_pairing():
    """Each clip is mirrored or not, scaled by one gain per colour channel, and its log-mel lowered towards its floor."""
    batch = random_batch(TINY, size=16)
    view = random_view(batch, jax.random.key(3))
    mirrored = 0
    for before, after in zip(np.asarray(batch.video), np.asarray(view.video)):
        straight, flipped = (np.corrcoef(frames.ravel(), after.ravel())[0, 1] for frames in (before, before[:, :, ::-1]))
        assert max(straight, flipped) > 0.9 and min(straight, flipped) < 0.1
        mirrored += flipped > straight
    assert 3 <= mirrored <= 13
    lowered = (np.asarray(batch.mel) - np.asarray(view.mel)).mean(axis=(1, 2))
    assert lowered.min() > -0.05 and lowered.max() < 1.0 and lowered.std() > 0.1


def test_semantic_parts_encode_the_order_that_a_plain_mean_loses():
    """Swapping the halves of a clip changes the embedding of two parts, and not that of one mean."""
    clip = dataclasses.replace(TINY, duration_sec=6.4)
    halves = random_batch(TINY, size=2)
    ab = jnp.concatenate([halves.mel[:1], halves.mel[1:]], axis=1)
    ba = jnp.concatenate([halves.mel[1:], halves.mel[:1]], axis=1)
    cosines = []
    for parts in (1, 2):
        model = SFCAVP(dataclasses.replace(SMALL, clip=clip, semantic_parts=parts))
        params = jax.jit(model.init)(jax.random.key(1), random_batch(clip))
        embed = jax.jit(lambda p, x, model=model: model.apply(p, x, method="encode_audio").semantic)
        cosines.append(float((embed(params, ab) * embed(params, ba)).sum()))
    assert cosines[0] > 0.99 > cosines[1] + 0.005


def test_shortest_clip_by_hand():
    """Eight parts of slow features at 6.25 Hz; a window of 0.32 s; a lag of 40 steps at 25 Hz plus one step."""
    assert sf_cavp.tiny().shortest_sec() == pytest.approx(8 / 6.25)
    assert sf_cavp.r50(MMAUDIO_16K).shortest_sec() == pytest.approx(0.32)
    assert sf_cavp.r50(MMAUDIO_16K).shortest_sec((-40, 4)) == pytest.approx(41 / 25)
