"""BigVGAN (Lee et al., arXiv 2206.04658) and BigVGAN-v2: a convolutional vocoder, log-mel -> waveform.

Two formulations make it fast on a CPU, where XLA has no fast depthwise or transposed convolution. The filters around each
activation are shifted additions over even and odd samples, 20 to 100 times faster than depthwise convolutions. An
upsampling convolution computes all samples of a step as channels.
"""

import dataclasses
import functools
import math

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Float32
import numpy as np

from msg_jax.models.device import platform
from msg_jax.models.layers import Conv, convolution, logical, precision
from msg_jax.types import AnyArray, Array, Params

KERNELS = (3, 7, 11)  # one residual block each at every rate; their outputs are averaged
DILATIONS = (1, 3, 5)
_END_KERNEL = 7  # of the first and last convolution
_FILTER_TAPS = 12
_SNAKE_REACH = 5  # samples of context on either side of `anti_aliased_snake`
# sin^2(pi r) / r^2 for |r| <= 1/2, in powers of r^2: least squares at Chebyshev nodes, error below 1e-10.
_SIN2_DEGREE = 7


@dataclasses.dataclass(frozen=True)
class VocoderConfig:
    """Sizes of one BigVGAN.

    The product of `upsample_rates` (all even) is the number of samples per mel frame. The width halves at each rate.
    v1 ends in tanh; v2 ends in a clamp and has no final bias.
    """

    bands: int
    upsample_rates: tuple[int, ...]
    v2: bool
    width: int = 1536

    @property
    def context_frames(self) -> int:
        """Mel frames of context on either side of a sample, accumulated from the last layer to the first."""
        widest = max(KERNELS) // 2
        block = sum(2 * _SNAKE_REACH + widest * dilation + widest for dilation in DILATIONS)
        reach = _SNAKE_REACH + _END_KERNEL // 2
        for rate in reversed(self.upsample_rates):
            reach = math.ceil((reach + block + rate // 2) / rate)  # a sample is up to half a step from its inputs
        return reach + _END_KERNEL // 2


PRESETS = {
    "16k": VocoderConfig(bands=80, upsample_rates=(4, 4, 2, 2, 2, 2), v2=False),
    "44k": VocoderConfig(bands=128, upsample_rates=(8, 4, 2, 2, 2, 2), v2=True),
}


def half_band_filter() -> Float[np.ndarray, " 12"]:
    """Low-pass filter of both resamplings: a Kaiser-windowed sinc that halves the band and sums to 1."""
    transition = 0.3  # half width, as a share of the sampling rate
    attenuation = 2.285 * (_FILTER_TAPS / 2 - 1) * np.pi * 4 * transition + 7.95  # dB, Kaiser's formula
    window = np.kaiser(_FILTER_TAPS, 0.1102 * (attenuation - 8.7))
    taps = window * np.sinc(0.5 * (np.arange(_FILTER_TAPS) - (_FILTER_TAPS - 1) / 2))
    return taps / taps.sum()


def _sin2_coefficients() -> np.ndarray:
    r = 0.5 * np.cos(np.linspace(0, np.pi, 1001))
    powers = r[:, None] ** (2 * np.arange(1, _SIN2_DEGREE + 1))
    return np.linalg.lstsq(powers, np.sin(np.pi * r) ** 2, rcond=None)[0]


_SIN2 = _sin2_coefficients().astype(np.float32)


def sin2(x: Float[AnyArray, "*shape"]) -> Float[Array, "*shape"]:
    """sin(x)^2 in float32 by a polynomial, several times faster than XLA's sine on a CPU."""
    turns = x * np.float32(1 / np.pi)
    r2 = jnp.square(turns - jnp.round(turns))
    return r2 * functools.reduce(lambda total, coefficient: total * r2 + coefficient, _SIN2[::-1])


def _filter(x: Array, taps: np.ndarray, start: int, length: int) -> Array:
    """sum_j taps[j] x[:, t + start + j] for t < length."""
    return jnp.asarray(sum(float(tap) * x[:, start + j : start + j + length] for j, tap in enumerate(taps)))


@jax.jit
def anti_aliased_snake(
    x: Float[Array, "B T C"], alpha: Float[Array, " C"], beta: Float[Array, " C"]
) -> Float[Array, "B T C"]:
    """Upsample x by two, apply y + sin(alpha y)^2 / beta, and downsample, with a half-band filter at either end.

    The upsampled signal y is never interleaved. Its even and odd samples stay two arrays, each with half of the taps.
    """
    length = x.shape[1]
    taps = half_band_filter()

    def snake(y):
        return y + sin2(alpha * y) / (beta + 1e-9)

    padded = jnp.pad(x, ((0, 0), (3, 3), (0, 0)), mode="edge")
    even = snake(_filter(padded, 2 * taps[::-2], 0, length))
    odd = snake(_filter(padded, 2 * taps[-2::-2], 1, length))
    first, last = even[:, :1], odd[:, -1:]
    even = jnp.concatenate([first] * 2 + [even] + [last] * 3, axis=1)
    odd = jnp.concatenate([first] * 3 + [odd] + [last] * 2, axis=1)
    # Without the barrier, XLA fuses the snake into the filter and evaluates it once per tap.
    even, odd = jax.lax.optimization_barrier((even, odd))
    return _filter(even, taps[1::2], 0, length) + _filter(odd, taps[::2], 0, length)


class SnakeBeta(nn.Module):
    """`anti_aliased_snake` in float32, with learned alpha and beta per channel, stored as logarithms."""

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        zeros = logical(nn.initializers.zeros_init(), "conv_out")
        alpha, beta = (jnp.exp(self.param(name, zeros, (x.shape[-1],))) for name in ("alpha", "beta"))
        return anti_aliased_snake(x.astype(jnp.float32), alpha, beta).astype(x.dtype)


class TimeConv(nn.Module):
    """Dilated SAME convolution over time."""

    features: int
    kernel: int
    dilation: int = 1
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T {self.features}"]:
        # A 2-D convolution of height 1 is up to twice as fast on a CPU if there are few channels.
        return nn.Conv(
            self.features, (1, self.kernel), kernel_dilation=(1, self.dilation), use_bias=self.use_bias,
            dtype=self.dtype, name="conv", precision=precision(self.dtype), conv_general_dilated=convolution(self.dtype),
            kernel_init=logical(nn.initializers.normal(0.01), None, None, "conv_in", "conv_out"),
            bias_init=logical(nn.initializers.zeros_init(), "conv_out"),
        )(x[:, None])[:, 0]


class Upsample(nn.Module):
    """Transposed convolution with stride `rate` and kernel 2 x rate.

    Every output sample depends on two neighbouring steps, so a convolution of width two computes `rate` samples per step.
    """

    features: int
    rate: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T*{self.rate} {self.features}"]:
        bias = self.param("bias", logical(nn.initializers.zeros_init(), "conv_out"), (self.features,))
        phases = Conv(
            self.rate * self.features, (2,), padding=[(1, 1)], use_bias=False, dtype=self.dtype,
            kernel_init=nn.initializers.normal(0.01), name="phases",
        )(x)
        samples = phases.reshape(x.shape[0], -1, self.features) + bias.astype(phases.dtype)
        return samples[:, self.rate // 2 :][:, : self.rate * x.shape[1]]


def _convolve(x: Array, variables: Params, dilation: Array, dtype: DTypeLike) -> Array:
    """`TimeConv` as one product of shifted copies, for a dilation that is known when it runs."""
    kernel, bias = (variables["conv"][name].astype(dtype) for name in ("kernel", "bias"))
    _, taps, channels, features = kernel.shape
    reach = taps // 2 * max(DILATIONS)
    padded = jnp.pad(x.astype(dtype), ((0, 0), (reach, reach), (0, 0)))
    starts = [reach + (tap - taps // 2) * dilation for tap in range(taps)]
    copies = [jax.lax.dynamic_slice_in_dim(padded, start, x.shape[1], axis=1) for start in starts]
    flat = kernel.reshape(taps * channels, features)
    return jnp.matmul(jnp.concatenate(copies, axis=-1), flat, precision=precision(dtype)) + bias


class ResidualBlock(nn.Module):
    """Three residual branches: activation, dilated convolution, activation, convolution.

    On a TPU they are a loop, because XLA compiles for seconds at each activation and convolution.
    """

    kernel: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        if platform() == "tpu" and not self.is_initializing():
            return self._looped(x)
        for i, dilation in enumerate(DILATIONS):
            y = SnakeBeta(name=f"dilated_act{i}")(x)
            y = TimeConv(x.shape[-1], self.kernel, dilation, dtype=self.dtype, name=f"dilated{i}")(y)
            y = SnakeBeta(name=f"plain_act{i}")(y)
            x = x + TimeConv(x.shape[-1], self.kernel, dtype=self.dtype, name=f"plain{i}")(y)
        return x

    def _looped(self, x: Array) -> Array:
        params = nn.unbox(self.variables["params"])
        parts = ("dilated_act", "dilated", "plain_act", "plain")
        branches = [{part: params[f"{part}{i}"] for part in parts} for i in range(len(DILATIONS))]

        def branch(x: Array, given: tuple[Params, Array]) -> tuple[Array, None]:
            variables, dilation = given
            activated = SnakeBeta(parent=None).apply({"params": variables["dilated_act"]}, x)
            y = _convolve(jnp.asarray(activated), variables["dilated"], dilation, self.dtype)
            activated = SnakeBeta(parent=None).apply({"params": variables["plain_act"]}, y)
            return x + _convolve(jnp.asarray(activated), variables["plain"], jnp.int32(1), self.dtype), None

        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *branches)
        return jax.lax.scan(branch, x, (stacked, jnp.asarray(DILATIONS, jnp.int32)))[0]


class BigVGAN(nn.Module):
    """Log-mel from the front end of the weights -> waveform in [-1, 1]."""

    config: VocoderConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, log_mel: Float[AnyArray, "B T M"]) -> Float32[Array, "B S"]:
        c = self.config
        x = TimeConv(c.width, _END_KERNEL, dtype=self.dtype, name="conv_in")(jnp.asarray(log_mel))
        for i, rate in enumerate(c.upsample_rates):
            x = Upsample(c.width // 2 ** (i + 1), rate, self.dtype, name=f"up{i}")(x)
            blocks = [ResidualBlock(kernel, self.dtype, name=f"block{i}_{kernel}") for kernel in KERNELS]
            x = jnp.asarray(sum(block(x) for block in blocks)) / len(blocks)
        x = SnakeBeta(name="act_out")(x)
        x = TimeConv(1, _END_KERNEL, use_bias=not c.v2, dtype=self.dtype, name="conv_out")(x)[..., 0].astype(jnp.float32)
        return jnp.clip(x, -1.0, 1.0) if c.v2 else jnp.tanh(x)
