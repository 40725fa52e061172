"""Synchformer (Iashin et al., arXiv 2401.16423): audio-visual synchronisation features and their offset.

The visual encoder, which also conditions the generator, is a ViT with divided space-time attention (TimeSformer, arXiv
2102.05095) over short segments. One more layer gathers the positions of each time step into one vector. Segments do not
attend to each other. The audio encoder is an Audio Spectrogram Transformer (arXiv 2104.01778) over the same segments,
with the same kind of layer over its bands. A small transformer classifies the features of 14 segments, 4.8 s, into 21
offsets.
"""

import dataclasses
import functools

from flax import linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Float32, Shaped
import numpy as np

from msg_jax.clip import SYNC_STEPS_PER_SEGMENT, ClipSpec
from msg_jax.models.attention import attend
from msg_jax.models.clip_encoder import TransformerBlock
from msg_jax.models.layers import Conv, Dense, logical
from msg_jax.models.stack import run_blocks
from msg_jax.types import AnyArray, Array

WINDOW_SEGMENTS = 14
WINDOW_SEC = 4.8
MAX_OFFSET_SEC = 2.0

_EPSILON = 1e-6  # of the LayerNorms in each network
_AST_EPSILON = 1e-12
_SYNC_EPSILON = 1e-5
_gelu = functools.partial(nn.gelu, approximate=False)


@dataclasses.dataclass(frozen=True)
class SynchformerConfig:
    """A segment has `SYNC_STEPS_PER_SEGMENT` x `frames_per_step` frames of `image_px`, a multiple of `patch_px`."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    image_px: int = 224
    patch_px: int = 16
    frames_per_step: int = 2
    bands: int = 128  # of a segment's spectrogram
    mel_frames: int = 66  # of a segment's spectrogram
    audio_patch: int = 16  # bands and frames of a patch
    audio_stride: int = 10  # between patches
    sync_depth: int = 3
    sync_heads: int = 8
    offsets: int = 21

    @property
    def audio_grid(self) -> tuple[int, int]:
        """Patches of a segment's spectrogram over bands and over time."""
        bands, frames = ((size - self.audio_patch) // self.audio_stride + 1 for size in (self.bands, self.mel_frames))
        return bands, frames

    @property
    def sync_tokens(self) -> int:
        """Input tokens of `SynchformerOffset`: two learned ones and the features of `WINDOW_SEGMENTS` segments."""
        return 2 + WINDOW_SEGMENTS * (SYNC_STEPS_PER_SEGMENT + self.audio_grid[1])

    @property
    def segment_frames(self) -> int:
        return SYNC_STEPS_PER_SEGMENT * self.frames_per_step

    @property
    def positions(self) -> int:
        """Image patches of one time step."""
        return (self.image_px // self.patch_px) ** 2


PRESETS = {"released": SynchformerConfig()}


def cut_segments(
    video: Shaped[np.ndarray, "B T H W 3"], clip: ClipSpec
) -> Shaped[np.ndarray, "B {clip.sync_segments} {clip.sync_segment_frames} H W 3"]:
    """Cut a video at `clip.video_hz` into overlapping segments."""
    starts = np.arange(clip.sync_segments) * clip.sync_segment_stride
    return video[:, starts[:, None] + np.arange(clip.sync_segment_frames)]


class DividedAttention(nn.Module):
    """Attention along one axis of a token grid; the class token attends to all tokens and all attend to it.

    The input is the class token, then a grid (R, C) flattened. Grid tokens attend along its axis 0 or 1.
    """

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], grid: tuple[int, int], along: int) -> Float[Array, "B N D"]:
        batch, _, width = x.shape
        qkv = Dense(3 * width, axes=("embed", "heads"), dtype=self.dtype, name="qkv")(x)
        q, k, v = (part.reshape(batch, -1, self.heads, width // self.heads) for part in jnp.split(qkv, 3, axis=-1))

        def lines(tokens):  # (B, R x C, heads, d) -> (B x lines, line, heads, d)
            tokens = tokens.reshape(batch, *grid, *tokens.shape[2:])
            if along == 0:
                tokens = tokens.swapaxes(1, 2)
            return tokens.reshape(-1, grid[along], *tokens.shape[3:])

        def with_class(tokens):
            first = jnp.repeat(tokens[:, :1], grid[1 - along], axis=0)
            return jnp.concatenate([first, lines(tokens[:, 1:])], axis=1)

        class_out = attend(q[:, :1], k, v)
        out = attend(lines(q[:, 1:]), with_class(k), with_class(v))
        out = out.reshape(batch, grid[1 - along], grid[along], width)
        if along == 0:
            out = out.swapaxes(1, 2)
        out = jnp.concatenate([class_out.reshape(batch, 1, width), out.reshape(batch, -1, width)], axis=1)
        return Dense(width, axes=("heads", "embed"), dtype=self.dtype, name="out")(out)


class DividedBlock(nn.Module):
    """Pre-norm attention over time, attention over space, and feed-forward."""

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], grid: tuple[int, int]) -> Float[Array, "B N D"]:
        def norm(name):
            return nn.LayerNorm(_EPSILON, dtype=self.dtype, name=name)

        x = x + DividedAttention(self.heads, self.dtype, name="time")(norm("norm_time")(x), grid, along=0)
        x = x + DividedAttention(self.heads, self.dtype, name="space")(norm("norm_space")(x), grid, along=1)
        width = x.shape[-1]
        y = Dense(4 * width, axes=("embed", "mlp"), dtype=self.dtype, name="mlp_in")(norm("norm_mlp")(x))
        return x + Dense(width, axes=("mlp", "embed"), dtype=self.dtype, name="mlp_out")(_gelu(y))


