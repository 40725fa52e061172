"""SF-CAVP: SlowFast contrastive audio-visual pretraining (MultiSoundGen, arXiv 2509.19999), the reward model.

Two SlowFast networks of one architecture, one for video and one for log-mel, and three heads on each:

- **semantic** (B, D): slow features, mean over time (of each of `semantic_parts` equal parts of the clip), linear. *What* is
  heard and seen; with more than one part also in which order sources come and go, which a plain mean cannot tell.
- **dynamic** (B, T, D): fast features resampled to one common rate, linear per step. *When* it happens. Never pooled
  over time before it is compared: pooling throws away the timing the fast stream exists for.
- **local** (B, W, D): short windows of fast features alone. *Which event when*; the slow stream is kept out because
  its long receptive field lets a window be recognised by its surroundings instead of its content.

All embeddings have unit norm, so inner products are cosines. The paper names the two streams and the cosine reward;
widths, rates, weights and the window head are ours.
"""

from collections.abc import Sequence
import dataclasses
import math

from flax import linen as nn
from flax import struct
import jax
from jax import lax
import jax.numpy as jnp

from msg_jax.clip import TINY, ClipSpec, MelSpec
from msg_jax.models.layers import Dense
from msg_jax.models.slowfast import AUDIO_R50, AUDIO_TINY, VIDEO_R50, VIDEO_TINY, SlowFast, SlowFastConfig
from msg_jax.types import Array, AVBatch

TERMS = ("semantic", "dynamic", "window")
_INITIAL_LOG_SCALE = math.log(1 / 0.07)
_MAX_LOG_SCALE = math.log(100.0)


class Embeddings(struct.PyTreeNode):
    """One modality of a batch; every last axis has unit norm."""

    semantic: Array  # (B, D)
    dynamic: Array  # (B, T, D), T steps at `dynamic_hz`
    local: Array  # (B, W, D)
    events: Array | None = None  # (B, T, kinds), of unit norm over the clip (models/sound_events.py)


class SFCAVPOutput(struct.PyTreeNode):
    video: Embeddings
    audio: Embeddings
    scales: dict[str, Array]  # inverse temperatures, one per name in TERMS


@dataclasses.dataclass(frozen=True)
class RewardWeights:
    """Weights of the cosines in the reward; windows and events are what ranks candidates of one video."""

    semantic: float = 0.5
    dynamic: float = 0.5
    window: float = 1.0
    events: float = 0.0


@dataclasses.dataclass(frozen=True)
class SFCAVPConfig:
    """Rates come from `clip`; the networks take any length."""

    clip: ClipSpec = TINY
    video: SlowFastConfig = VIDEO_TINY
    audio: SlowFastConfig = AUDIO_TINY
    embed_dim: int = 128
    dynamic_hz: float = 25.0
    semantic_parts: int = 1
    window_sec: float = 0.32
    window_stride_sec: float = 0.16

    @property
    def window_steps(self) -> int:
        return round(self.window_sec * self.dynamic_hz)

    @property
    def window_stride(self) -> int:
        return round(self.window_stride_sec * self.dynamic_hz)


    def shortest_sec(self, lags: Sequence[int] = ()) -> float:
        """The shortest clip whose windows, semantic parts and lagged copies all have a step."""
        rates = ((self.video, self.clip.video_hz), (self.audio, self.clip.mel.frames_hz))
        parts = (self.semantic_parts * network.alpha * network.fast_stride / hz for network, hz in rates)
        return max(self.window_sec, (1 + max(map(abs, lags), default=0)) / self.dynamic_hz, *parts)


def tiny(clip: ClipSpec = TINY) -> SFCAVPConfig:
    """3 M parameters, for the procedural scenes on a CPU."""
    return SFCAVPConfig(clip, semantic_parts=8)


