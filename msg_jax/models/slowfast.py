"""SlowFast: two streams over one input, a slow one that sees *what* and a fast one that sees *when*.

One network serves both modalities: video (B, T, H, W, 3), as in Feichtenhofer et al. 2019 (arXiv 1812.03982), and
log-mel seen as a film of one-pixel-wide, one-channel frames (B, T, M, 1, 1), as in Kazakos et al. 2021 (arXiv
2103.03516).

Three departures from the papers, each for a reason:

- **GroupNorm inside each frame instead of BatchNorm.** BatchNorm carries running averages beside the parameters,
  couples the clips of a batch and has to be synchronised across devices, which for a contrastive loss also leaks
  which clips go together. Statistics over one frame (space and a group of channels) keep the network a pure function
  of its parameters, indifferent to batch and clip length, and leave its receptive field in time exact: nothing
  outside it can matter. A block normalises once, where it is narrow, and starts as the identity: on a CPU norms of
  the wide outputs cost more than the convolutions.
- **Factored convolutions.** A bottleneck is (k,1,1), (1,h,w), (1,1,1) in the papers too; here the first is a 2-D
  convolution over (time, all of space) and the second one with time folded into the batch, several times faster than
  a 3-D convolution on a CPU and no slower elsewhere. Only an unfactored fast stem is a true 3-D convolution.
- **The slow stream's input is low-passed before it is subsampled** (`slow_window`). Plain subsampling of a
  spectrogram makes slow features depend on where the grid falls on an onset.
"""

import dataclasses
import math

from flax import linen as nn
import jax.numpy as jnp
import numpy as np

from msg_jax.models.layers import Conv, Dense
from msg_jax.types import Array

_GROUP_SIZE = 8  # channels per GroupNorm group: divides every width of either stream
_POINTWISE = ("conv_in", "conv_out")
_HE = nn.initializers.he_normal()


@dataclasses.dataclass(frozen=True)
class SlowFastConfig:
    """Kernels and strides are (time, height, width); for audio height is frequency and width is 1.

    Stage i has `depths[i]` bottleneck blocks of inner width `slow_width * 2**i` (slow) or 1/`beta_inv` of that (fast)
    and `expansion` times as many outputs; space is halved between stages, time never. Defaults are the video R50.
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    slow_width: int = 64
    beta_inv: int = 8
    expansion: int = 4
    alpha: int = 4  # fast frames per slow frame
    slow_window: int = 1  # frames of the low-pass before subsampling by alpha; 1 is none, as in the papers
    slow_kernels: tuple[int, ...] = (1, 1, 3, 3)
    fast_kernels: tuple[int, ...] = (3, 3, 3, 3)
    spatial_kernel: tuple[int, int] = (3, 3)
    slow_stem: tuple[int, int, int] = (1, 7, 7)
    fast_stem: tuple[int, int, int] = (5, 7, 7)
    factored_stem: bool = False
    stem_strides: tuple[int, int, int] = (1, 2, 2)
    pool_window: tuple[int, int, int] = (1, 3, 3)
    pool_strides: tuple[int, int, int] = (1, 2, 2)
    lateral_kernel: int = 7
    flatten_space: bool = False  # keep the positions of the last map as features instead of averaging over them
    dtype: str = "float32"

    @property
    def fast_stride(self) -> int:
        """Input frames per step of the fast features; the slow features have `alpha` times as many."""
        return self.stem_strides[0] * self.pool_strides[0]

    @property
    def fast_receptive_field(self) -> int:
        """Input frames that one step of the fast features can see."""
        after_pool = sum(depth * (kernel - 1) for depth, kernel in zip(self.depths, self.fast_kernels))
        after_stem = after_pool * self.pool_strides[0] + self.pool_window[0] - 1
        return after_stem * self.stem_strides[0] + self.fast_stem[0]


VIDEO_R50 = SlowFastConfig()
AUDIO_R50 = SlowFastConfig(
    slow_window=8, spatial_kernel=(3, 1), slow_stem=(1, 7, 1), fast_stem=(5, 7, 1), factored_stem=True,
    stem_strides=(2, 2, 1), pool_window=(3, 3, 1), pool_strides=(2, 2, 1),
)
# two stages see a part of the spectrum or the picture only: pitch and height are then *where* a feature is, so keep it
_TINY = dict(
    flatten_space=True,
    depths=(1, 1), slow_width=32, beta_inv=4, expansion=2, slow_kernels=(1, 1), fast_kernels=(3, 3),
    factored_stem=True, pool_window=(1, 1, 1), pool_strides=(1, 1, 1), lateral_kernel=5,
)
VIDEO_TINY = SlowFastConfig(slow_stem=(1, 5, 5), fast_stem=(5, 5, 5), stem_strides=(1, 4, 4), **_TINY)
AUDIO_TINY = SlowFastConfig(
    slow_window=8, spatial_kernel=(3, 1), slow_stem=(1, 7, 1), fast_stem=(5, 7, 1), stem_strides=(2, 4, 1), **_TINY
)


def low_pass_subsample(x: Array, stride: int, window: int) -> Array:
    """Every `stride`-th frame of a Hann-weighted moving average: (B, T, ...) -> (B, ceil(T/stride), ...).

    With `window = 2 * stride` neighbouring windows overlap by half and add up to one, so an event weighs the same
    wherever it falls on the grid. `window = 1` is plain subsampling.
    """
    weights = np.sin(np.pi * (np.arange(window) + 0.5) / window) ** 2
    span = (math.ceil(x.shape[1] / stride) - 1) * stride
    padding = max(span + window - x.shape[1], 0)
    around = [(0, 0), (padding // 2, padding - padding // 2)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, around, mode="edge")
    return sum(float(w) * x[:, i : i + span + 1 : stride] for i, w in enumerate(weights / weights.sum()))


class TimeConv(nn.Module):
    """SAME convolution over time alone: (B, T, H, W, C) -> (B, ceil(T/stride), H, W, features).

    One step wide it is a matrix product, whose gradient on a CPU takes a fifth of a convolution's.
    """

    features: int
    kernel: int
    stride: int = 1
    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.kernel == self.stride == 1:
            return Dense(self.features, _POINTWISE, use_bias=self.use_bias, dtype=self.dtype, kernel_init=_HE)(x)
        batch, _, height, width, channels = x.shape
        x = x.reshape(batch, -1, height * width, channels)
        x = Conv(
            self.features, (self.kernel, 1), strides=(self.stride, 1), use_bias=self.use_bias, dtype=self.dtype
        )(x)
        return x.reshape(batch, -1, height, width, self.features)


class SpaceConv(nn.Module):
    """SAME convolution over space alone: (B, T, H, W, C) -> (B, T, ceil(H/s), ceil(W/s), features)."""

    features: int
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        frames = x.reshape(-1, *x.shape[2:])
        frames = Conv(
            self.features, self.kernel, strides=self.strides, use_bias=self.use_bias, dtype=self.dtype
        )(frames)
        return frames.reshape(*x.shape[:2], *frames.shape[1:])


class FrameNorm(nn.Module):
    """GroupNorm with the statistics of single frames: (B, T, H, W, C) -> the same."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        frames = x.reshape(-1, *x.shape[2:])
        return nn.GroupNorm(None, group_size=_GROUP_SIZE, dtype=self.dtype, name="norm")(frames).reshape(x.shape)


