"""Synchformer's visual encoder (Iashin et al., arXiv 2401.16423): what moves when, eight features per 0.64 s segment.

A ViT with divided space-time attention (TimeSformer, arXiv 2102.05095) over short segments, then one layer that gathers
the positions of each time step into one vector. Segments do not see each other.
"""

import dataclasses
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from msg_jax.clip import SYNC_STEPS_PER_SEGMENT, ClipSpec
from msg_jax.models.clip_encoder import TransformerBlock
from msg_jax.models.layers import Conv, Dense, logical
from msg_jax.types import Array

_EPSILON = 1e-6
_gelu = functools.partial(nn.gelu, approximate=False)


@dataclasses.dataclass(frozen=True)
class SynchformerConfig:
    """Segments hold `SYNC_STEPS_PER_SEGMENT` x `frames_per_step` frames of `image_px`, a multiple of `patch_px`."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    image_px: int = 224
    patch_px: int = 16
    frames_per_step: int = 2

    @property
    def segment_frames(self) -> int:
        return SYNC_STEPS_PER_SEGMENT * self.frames_per_step

    @property
    def positions(self) -> int:
        """Patches of one time step."""
        return (self.image_px // self.patch_px) ** 2


PRESETS = {"released": SynchformerConfig()}


def cut_segments(video: Array, clip: ClipSpec) -> Array:
    """Video (B, T, H, W, 3) at `clip.video_hz` -> overlapping segments (B, sync_segments, segment frames, H, W, 3)."""
    starts = np.arange(clip.sync_segments) * clip.sync_segment_stride
    return video[:, starts[:, None] + np.arange(clip.sync_segment_frames)]


class DividedAttention(nn.Module):
    """Attention along one axis of a grid of tokens, with a class token that sees and is seen by all of it.

    x (B, 1 + R x C, D): the class token, then a grid (R, C) flattened; tokens attend along axis 0 or 1 of it.
    """

    heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, grid: tuple[int, int], along: int) -> Array:
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

        class_out = jax.nn.dot_product_attention(q[:, :1], k, v)
        out = jax.nn.dot_product_attention(lines(q[:, 1:]), with_class(k), with_class(v))
        out = out.reshape(batch, grid[1 - along], grid[along], width)
        if along == 0:
            out = out.swapaxes(1, 2)
        out = jnp.concatenate([class_out.reshape(batch, 1, width), out.reshape(batch, -1, width)], axis=1)
        return Dense(width, axes=("heads", "embed"), dtype=self.dtype, name="out")(out)


class DividedBlock(nn.Module):
    """Attention over time, attention over space, feed-forward, each pre-norm: (B, 1 + T x N, D) -> the same."""

    heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, grid: tuple[int, int]) -> Array:
        def norm(name):
            return nn.LayerNorm(_EPSILON, dtype=self.dtype, name=name)

        x = x + DividedAttention(self.heads, self.dtype, name="time")(norm("norm_time")(x), grid, along=0)
        x = x + DividedAttention(self.heads, self.dtype, name="space")(norm("norm_space")(x), grid, along=1)
        width = x.shape[-1]
        y = Dense(4 * width, axes=("embed", "mlp"), dtype=self.dtype, name="mlp_in")(norm("norm_mlp")(x))
        return x + Dense(width, axes=("mlp", "embed"), dtype=self.dtype, name="mlp_out")(_gelu(y))


class Synchformer(nn.Module):
    """Segments (B, S, segment_frames, image_px, image_px, 3) in [-1, 1] -> (B, S, 8, width) float32."""

    config: SynchformerConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, segments: Array) -> Array:
        c = self.config
        x = self._embed(segments.reshape(-1, *segments.shape[2:]))
        grid = (SYNC_STEPS_PER_SEGMENT, c.positions)
        for i in range(c.depth):
            x = DividedBlock(c.heads, self.dtype, name=f"block{i}")(x, grid)
        x = nn.LayerNorm(_EPSILON, dtype=self.dtype, name="norm")(x[:, 1:])
        return self._gather(x.reshape(-1, c.positions, c.width)).reshape(*segments.shape[:2], -1, c.width)

    def _embed(self, video: Array) -> Array:
        """(B, segment_frames, H, W, 3) -> class token and patch tokens with positions, (B, 1 + 8 N, width)."""
        c = self.config
        batch, _, height, width, channels = video.shape
        # The frames of a step become channels, so that the patches are a 2-D convolution: 3-D ones are slow on a CPU.
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
        """Tokens of each time step (B, N, width) -> one vector (B, width) float32, by a class token of their own."""
        c = self.config
        init = logical(nn.initializers.truncated_normal(0.02), "embed")
        token = self.param("gather_token", init, (c.width,)).astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, c.width)), x], axis=1)
        block = TransformerBlock(c.heads, _gelu, epsilon=_EPSILON, dtype=self.dtype, name="gather")
        return block(x)[:, 0].astype(jnp.float32)