class Synchformer(nn.Module):
    """Segments in [-1, 1] -> features of their `SYNC_STEPS_PER_SEGMENT` steps."""

    config: SynchformerConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, segments: Float[AnyArray, "B segments T H W 3"]) -> Float32[Array, "B segments steps D"]:
        c = self.config
        x = self._embed(jnp.asarray(segments).reshape(-1, *segments.shape[2:]))
        grid = (SYNC_STEPS_PER_SEGMENT, c.positions)
        blocks = [DividedBlock(c.heads, self.dtype, name=f"block{i}") for i in range(c.depth)]
        x = run_blocks(blocks, lambda block, x: block(x, grid), x)
        x = nn.LayerNorm(_EPSILON, dtype=self.dtype, name="norm")(x[:, 1:])
        return self._gather(x.reshape(-1, c.positions, c.width)).reshape(*segments.shape[:2], -1, c.width)

    def _embed(self, video: Array) -> Array:
        """(B, segment_frames, H, W, 3) -> class and patch tokens with positions, (B, 1 + 8 N, width)."""
        c = self.config
        batch, _, height, width, channels = video.shape
        # The frames of a step become channels: 3-D convolutions are slow on a CPU.
        steps = video.reshape(batch, SYNC_STEPS_PER_SEGMENT, c.frames_per_step, height, width, channels)
        steps = jnp.moveaxis(steps, 2, 4).reshape(-1, height, width, c.frames_per_step * channels)
        patch = (c.patch_px, c.patch_px)
        x = Conv(
            c.width, patch, strides=patch, padding="VALID", axes=(None, "embed"), dtype=self.dtype, name="patches"
        )(steps).reshape(batch, SYNC_STEPS_PER_SEGMENT, c.positions, c.width)
        init = nn.initializers.truncated_normal(0.02)
        space = self.param("space_positions", logical(init, None, "embed"), (1 + c.positions, c.width))
        time_init = logical(nn.initializers.zeros_init(), None, "embed")
        time = self.param("time_positions", time_init, (SYNC_STEPS_PER_SEGMENT, c.width))
        x = x + (space[1:] + time[:, None]).astype(x.dtype)
        class_token = self.param("class_token", logical(init, "embed"), (c.width,)) + space[0]
        class_token = jnp.broadcast_to(class_token.astype(x.dtype), (batch, 1, c.width))
        return jnp.concatenate([class_token, x.reshape(batch, -1, c.width)], axis=1)

    def _gather(self, x: Array) -> Array:
        return _gather(self, x)


def _gather(tower: nn.Module, x: Array) -> Array:
    """Gather tokens (B, N, width) into one vector (B, width) float32 per item, with a class token of the tower's own."""
    c = tower.config
    init = logical(nn.initializers.truncated_normal(0.02), "embed")
    token = tower.param("gather_token", init, (c.width,)).astype(x.dtype)
    x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, c.width)), x], axis=1)
    block = TransformerBlock(c.heads, _gelu, epsilon=_EPSILON, dtype=tower.dtype, name="gather")
    return block(x, first=1)[:, 0].astype(jnp.float32)


