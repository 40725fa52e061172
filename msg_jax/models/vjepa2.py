"""The encoder of V-JEPA 2 (Assran et al., arXiv 2506.09985): a ViT over tubes of a video, with rotary positions on three axes.

Frames are seen as in its training: 4 a second, the middle of the picture, two frames to a tube. A stream of more frames a
second is cut into phases of 4 a second, so each of its frames is in a tube.
"""

import dataclasses
import functools
import math

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Float32, Shaped
import numpy as np

from msg_jax.models.clip_encoder import TransformerBlock
from msg_jax.models.layers import Conv
from msg_jax.models.stack import run_blocks
from msg_jax.types import AnyArray, Array

FRAMES_HZ = 4.0
FRAMES_PER_TUBE = 2
MOST_FRAMES = 64  # of a phase: 16 s
PIXEL_MEAN = (0.485, 0.456, 0.406)  # of RGB in [0, 1]
PIXEL_STD = (0.229, 0.224, 0.225)

_EPSILON = 1e-6
_ROPE_THETA = 10_000.0
_gelu = functools.partial(nn.gelu, approximate=False)


@dataclasses.dataclass(frozen=True)
class VJEPA2Config:
    """`image_px` is a multiple of `patch_px`. The predictor of its training has no place here."""

    width: int = 1024
    depth: int = 24
    heads: int = 16
    image_px: int = 256
    patch_px: int = 16

    @property
    def resized_px(self) -> int:
        """Shorter side of a picture before its middle is cut out."""
        return self.image_px * 256 // 224

    @property
    def grid(self) -> int:
        """Patches along a side of a picture."""
        return self.image_px // self.patch_px


PRESETS = {"vitl": VJEPA2Config()}


def cut_phases(video: Shaped[np.ndarray, "B T H W 3"], hz: float) -> Shaped[np.ndarray, "B phases frames H W 3"]:
    """Split a video at `hz` into phases at about `FRAMES_HZ`: phase p has the frames p, p + phases, p + 2 phases, ...

    The last frame is repeated until every phase has a whole number of tubes.
    """
    phases = max(1, round(hz / FRAMES_HZ))
    steps = math.ceil(video.shape[1] / (FRAMES_PER_TUBE * phases))
    places = np.arange(FRAMES_PER_TUBE * steps * phases).reshape(-1, phases).T
    return video[:, np.minimum(places, video.shape[1] - 1)]


def join_phases(features: Shaped[np.ndarray, "B phases steps D"], frames: int) -> Shaped[np.ndarray, "B {frames} D"]:
    """Invert `cut_phases` for the features of its tubes: each frame gets those of the tube that it is in."""
    of_frames = features.repeat(FRAMES_PER_TUBE, axis=2).swapaxes(1, 2)
    return of_frames.reshape(len(features), -1, features.shape[-1])[:, :frames]


def prepare(frames: Float[AnyArray, "*batch H H 3"], config: VJEPA2Config) -> Float[Array, "*batch px px 3"]:
    """Frames in [-1, 1] -> the middle of them, resized and normalised by pixel mean and deviation.

    The publisher rounds resized pictures to whole levels, and this does not: they differ by less than one level of 255.
    """
    px, cut = config.resized_px, (config.resized_px - config.image_px) // 2
    resized = jax.image.resize(jnp.asarray(frames), (*frames.shape[:-3], px, px, 3), "linear", antialias=True)
    middle = resized[..., cut : cut + config.image_px, cut : cut + config.image_px, :]
    return ((middle + 1) / 2 - jnp.asarray(PIXEL_MEAN)) / jnp.asarray(PIXEL_STD)


def rope_angles(steps: int, grid: int, head: int) -> Float32[np.ndarray, "tokens {head}"]:
    """Angles in radians for each feature of a head; tokens are ordered by step, row and column.

    A third of the features each, rounded down to an even number, is rotated by step, by row and by column. The rest is not.
    As in the released code the frequencies are repeated in blocks, so the two features of a pair have different angles.
    """
    part = 2 * (head // 3 // 2)
    frequencies = np.tile(_ROPE_THETA ** -(np.arange(part // 2) / (part / 2)), 2)
    places = np.indices((steps, grid, grid)).reshape(3, -1)
    angles = np.concatenate([np.outer(axis, frequencies) for axis in places], axis=1)
    return np.pad(angles, ((0, 0), (0, head - 3 * part))).astype(np.float32)


def rotate(x: Float[Array, "B T heads D"], angles: Float[AnyArray, "T D"]) -> Float[Array, "B T heads D"]:
    """Rotate the pairs (0, 1), (2, 3), ... of the last axis, each feature by its own angle."""
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    turned = jnp.stack([-x[..., 1::2], x[..., 0::2]], axis=-1).reshape(x.shape)
    return (x * cos + turned * sin).astype(x.dtype)


class VJEPA2(nn.Module):
    """Frames in [-1, 1], an even number of them at about `FRAMES_HZ` -> mean features of each tube's patches."""

    config: VJEPA2Config
    dtype: DTypeLike = jnp.float32

    def __call__(self, frames: Float[AnyArray, "B T H H 3"]) -> Float32[Array, "B steps {self.config.width}"]:
        tokens = self.tokens(prepare(frames, self.config))
        return tokens.reshape(len(frames), frames.shape[1] // FRAMES_PER_TUBE, -1, self.config.width).mean(axis=2)

    @nn.compact
    def tokens(self, pixels: Float[AnyArray, "B T px px 3"]) -> Float32[Array, "B tokens {self.config.width}"]:
        """Prepared frames -> features of every tube and patch, by step, row and column."""
        c = self.config
        batch, frames, height, width, channels = pixels.shape
        steps, patch = frames // FRAMES_PER_TUBE, (c.patch_px, c.patch_px)
        # The frames of a tube become channels: 3-D convolutions are slow on a CPU.
        tubes = jnp.asarray(pixels).reshape(batch, steps, FRAMES_PER_TUBE, height, width, channels)
        tubes = jnp.moveaxis(tubes, 2, 4).reshape(-1, height, width, FRAMES_PER_TUBE * channels)
        x = Conv(
            c.width, patch, strides=patch, padding="VALID", axes=(None, "embed"), dtype=self.dtype, name="patches"
        )(tubes).reshape(batch, -1, c.width)
        turn = functools.partial(rotate, angles=rope_angles(steps, c.grid, c.width // c.heads))
        blocks = [
            TransformerBlock(c.heads, _gelu, epsilon=_EPSILON, dtype=self.dtype, name=f"block{i}") for i in range(c.depth)
        ]
        x = run_blocks(blocks, lambda block, x: block(x, rotate=turn), x)
        return nn.LayerNorm(_EPSILON, dtype=self.dtype, name="norm")(x).astype(jnp.float32)
