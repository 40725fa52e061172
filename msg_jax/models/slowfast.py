"""SlowFast: two streams over one input. The slow one encodes *what* happens, the fast one *when*. A third is ours.

One network serves both modalities: video (B, T, H, W, 3), as in Feichtenhofer et al. 2019 (arXiv 1812.03982), and
log-mel as frames one pixel wide with one channel (B, T, M, 1, 1), as in Kazakos et al. 2021 (arXiv 2103.03516).

Three departures from the papers:

- **GroupNorm per frame instead of BatchNorm.** BatchNorm keeps running averages beside the parameters, couples the clips
  of a batch and needs synchronising across devices. In a contrastive loss it also leaks which clips belong together.
  Statistics over one frame (space and a group of channels) keep the network a pure function of its parameters,
  independent of batch and clip length. They also keep its receptive field in time exact: nothing outside it matters.
  A block normalises once, where it is narrow, and starts as the identity: on a CPU, normalising the wide outputs costs
  more than the convolutions.
- **Factored convolutions.** A bottleneck is (k,1,1), (1,h,w), (1,1,1) in the papers too. Here the first is a 2-D
  convolution over (time, all of space) and the second folds time into the batch. Both are several times faster than a
  3-D convolution on a CPU and no slower elsewhere. Only an unfactored fast stem is a true 3-D convolution.
- **A low-pass filter before the slow stream's subsampling** (`slow_window`). With plain subsampling of a spectrogram,
  slow features depend on where an onset falls on the grid.
"""

import dataclasses
import math
from typing import cast

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float
import numpy as np

from msg_jax.models.device import platform
from msg_jax.models.layers import Conv, Dense, precision, space_to_depth_convolution
from msg_jax.types import AnyArray, Array

_GROUP_SIZE = 8  # channels per GroupNorm group; divides every width of either stream
_NORM_EPSILON = 1e-6  # of GroupNorm
_TILE_CHANNELS = 128  # of a TPU
_POINTWISE = ("conv_in", "conv_out")
_HE = nn.initializers.he_normal()