class SynchformerAudio(nn.Module):
    """Spectrograms from `data.frontends.synchformer_spectrograms` -> features of their steps."""

    config: SynchformerConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, spectrograms: Float[AnyArray, "B segments T M"]) -> Float32[Array, "B segments steps D"]:
        c = self.config
        bands, steps = c.audio_grid
        patch, stride = (c.audio_patch, c.audio_patch), (c.audio_stride, c.audio_stride)
        images = jnp.asarray(spectrograms).reshape(-1, c.mel_frames, c.bands).swapaxes(1, 2)[..., None]
        x = Conv(
            c.width, patch, strides=stride, padding="VALID", axes=(None, "embed"), dtype=self.dtype, name="patches"
        )(images)
        init = nn.initializers.truncated_normal(0.02)
        tokens = self.param("tokens", logical(init, None, "embed"), (2, c.width)).astype(x.dtype)  # class, distillation
        positions = self.param("positions", logical(init, None, "embed"), (2 + bands * steps, c.width)).astype(x.dtype)
        tokens = jnp.broadcast_to(tokens, (len(x), 2, c.width))
        x = jnp.concatenate([tokens, x.reshape(len(x), -1, c.width)], axis=1) + positions
        blocks = [
            TransformerBlock(c.heads, _gelu, epsilon=_AST_EPSILON, dtype=self.dtype, name=f"block{i}") for i in range(c.depth)
        ]
        x = run_blocks(blocks, TransformerBlock.__call__, x)
        x = nn.LayerNorm(_AST_EPSILON, dtype=self.dtype, name="norm")(x)[:, 2:]
        x = x.reshape(-1, bands, steps, c.width).swapaxes(1, 2).reshape(-1, bands, c.width)
        return _gather(self, x).reshape(*spectrograms.shape[:2], steps, c.width)


class SynchformerOffset(nn.Module):
    """Features of `WINDOW_SEGMENTS` segments of video and audio -> logits over `offset_grid`."""

    config: SynchformerConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, video: Float[AnyArray, "B segments Tv D"], audio: Float[AnyArray, "B segments Ta D"]
    ) -> Float32[Array, "B {self.config.offsets}"]:
        c = self.config

        def prepared(features, name):
            x = Dense(c.width, axes=("embed", None), dtype=self.dtype, name=f"{name}_in")(features)
            x = x.reshape(len(features), -1, c.width)
            return nn.LayerNorm(_SYNC_EPSILON, dtype=self.dtype, name=f"{name}_norm")(x)

        init = nn.initializers.normal(0.02)
        offset_token, modality_token = (
            jnp.broadcast_to(self.param(name, logical(init, "embed"), (c.width,)).astype(self.dtype), (len(video), 1, c.width))
            for name in ("offset_token", "modality_token")
        )
        x = jnp.concatenate([offset_token, prepared(video, "video"), modality_token, prepared(audio, "audio")], axis=1)
        x = x + self.param("positions", logical(init, None, "embed"), (c.sync_tokens, c.width)).astype(x.dtype)
        for i in range(c.sync_depth):
            x = TransformerBlock(c.sync_heads, _gelu, epsilon=_SYNC_EPSILON, dtype=self.dtype, name=f"block{i}")(x)
        x = nn.LayerNorm(_SYNC_EPSILON, dtype=self.dtype, name="norm")(x[:, 0])
        return Dense(c.offsets, axes=("embed", None), dtype=self.dtype, name="head")(x).astype(jnp.float32)


class FullSynchformer(nn.Module):
    """Both encoders and the offset network. Encode once per clip, then call `offset_logits` once per window."""

    config: SynchformerConfig
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.visual = Synchformer(self.config, self.dtype)
        self.audio = SynchformerAudio(self.config, self.dtype)
        self.sync = SynchformerOffset(self.config, self.dtype)

    def encode_video(self, segments: Float[AnyArray, "B segments T H W 3"]) -> Float32[Array, "B segments steps D"]:
        return self.visual(segments)

    def encode_audio(self, spectrograms: Float[AnyArray, "B segments T M"]) -> Float32[Array, "B segments steps D"]:
        return self.audio(spectrograms)

    def offset_logits(
        self, video: Float[AnyArray, "B segments Tv D"], audio: Float[AnyArray, "B segments Ta D"]
    ) -> Float32[Array, "B offsets"]:
        return self.sync(video, audio)

    def __call__(
        self, segments: Float[AnyArray, "B segments T H W 3"], spectrograms: Float[AnyArray, "B segments Ta M"]
    ) -> Float32[Array, "B offsets"]:
        return self.offset_logits(self.encode_video(segments), self.encode_audio(spectrograms))


def offset_grid(offsets: int = 21) -> Float[np.ndarray, " {offsets}"]:
    """Offset between audio and video in seconds, for each logit."""
    return np.linspace(-MAX_OFFSET_SEC, MAX_OFFSET_SEC, offsets)


def window_starts(segments: int) -> tuple[int, int]:
    """Start segments of a clip's first and last window, over which DeSync averages."""
    return 0, segments - WINDOW_SEGMENTS