class Stem(nn.Module):
    """Strided convolution and max-pool: (B, T, H, W, C) -> (B, T', H', W', features)."""

    config: SlowFastConfig
    features: int
    kernel: tuple[int, int, int]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        time, *space = self.kernel
        if c.factored_stem or time == 1:
            x = SpaceConv(self.features, tuple(space), c.stem_strides[1:], use_bias=True, dtype=dtype)(x)
            if time > 1 or c.stem_strides[0] > 1:
                x = TimeConv(self.features, time, c.stem_strides[0], use_bias=True, dtype=dtype)(x)
        else:
            x = Conv(self.features, self.kernel, strides=c.stem_strides, dtype=dtype)(x)
        x = nn.relu(FrameNorm(dtype=dtype)(x))
        if c.pool_window != (1, 1, 1):
            x = nn.max_pool(x, c.pool_window, c.pool_strides, padding="SAME")
        return x


class Bottleneck(nn.Module):
    """Residual block (k,1,1) -> (1,h,w) -> (1,1,1): (B, T, H, W, C) -> (B, T, H/s, W/s, width * expansion)."""

    width: int
    expansion: int
    time_kernel: int
    space_kernel: tuple[int, int]
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        features, strides = self.width * self.expansion, (self.stride, self.stride)
        y = TimeConv(self.width, self.time_kernel, dtype=self.dtype)(x)
        y = nn.relu(FrameNorm(dtype=self.dtype)(y))
        y = nn.relu(SpaceConv(self.width, self.space_kernel, strides, use_bias=True, dtype=self.dtype)(y))
        # a branch that starts closed lets a deep stack train without normalising its wide outputs
        y = Dense(features, _POINTWISE, dtype=self.dtype, kernel_init=nn.initializers.zeros_init(), name="expand")(y)
        x = x[:, :, :: self.stride, :: self.stride]
        if x.shape != y.shape:
            x = Dense(features, _POINTWISE, use_bias=False, dtype=self.dtype, name="shortcut")(x)
        return nn.relu(x + y)


class SlowFast(nn.Module):
    """(B, T, H, W, C) -> slow features (B, ceil(T / (alpha r)), D), fast features (B, ceil(T / r), D / beta_inv).

    r is `config.fast_stride`. Features are pooled over space only: time is what the fast stream exists for. Lateral
    connections bring fast features into the slow stream after the stem and after every stage but the last.
    """

    config: SlowFastConfig

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        x = x.astype(dtype)
        fast = Stem(c, c.slow_width // c.beta_inv, c.fast_stem, name="fast_stem")(x)
        slow = Stem(c, c.slow_width, c.slow_stem, name="slow_stem")(low_pass_subsample(x, c.alpha, c.slow_window))
        for stage, depth in enumerate(c.depths):
            lateral = TimeConv(2 * fast.shape[-1], c.lateral_kernel, c.alpha, dtype=dtype, name=f"lateral{stage}")(fast)
            lateral = nn.relu(FrameNorm(dtype=dtype, name=f"lateral{stage}_norm")(lateral))
            slow = jnp.concatenate([slow, lateral], axis=-1)
            slow_width = c.slow_width * 2**stage
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                slow = Bottleneck(
                    slow_width, c.expansion, c.slow_kernels[stage], c.spatial_kernel, stride, dtype,
                    name=f"slow{stage}_{block}",
                )(slow)
                fast = Bottleneck(
                    slow_width // c.beta_inv, c.expansion, c.fast_kernels[stage], c.spatial_kernel, stride, dtype,
                    name=f"fast{stage}_{block}",
                )(fast)
        if c.flatten_space:
            return slow.reshape(*slow.shape[:2], -1), fast.reshape(*fast.shape[:2], -1)
        return slow.mean(axis=(2, 3)), fast.mean(axis=(2, 3))