def r50(clip: ClipSpec, dtype: str = "bfloat16") -> SFCAVPConfig:
    """Two ResNet-50 SlowFasts."""
    video, audio = (dataclasses.replace(network, dtype=dtype) for network in (VIDEO_R50, AUDIO_R50))
    return SFCAVPConfig(clip, video, audio, embed_dim=512)


class SFCAVP(nn.Module):
    """Both encoders and the learned inverse temperatures (initially 1/0.07, at most 100 as in CLIP)."""

    config: SFCAVPConfig

    def setup(self):
        c = self.config
        self.video_encoder = _Encoder(c, c.video, c.clip.video_hz)
        self.audio_encoder = _Encoder(c, c.audio, c.clip.mel.frames_hz)
        init = nn.initializers.constant(_INITIAL_LOG_SCALE)
        self.log_scales = {name: self.param(f"log_scale_{name}", init, ()) for name in TERMS}

    def encode_video(self, video: Array) -> Embeddings:
        """(B, T, H, W, 3) in [-1, 1] at `clip.video_hz`, any T of at least one window."""
        return self.video_encoder(video)

    def video_features(self, video: Array) -> tuple[Array, Array]:
        """The SlowFast features before the heads, (B, Ts, D) slow and (B, T, D) fast at `dynamic_hz`."""
        return self.video_encoder.features(video)

    def encode_audio(self, mel: Array) -> Embeddings:
        """(B, T, M) log-mel at `clip.mel.frames_hz`, any T of at least one window."""
        return self.audio_encoder(_centred(mel, self.config.clip.mel)[..., None, None])

    def audio_features(self, mel: Array) -> tuple[Array, Array]:
        """As `video_features`, of (B, T, M) log-mel."""
        return self.audio_encoder.features(_centred(mel, self.config.clip.mel)[..., None, None])

    def __call__(self, batch: AVBatch) -> SFCAVPOutput:
        scales = {name: jnp.exp(jnp.minimum(log_scale, _MAX_LOG_SCALE)) for name, log_scale in self.log_scales.items()}
        return SFCAVPOutput(self.encode_video(batch.video), self.encode_audio(batch.mel), scales)


def score(video: Embeddings, audio: Embeddings, weights: RewardWeights) -> dict[str, Array]:
    """Cosines of paired clips, each (B,) in [-1, 1], by name, and their weighted sum `reward`; `events` if both have any."""
    pairs = {
        "semantic": jnp.sum(video.semantic * audio.semantic, axis=-1),
        "dynamic": jnp.sum(video.dynamic * audio.dynamic, axis=-1).mean(axis=1),
        "window": jnp.sum(video.local * audio.local, axis=-1).mean(axis=1),
    }
    if video.events is not None and audio.events is not None:
        pairs["events"] = jnp.sum(video.events * audio.events, axis=(1, 2))
    return pairs | {"reward": sum(getattr(weights, name) * cosine for name, cosine in pairs.items())}


def random_crop(batch: AVBatch, key: Array, clip: ClipSpec, crop_sec: float) -> AVBatch:
    """The same `crop_sec` of both modalities, from an independent random video frame for each clip.

    Without it the network learns where events fall on its own strided grids (a delay of half a slow step can halve the
    semantic cosine). Audio is cut at the nearest mel frame.
    """
    frames, mel_frames = round(crop_sec * clip.video_hz), round(crop_sec * clip.mel.frames_hz)
    spare_sec = (batch.mel.shape[1] - mel_frames) / clip.mel.frames_hz
    last = min(batch.video.shape[1] - frames, math.floor(spare_sec * clip.video_hz))
    starts = jax.random.randint(key, batch.video.shape[:1], 0, last + 1)
    mel_starts = jnp.round(starts / clip.video_hz * clip.mel.frames_hz).astype(jnp.int32)

    def cut(x: Array, starts: Array, size: int) -> Array:
        return jax.vmap(lambda item, start: lax.dynamic_slice_in_dim(item, start, size))(x, starts)

    return AVBatch(video=cut(batch.video, starts, frames), mel=cut(batch.mel, mel_starts, mel_frames))


