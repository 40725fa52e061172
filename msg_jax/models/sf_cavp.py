"""SF-CAVP: SlowFast contrastive audio-visual pretraining (MultiSoundGen, arXiv 2509.19999), the reward model.

Video and log-mel each have a SlowFast network with three heads:

- **semantic** (B, D): *what* happens. Slow features averaged over each of `semantic_parts` equal parts of the clip, then a
  linear layer. More than one part also encodes the order in which sources appear, which one mean cannot.
- **dynamic** (B, T, D): *when* it happens. Fast features resampled to a common rate, then a linear layer per step. They
  are compared before any pooling over time, which would discard the timing.
- **local** (B, windows, D): *which event when*. Short windows of local features. The slow stream is excluded: with its
  long receptive field, a window could be recognised by its surroundings instead of its content. At full size the fast
  stream sees far too: one of its steps depends on 1.48 s of video and 2.19 s of sound, at 25 Hz and 62.5 Hz. There a local
  stream sees .28 s of each. The small network has none, and windows of fast features.

All embeddings have unit norm, so inner products are cosines. The paper specifies the two streams and the cosine reward;
widths, rates, weights and the window head are ours.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import no_type_check

from flax import linen as nn
from flax import struct
import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Float, Int32, Key

from msg_jax.clip import TINY, ClipSpec, MelSpec
from msg_jax.models.layers import Dense
from msg_jax.models.slowfast import AUDIO_R50, AUDIO_TINY, VIDEO_R50, VIDEO_TINY, SlowFast, SlowFastConfig
from msg_jax.types import AnyArray, Array, AVBatch

TERMS = ("semantic", "dynamic", "window")
_INITIAL_LOG_SCALE = math.log(1 / 0.07)
_MAX_LOG_SCALE = math.log(100.0)


@no_type_check
class Embeddings(struct.PyTreeNode):
    """Embeddings of one modality; the last axis of the first three has unit norm."""

    semantic: Float[Array, "B D"]
    dynamic: Float[Array, "B T D"]  # at `dynamic_hz`
    local: Float[Array, "B windows D"]
    events: Float[Array, "B T kinds"] | None = None  # unit norm over the clip (models/sound_events.py)


@no_type_check
class SFCAVPOutput(struct.PyTreeNode):
    """Embeddings of both modalities, and the inverse temperature of each of TERMS."""

    video: Embeddings
    audio: Embeddings
    scales: dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class RewardWeights:
    """Weights of the cosines in the reward. Windows and events rank the candidates of one video best."""

    semantic: float
    dynamic: float
    window: float
    events: float


@dataclasses.dataclass(frozen=True)
class SFCAVPConfig:
    """Sizes of SF-CAVP. `clip` sets the rates; the networks accept any length."""

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
        """Duration of the shortest clip that has at least one step in every window, semantic part and lagged copy."""
        rates = ((self.video, self.clip.video_hz), (self.audio, self.clip.mel.frames_hz))
        parts = (self.semantic_parts * network.alpha * network.fast_stride / hz for network, hz in rates)
        return max(self.window_sec, (1 + max(map(abs, lags), default=0)) / self.dynamic_hz, *parts)


def tiny(clip: ClipSpec = TINY) -> SFCAVPConfig:
    """SF-CAVP with 3 M parameters, for the procedural scenes on a CPU."""
    return SFCAVPConfig(clip, semantic_parts=8)


def r50(clip: ClipSpec, dtype: str = "bfloat16", remat: bool = False, local: bool = True) -> SFCAVPConfig:
    """SF-CAVP with two ResNet-50 SlowFast networks; without `local`, its windows are of fast features."""
    video, audio = (
        dataclasses.replace(network, dtype=dtype, remat=remat, local=local) for network in (VIDEO_R50, AUDIO_R50)
    )
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

    def encode_video(self, video: Float[AnyArray, "B T H W 3"]) -> Embeddings:
        """Embed video in [-1, 1] at `clip.video_hz`, of at least `config.shortest_sec()`."""
        return self.video_encoder(video)

    def video_features(
        self, video: Float[AnyArray, "B T H W 3"]
    ) -> tuple[Float[Array, "B slow_steps _"], Float[Array, "B steps _"]]:
        """Return the SlowFast features before the heads: slow ones, and fast ones at `dynamic_hz`."""
        return self.video_encoder.features(video)[:2]

    def encode_audio(self, mel: Float[AnyArray, "B T M"]) -> Embeddings:
        """Embed log-mels at `clip.mel.frames_hz`, of at least `config.shortest_sec()`."""
        return self.audio_encoder(_centred(mel, self.config.clip.mel)[..., None, None])

    def audio_features(
        self, mel: Float[AnyArray, "B T M"]
    ) -> tuple[Float[Array, "B slow_steps _"], Float[Array, "B steps _"]]:
        """Return the SlowFast features of log-mels, as `video_features` does."""
        return self.audio_encoder.features(_centred(mel, self.config.clip.mel)[..., None, None])[:2]

    def encode(self, batch: AVBatch) -> tuple[Embeddings, Embeddings]:
        """Embed both modalities, video first."""
        return self.encode_video(batch.video), self.encode_audio(batch.mel)

    def scales(self) -> dict[str, Float[Array, ""]]:
        """The inverse temperature of each of TERMS."""
        return {name: jnp.exp(jnp.minimum(log_scale, _MAX_LOG_SCALE)) for name, log_scale in self.log_scales.items()}

    def __call__(self, batch: AVBatch) -> SFCAVPOutput:
        return SFCAVPOutput(*self.encode(batch), self.scales())


def score(video: Embeddings, audio: Embeddings, weights: RewardWeights) -> dict[str, Float[Array, " B"]]:
    """Cosines of paired clips in [-1, 1], by term, and their weighted sum `reward`; `events` only if both sides have them."""
    pairs = {
        "semantic": jnp.sum(video.semantic * audio.semantic, axis=-1),
        "dynamic": jnp.sum(video.dynamic * audio.dynamic, axis=-1).mean(axis=1),
        "window": jnp.sum(video.local * audio.local, axis=-1).mean(axis=1),
    }
    if video.events is not None and audio.events is not None:
        pairs["events"] = jnp.sum(video.events * audio.events, axis=(1, 2))
    return pairs | {"reward": jnp.asarray(sum(getattr(weights, name) * cosine for name, cosine in pairs.items()))}


def random_crop(batch: AVBatch, key: Key[Array, ""], clip: ClipSpec, crop_sec: float) -> AVBatch:
    """Cut the same `crop_sec` from both modalities, starting at an independent random video frame for each clip.

    Without crops the network learns where events fall on its own strided grids (a delay of half a slow step can halve the
    semantic cosine). Audio is cut at the nearest mel frame.
    """
    frames, mel_frames = round(crop_sec * clip.video_hz), round(crop_sec * clip.mel.frames_hz)
    starts = crop_starts(key, batch.video.shape[:2], batch.mel.shape[1], clip, crop_sec)
    mel_starts = jnp.round(starts / clip.video_hz * clip.mel.frames_hz).astype(jnp.int32)

    def cut(x: Array, starts: Array, size: int) -> Array:
        return jax.vmap(lambda item, start: lax.dynamic_slice_in_dim(item, start, size))(x, starts)

    return AVBatch(video=cut(batch.video, starts, frames), mel=cut(batch.mel, mel_starts, mel_frames))


def crop_starts(
    key: Key[Array, ""], video_shape: tuple[int, ...], mel_frames: int, clip: ClipSpec, crop_sec: float
) -> Int32[Array, " B"]:
    """The first video frame of each of `random_crop`'s crops, from video of shape (B, T, ...) and log-mels of `mel_frames`."""
    clips, video_frames, *_ = video_shape
    spare_sec = (mel_frames - round(crop_sec * clip.mel.frames_hz)) / clip.mel.frames_hz
    last = min(video_frames - round(crop_sec * clip.video_hz), math.floor(spare_sec * clip.video_hz))
    return jax.random.randint(key, (clips,), 0, last + 1)