@dataclasses.dataclass(frozen=True)
class SlowFastConfig:
    """Kernels and strides are (time, height, width); for audio, height is frequency and width is 1.

    Stage i has `depths[i]` bottleneck blocks of inner width `slow_width * 2**i` (slow) or 1/`beta_inv` of that (fast),
    with `expansion` times as many outputs. Each stage after the first halves space; none changes time. Defaults are the
    video R50.
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    slow_width: int = 64
    beta_inv: int = 8
    expansion: int = 4
    alpha: int = 4  # fast frames per slow frame
    slow_window: int = 1  # frames of the low-pass before subsampling by alpha; 1 disables it, as in the papers
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
    flatten_space: bool = False  # flatten the positions of the last map into features instead of averaging over them
    local: bool = False  # a third stream, which leaves the fast one after its stem and hardly looks around in time
    dtype: str = "float32"
    remat: bool = False  # recompute each block in the backward pass

    @property
    def fast_stride(self) -> int:
        """Input frames per step of the fast features; a slow step spans `alpha` times as many."""
        return self.stem_strides[0] * self.pool_strides[0]

    @property
    def fast_receptive_field(self) -> int:
        """Receptive field of one step of the fast features, in input frames."""
        return self._receptive_field(sum(depth * (kernel - 1) for depth, kernel in zip(self.depths, self.fast_kernels)))

    @property
    def local_receptive_field(self) -> int:
        """The same of a step of the local features."""
        return self._receptive_field(self.fast_kernels[0] - 1)

    def _receptive_field(self, after_pool: int) -> int:
        after_stem = after_pool * self.pool_strides[0] + self.pool_window[0] - 1
        return after_stem * self.stem_strides[0] + self.fast_stem[0]


VIDEO_R50 = SlowFastConfig()
AUDIO_R50 = SlowFastConfig(
    slow_window=8, spatial_kernel=(3, 1), slow_stem=(1, 7, 1), fast_stem=(5, 7, 1), factored_stem=True,
    stem_strides=(2, 2, 1), pool_window=(3, 3, 1), pool_strides=(2, 2, 1),
)
# Two stages cover a part of the spectrum or the picture only. Pitch and height are then *where* a feature is: keep them.
VIDEO_TINY = SlowFastConfig(
    flatten_space=True, depths=(1, 1), slow_width=32, beta_inv=4, expansion=2, slow_kernels=(1, 1), fast_kernels=(3, 3),
    factored_stem=True, slow_stem=(1, 5, 5), fast_stem=(5, 5, 5), stem_strides=(1, 4, 4), pool_window=(1, 1, 1),
    pool_strides=(1, 1, 1), lateral_kernel=5,
)
AUDIO_TINY = dataclasses.replace(
    VIDEO_TINY, slow_window=8, spatial_kernel=(3, 1), slow_stem=(1, 7, 1), fast_stem=(5, 7, 1), stem_strides=(2, 4, 1),
)


def low_pass_subsample(x: Float[Array, "B T *rest"], stride: int, window: int) -> Float[Array, "B steps *rest"]:
    """Take every `stride`-th frame of a Hann-weighted moving average: ceil(T / stride) steps.

    With `window = 2 * stride`, neighbouring windows overlap by half and sum to one, so an event weighs the same wherever
    it falls on the grid. `window = 1` is plain subsampling.
    """
    weights = np.sin(np.pi * (np.arange(window) + 0.5) / window) ** 2
    span = (math.ceil(x.shape[1] / stride) - 1) * stride
    padding = max(span + window - x.shape[1], 0)
    around = [(0, 0), (padding // 2, padding - padding // 2)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, around, mode="edge")
    return jnp.asarray(sum(float(w) * x[:, i : i + span + 1 : stride] for i, w in enumerate(weights / weights.sum())))


class TimeConv(nn.Module):
    """SAME convolution over time: (B, T, H, W, C) -> (B, ceil(T/stride), H, W, features).

    With a kernel of one step it is a matrix product, whose gradient takes a fifth of the time of a convolution's on a CPU.
    """

    features: int
    kernel: int
    stride: int = 1
    use_bias: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B steps H W {self.features}"]:
        if self.kernel == self.stride == 1:
            return Dense(self.features, _POINTWISE, use_bias=self.use_bias, dtype=self.dtype, kernel_init=_HE)(x)
        batch, _, height, width, channels = x.shape
        x = x.reshape(batch, -1, height * width, channels)
        x = Conv(
            self.features, (self.kernel, 1), strides=(self.stride, 1), use_bias=self.use_bias, dtype=self.dtype
        )(x)
        return x.reshape(batch, -1, height, width, self.features)


class SpaceConv(nn.Module):
    """SAME convolution over space: (B, T, H, W, C) -> (B, T, ceil(H/s), ceil(W/s), features)."""

    features: int
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    use_bias: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T height width {self.features}"]:
        frames = x.reshape(-1, *x.shape[2:])
        frames = Conv(
            self.features, self.kernel, strides=self.strides, use_bias=self.use_bias, dtype=self.dtype
        )(frames)
        return frames.reshape(*x.shape[:2], *frames.shape[1:])


def normalise_frames(
    x: Float[Array, "B T H W D"], scale: Float[Array, " C"], bias: Float[Array, " C"], pixels: int = 1
) -> Float[Array, "B T H W D"]:
    """GroupNorm with per-frame statistics, in float32; D are the C channels of each of `pixels` neighbours.

    Means over space come first, those over the channels of a group second: on a CPU the gradient of a mean over both takes
    two to five times as long.
    """
    exact = x.astype(jnp.float32)
    moments = jnp.stack([exact.mean(axis=(2, 3)), jnp.square(exact).mean(axis=(2, 3))])
    grouped = moments.reshape(*moments.shape[:-1], pixels, -1, _GROUP_SIZE).mean(axis=(-3, -1))
    mean, square = jnp.tile(grouped.repeat(_GROUP_SIZE, axis=-1), pixels)[:, :, :, None, None]
    factor = jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0) + _NORM_EPSILON) * jnp.tile(scale, pixels)
    return ((exact - mean) * factor + jnp.tile(bias, pixels)).astype(x.dtype)


class FrameNorm(nn.Module):
    """GroupNorm with per-frame statistics: `normalise_frames` on a CPU.

    Elsewhere it is Flax's, with which a step of the full-size SF-CAVP keeps 39 GB on a GPU in the place of 47.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        scale, bias = _ScaleAndBias(name="norm")(x.shape[-1])
        if platform() == "cpu":
            return normalise_frames(x, scale, bias)
        norm = nn.GroupNorm(None, _GROUP_SIZE, _NORM_EPSILON, dtype=x.dtype, parent=None)
        frames = norm.apply({"params": {"scale": scale, "bias": bias}}, x.reshape(-1, *x.shape[2:]))
        return cast(Array, frames).reshape(x.shape)