def random_view(batch: AVBatch, key: Array) -> AVBatch:
    """What leaves the pairing untouched: mirrored pictures, light and colour cast, level and noise of the sound.

    Each clip draws its own: a mirror image half of the time, a gain of 0.8 to 1.25 per colour channel, up to 1 (natural
    log) quieter above the unchanged floor, noise of deviation up to 0.2 on the log-mel.
    """
    flip_key, light_key, level_key, noise_key, scale_key = jax.random.split(key, 5)
    clips = batch.video.shape[0]
    flip = jax.random.bernoulli(flip_key, 0.5, (clips, 1, 1, 1, 1))
    video = jnp.where(flip, batch.video[:, :, :, ::-1], batch.video)
    gain = jnp.exp(jax.random.uniform(light_key, (clips, 1, 1, 1, 3), minval=-0.22, maxval=0.22))
    video = jnp.clip((video + 1) * gain - 1, -1, 1)
    floor = batch.mel.min(axis=(1, 2), keepdims=True)
    mel = jnp.maximum(batch.mel - jax.random.uniform(level_key, (clips, 1, 1)), floor)
    mel = mel + jax.random.uniform(scale_key, (clips, 1, 1), maxval=0.2) * jax.random.normal(noise_key, mel.shape)
    return AVBatch(video=video, mel=mel)


class _Encoder(nn.Module):
    """SlowFast and the three heads of one modality, whose input runs at `input_hz`."""

    config: SFCAVPConfig
    network: SlowFastConfig
    input_hz: float

    def setup(self):
        self.slowfast = SlowFast(self.network)

    def features(self, x: Array) -> tuple[Array, Array]:
        c = self.config
        slow, fast = self.slowfast(x)
        steps = round(x.shape[1] / self.input_hz * c.dynamic_hz)
        return slow, _resample(fast, c.dynamic_hz / (self.input_hz / self.network.fast_stride), steps)

    @nn.compact
    def __call__(self, x: Array) -> Embeddings:
        c, dtype = self.config, jnp.dtype(self.network.dtype)
        slow, fast = self.features(x)

        def head(features: Array, name: str) -> Array:
            return _unit(Dense(c.embed_dim, axes=("embed", None), dtype=dtype, name=name)(features))

        starts = range(0, fast.shape[1] - c.window_steps + 1, c.window_stride)
        windows = jnp.stack([fast[:, start : start + c.window_steps] for start in starts], axis=1)
        windows = windows.reshape(*windows.shape[:2], -1)
        hidden = nn.relu(Dense(2 * c.embed_dim, axes=("conv_in", "embed"), dtype=dtype, name="window_hidden")(windows))
        parts = jnp.concatenate([part.mean(axis=1) for part in jnp.array_split(slow, c.semantic_parts, axis=1)], axis=-1)
        return Embeddings(
            semantic=head(parts, "semantic"), dynamic=head(fast, "dynamic"), local=head(hidden, "window")
        )


def _centred(mel: Array, spec: MelSpec) -> Array:
    """Log-mel scaled so that the floor is -1 and a magnitude of one is 1, whatever the base of the logarithm."""
    floor = math.log(spec.floor, spec.log_base)
    return 1 - 2 * mel / floor


def _resample(x: Array, scale: float, steps: int) -> Array:
    """(B, T, D) -> (B, steps, D) at `scale` times the rate, linear, low-passed; instants keep their seconds."""
    if scale == 1 and steps == x.shape[1]:
        return x
    return jax.image.scale_and_translate(
        x, (x.shape[0], steps, x.shape[2]), (1,), jnp.array([scale]), jnp.zeros(1), method="linear", antialias=True
    )


def _unit(x: Array) -> Array:
    """Unit norm in float32; a zero vector stays zero."""
    x = x.astype(jnp.float32)
    return x * lax.rsqrt(jnp.maximum(jnp.sum(x**2, axis=-1, keepdims=True), 1e-12))
