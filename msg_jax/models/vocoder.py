"""BigVGAN (Lee et al., arXiv 2206.04658) and BigVGAN-v2: log-mel -> waveform, entirely convolutional.

Two formulations make it fast on a CPU, where XLA has no fast depthwise or transposed convolution: the filters around
each activation run on even and odd samples apart as shifted additions, which is 20 to 100 times faster than depthwise
convolutions are, and an upsampling convolution yields all samples of a step as channels.
"""

import dataclasses
import functools
import math

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from msg_jax.models.layers import Conv, logical
from msg_jax.types import Array

KERNELS = (3, 7, 11)  # one residual block of each at every rate, averaged
DILATIONS = (1, 3, 5)
_END_KERNEL = 7  # of the first and the last convolution
_FILTER_TAPS = 12
_SNAKE_REACH = 5  # samples on either side that `anti_aliased_snake` sees
# sin^2(pi r) / r^2 for |r| <= 1/2, in powers of r^2: least squares at Chebyshev nodes, error below 1e-10.
_SIN2_DEGREE = 7


@dataclasses.dataclass(frozen=True)
class VocoderConfig:
    """One BigVGAN. Samples per mel frame = the product of `upsample_rates`, all even; the width halves at each.

    `v2` ends in a clamp and has no final bias, where v1 ends in tanh.
    """

    bands: int
    upsample_rates: tuple[int, ...]
    v2: bool
    width: int = 1536

    @property
    def context_frames(self) -> int:
        """Mel frames on either side that a sample depends on, added up from the last layer to the first."""
        widest = max(KERNELS) // 2
        block = sum(2 * _SNAKE_REACH + widest * dilation + widest for dilation in DILATIONS)
        reach = _SNAKE_REACH + _END_KERNEL // 2
        for rate in reversed(self.upsample_rates):
            reach = math.ceil((reach + block + rate // 2) / rate)  # an upsampled sample is half a step from its steps
        return reach + _END_KERNEL // 2


PRESETS = {
    "16k": VocoderConfig(bands=80, upsample_rates=(4, 4, 2, 2, 2, 2), v2=False),
    "44k": VocoderConfig(bands=128, upsample_rates=(8, 4, 2, 2, 2, 2), v2=True),
}


def half_band_filter() -> np.ndarray:
    """The 12-tap low-pass filter of both resamplings, sum 1: a Kaiser-windowed sinc that halves the band."""
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


def sin2(x: Array) -> Array:
    """sin(x)^2 in float32, by a polynomial: several times faster than the library's sine on a CPU."""
    turns = x * np.float32(1 / np.pi)
    r2 = jnp.square(turns - jnp.round(turns))
    return r2 * functools.reduce(lambda total, coefficient: total * r2 + coefficient, _SIN2[::-1])


def _filter(x: Array, taps: np.ndarray, start: int, length: int) -> Array:
    """sum_j taps[j] x[:, t + start + j] for t < length."""
    return sum(float(tap) * x[:, start + j : start + j + length] for j, tap in enumerate(taps))


@jax.jit
def anti_aliased_snake(x: Array, alpha: Array, beta: Array) -> Array:
    """y + sin(alpha y)^2 / beta at twice the rate of x (B, T, C), between two half-band filters; alpha, beta are (C,).

    The doubled signal y is never interleaved: its even and odd samples stay two arrays, each with half of the taps.
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
    # Without the barrier XLA fuses the snake into the filter and evaluates it again for every tap.
    even, odd = jax.lax.optimization_barrier((even, odd))
    return _filter(even, taps[1::2], 0, length) + _filter(odd, taps[::2], 0, length)


class SnakeBeta(nn.Module):
    """`anti_aliased_snake` with alpha and beta learned per channel and stored as logarithms, in float32."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        zeros = logical(nn.initializers.zeros_init(), "conv_out")
        alpha, beta = (jnp.exp(self.param(name, zeros, (x.shape[-1],))) for name in ("alpha", "beta"))
        return anti_aliased_snake(x.astype(jnp.float32), alpha, beta).astype(x.dtype)


class TimeConv(nn.Module):
    """Dilated convolution over time, same length, (B, T, any) -> (B, T, features)."""

    features: int
    kernel: int
    dilation: int = 1
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        # As a 2-D convolution of height 1: up to twice as fast on a CPU where there are few channels.
        return nn.Conv(
            self.features, (1, self.kernel), kernel_dilation=(1, self.dilation), use_bias=self.use_bias,
            dtype=self.dtype, name="conv",
            kernel_init=logical(nn.initializers.normal(0.01), None, None, "conv_in", "conv_out"),
            bias_init=logical(nn.initializers.zeros_init(), "conv_out"),
        )(x[:, None])[:, 0]


class Upsample(nn.Module):
    """Transposed convolution with stride `rate` and kernel 2 x rate: (B, T, any) -> (B, T x rate, features).

    Every output sample sees two neighbouring steps: a convolution of width two that yields `rate` samples a step.
    """

    features: int
    rate: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        bias = self.param("bias", logical(nn.initializers.zeros_init(), "conv_out"), (self.features,))
        phases = Conv(
            self.rate * self.features, (2,), padding=[(1, 1)], use_bias=False, dtype=self.dtype,
            kernel_init=nn.initializers.normal(0.01), name="phases",
        )(x)
        samples = phases.reshape(x.shape[0], -1, self.features) + bias.astype(phases.dtype)
        return samples[:, self.rate // 2 :][:, : self.rate * x.shape[1]]


class ResidualBlock(nn.Module):
    """Three times activation, dilated convolution, activation, convolution, each added to its input (B, T, C)."""

    kernel: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i, dilation in enumerate(DILATIONS):
            y = SnakeBeta(name=f"dilated_act{i}")(x)
            y = TimeConv(x.shape[-1], self.kernel, dilation, dtype=self.dtype, name=f"dilated{i}")(y)
            y = SnakeBeta(name=f"plain_act{i}")(y)
            x = x + TimeConv(x.shape[-1], self.kernel, dtype=self.dtype, name=f"plain{i}")(y)
        return x


class BigVGAN(nn.Module):
    """Log-mel (B, T, bands), of the mel front end that the weights were trained with -> waveform (B, S) in [-1, 1]."""

    config: VocoderConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, log_mel: Array) -> Array:
        c = self.config
        x = TimeConv(c.width, _END_KERNEL, dtype=self.dtype, name="conv_in")(log_mel)
        for i, rate in enumerate(c.upsample_rates):
            x = Upsample(c.width // 2 ** (i + 1), rate, self.dtype, name=f"up{i}")(x)
            blocks = [ResidualBlock(kernel, self.dtype, name=f"block{i}_{kernel}") for kernel in KERNELS]
            x = sum(block(x) for block in blocks) / len(blocks)
        x = SnakeBeta(name="act_out")(x)
        x = TimeConv(1, _END_KERNEL, use_bias=not c.v2, dtype=self.dtype, name="conv_out")(x)[..., 0].astype(jnp.float32)
        return jnp.clip(x, -1.0, 1.0) if c.v2 else jnp.tanh(x)