class _ScaleAndBias(nn.Module):
    """The parameters of a norm."""

    @nn.compact
    def __call__(self, channels: int) -> tuple[Array, Array]:
        scale = self.param("scale", nn.initializers.ones_init(), (channels,))
        return scale, self.param("bias", nn.initializers.zeros_init(), (channels,))


class Stem(nn.Module):
    """Strided convolution and max-pooling.

    On a TPU, whose tiles have 128 channels, a stem of few channels takes four pixels as one of four times the channels.
    """

    config: SlowFastConfig
    features: int
    kernel: tuple[int, int, int]

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B steps height width {self.features}"]:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        time, height, width = self.kernel
        if platform() == "tpu" and not self.is_initializing() and self._can_pack(x):
            return self._packed(x)
        if c.factored_stem or time == 1:
            x = SpaceConv(self.features, (height, width), c.stem_strides[1:], use_bias=True, dtype=dtype)(x)
            if time > 1 or c.stem_strides[0] > 1:
                x = TimeConv(self.features, time, c.stem_strides[0], use_bias=True, dtype=dtype)(x)
        else:
            x = Conv(self.features, self.kernel, strides=c.stem_strides, dtype=dtype)(x)
        x = nn.relu(FrameNorm()(x))
        if c.pool_window != (1, 1, 1):
            x = nn.max_pool(x, c.pool_window, c.pool_strides, padding="SAME")
        return x

    def _can_pack(self, x: Array) -> bool:
        c = self.config
        return (
            not c.factored_stem and self.kernel[0] > 1 and 4 * self.features <= _TILE_CHANNELS
            and (c.stem_strides, c.pool_window, c.pool_strides) == ((1, 2, 2), (1, 3, 3), (1, 2, 2))
            and x.shape[2] % 4 == x.shape[3] % 4 == 0
        )

    def _packed(self, x: Array) -> Array:
        """The same with pixels (2i + p, 2j + q) of the convolution's output as channels (p, q, f) of pixel (i, j)."""
        params, dtype = nn.unbox(self.variables["params"]), jnp.dtype(self.config.dtype)
        conv, norm = params["Conv_0"]["conv"], params["FrameNorm_0"]["norm"]
        phases = [(p, q) for p in (0, 1) for q in (0, 1)]
        kernel = jnp.concatenate([
            jnp.pad(conv["kernel"], ((0, 0), (2 * p, 2 - 2 * p), (2 * q, 2 - 2 * q), (0, 0), (0, 0))) for p, q in phases
        ], axis=-1)
        pads = jax.lax.padtype_to_pads(x.shape[1:-1], self.kernel, self.config.stem_strides, "SAME")
        pads = [pads[0], *((before, width + 2 - 4 - before) for (before, _), width in zip(pads[1:], self.kernel[1:]))]
        y = space_to_depth_convolution(
            x.astype(dtype), kernel.astype(dtype), (1, 4, 4), pads, dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
            precision=precision(dtype),
        ) + jnp.tile(conv["bias"], 4).astype(dtype)

        y = nn.relu(normalise_frames(y, norm["scale"], norm["bias"], pixels=4))
        top_left, top_right, bottom_left, bottom_right = jnp.split(y, 4, axis=-1)
        after = ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0))  # values are not negative, so zeros change no maximum

        def ahead(pixels: Array, rows: int, columns: int) -> Array:
            return jnp.pad(pixels, after)[:, :, rows : rows + y.shape[2], columns : columns + y.shape[3]]

        here = jnp.maximum(jnp.maximum(top_left, top_right), jnp.maximum(bottom_left, bottom_right))
        below, right = ahead(jnp.maximum(top_left, top_right), 1, 0), ahead(jnp.maximum(top_left, bottom_left), 0, 1)
        return jnp.maximum(jnp.maximum(here, below), jnp.maximum(right, ahead(top_left, 1, 1)))