def random_view(batch: AVBatch, key: Key[Array, ""]) -> AVBatch:
    """Augment without changing the pairing: mirroring, brightness and colour, loudness and noise.

    Each clip draws its own augmentation: a horizontal flip with probability 1/2, a gain of 0.8 to 1.25 per colour channel,
    a log-mel lower by up to 1 (natural log) but not below its floor, and noise of standard deviation up to 0.2 on it.
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
    """SlowFast and the three heads of one modality; `input_hz` is the rate of its input."""

    config: SFCAVPConfig
    network: SlowFastConfig
    input_hz: float

    def setup(self):
        self.slowfast = SlowFast(self.network)

    def features(self, x: AnyArray) -> tuple[Array, Array, Array]:
        """Slow, fast and local features, the last two at `dynamic_hz`."""
        c = self.config
        slow, fast, local = self.slowfast(x)
        scale = c.dynamic_hz / (self.input_hz / self.network.fast_stride)
        steps = round(x.shape[1] / self.input_hz * c.dynamic_hz)
        fast = _resample(fast, scale, steps)
        return slow, fast, _resample(local, scale, steps) if self.network.local else fast

    @nn.compact
    def __call__(self, x: AnyArray) -> Embeddings:
        c, dtype = self.config, jnp.dtype(self.network.dtype)
        slow, fast, local = self.features(x)

        def head(features: Array, name: str) -> Array:
            return _unit(Dense(c.embed_dim, axes=("embed", None), dtype=dtype, name=name)(features))

        starts = range(0, fast.shape[1] - c.window_steps + 1, c.window_stride)
        windows = jnp.stack([local[:, start : start + c.window_steps] for start in starts], axis=1)
        windows = windows.reshape(*windows.shape[:2], -1)
        hidden = nn.relu(Dense(2 * c.embed_dim, axes=("conv_in", "embed"), dtype=dtype, name="window_hidden")(windows))
        parts = jnp.concatenate([part.mean(axis=1) for part in jnp.array_split(slow, c.semantic_parts, axis=1)], axis=-1)
        return Embeddings(
            semantic=head(parts, "semantic"), dynamic=head(fast, "dynamic"), local=head(hidden, "window")
        )


def _centred(mel: AnyArray, spec: MelSpec) -> Array:
    """Scale a log-mel of any logarithm base so that its floor becomes -1 and a magnitude of one becomes 1."""
    floor = math.log(spec.floor, spec.log_base)
    return 1 - 2 * jnp.asarray(mel) / floor


def _resample(x: Array, scale: float, steps: int) -> Array:
    """Resample (B, T, D) to (B, steps, D) at `scale` times the rate, linearly with a low-pass; times in seconds are kept."""
    if scale == 1 and steps == x.shape[1]:
        return x
    return jax.image.scale_and_translate(
        x, (x.shape[0], steps, x.shape[2]), (1,), jnp.array([scale]), jnp.zeros(1), method="linear", antialias=True
    )


def _unit(x: Array) -> Array:
    """Scale to unit norm in float32; a zero vector stays zero."""
    x = x.astype(jnp.float32)
    return x * lax.rsqrt(jnp.maximum(jnp.sum(x**2, axis=-1, keepdims=True), 1e-12))