class Bottleneck(nn.Module):
    """Residual block (k,1,1) -> (1,h,w) -> (1,1,1): (B, T, H, W, C) -> (B, T, H/s, W/s, width * expansion)."""

    width: int
    expansion: int
    time_kernel: int
    space_kernel: tuple[int, int]
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T height width {self.width*self.expansion}"]:
        features, strides = self.width * self.expansion, (self.stride, self.stride)
        y = TimeConv(self.width, self.time_kernel, dtype=self.dtype)(x)
        y = nn.relu(FrameNorm()(y))
        y = nn.relu(SpaceConv(self.width, self.space_kernel, strides, use_bias=True, dtype=self.dtype)(y))
        # A branch initialised to zero lets a deep stack train without normalising its wide outputs.
        y = Dense(features, _POINTWISE, dtype=self.dtype, kernel_init=nn.initializers.zeros_init(), name="expand")(y)
        x = x[:, :, :: self.stride, :: self.stride]
        if x.shape != y.shape:
            x = Dense(features, _POINTWISE, use_bias=False, dtype=self.dtype, name="shortcut")(x)
        return nn.relu(x + y)


class SlowFast(nn.Module):
    """(B, T, H, W, C) -> slow features (B, ceil(T / (alpha r)), D), fast and local ones (B, ceil(T / r), D / beta_inv).

    r is `config.fast_stride`. Features are pooled over space only, because the fast stream exists for timing. Lateral
    connections feed fast features into the slow stream after the stem and after every stage but the last. The local stream
    has one block a stage, of which only the first has neighbours in time. Without it, local features are the fast ones.
    """

    config: SlowFastConfig

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "B T H W C"]
    ) -> tuple[Float[Array, "B slow_steps _"], Float[Array, "B fast_steps _"], Float[Array, "B fast_steps _"]]:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        x = jnp.asarray(x, dtype)
        stem, bottleneck = (nn.remat(Stem), nn.remat(Bottleneck)) if c.remat else (Stem, Bottleneck)
        fast = stem(c, c.slow_width // c.beta_inv, c.fast_stem, name="fast_stem")(x)
        slow = stem(c, c.slow_width, c.slow_stem, name="slow_stem")(low_pass_subsample(x, c.alpha, c.slow_window))
        local = fast
        for stage, depth in enumerate(c.depths):
            lateral = TimeConv(2 * fast.shape[-1], c.lateral_kernel, c.alpha, dtype=dtype, name=f"lateral{stage}")(fast)
            lateral = nn.relu(FrameNorm(name=f"lateral{stage}_norm")(lateral))
            slow = jnp.concatenate([slow, lateral], axis=-1)
            slow_width = c.slow_width * 2**stage
            if c.local:
                local = bottleneck(
                    slow_width // c.beta_inv, c.expansion, 1 if stage else c.fast_kernels[0], c.spatial_kernel,
                    2 if stage else 1, dtype, name=f"local{stage}",
                )(local)
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                slow = bottleneck(
                    slow_width, c.expansion, c.slow_kernels[stage], c.spatial_kernel, stride, dtype,
                    name=f"slow{stage}_{block}",
                )(slow)
                fast = bottleneck(
                    slow_width // c.beta_inv, c.expansion, c.fast_kernels[stage], c.spatial_kernel, stride, dtype,
                    name=f"fast{stage}_{block}",
                )(fast)
        slow, fast, local = (
            x.reshape(*x.shape[:2], -1) if c.flatten_space else x.mean(axis=(2, 3))
            for x in (slow, fast, local if c.local else fast)
        )
        return slow, fast, local
