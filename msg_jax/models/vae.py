"""MMAudio's mel VAE (Cheng et al., arXiv 2412.15322, section 3.1): log-mel frames <-> latents at half their rate.

One-dimensional over time and magnitude-preserving (EDM2, arXiv 2312.02696): every operation keeps the expected magnitude
of its input, so no layer has a bias or a learned normalisation. Kernels are stored with their norm folded in.
"""

from collections.abc import Sequence
import dataclasses
import math

from flax import linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Float32

from msg_jax.models.attention import attend
from msg_jax.models.layers import Conv
from msg_jax.types import AnyArray, Array

WIDTH_MULTIPLIERS = (1, 2, 4)  # one per level; only the first level changes the rate, by two
ENCODER_BLOCKS, DECODER_BLOCKS = 2, 3  # residual blocks per level
_RESIDUAL_SHARE = 0.3  # t of EDM2 eq. 88, for every residual branch
_CLAMP = 256.0
_LOG_VARIANCE_RANGE = (-30.0, 20.0)


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """`bands` mel bands in, `latent_channels` out at half the frame rate; the widest level has 4 x `width` channels."""

    bands: int
    latent_channels: int
    width: int


PRESETS = {
    "16k": VAEConfig(bands=80, latent_channels=20, width=384),
    "44k": VAEConfig(bands=128, latent_channels=40, width=512),
}


def mp_silu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """SiLU that preserves unit magnitude (EDM2 eq. 81)."""
    return nn.silu(x) / 0.596


def mp_sum(x: Float[Array, "*shape"], branch: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Weighted sum that preserves unit magnitude (EDM2 eq. 88)."""
    keep = 1 - _RESIDUAL_SHARE
    return (keep * x + _RESIDUAL_SHARE * branch) / math.hypot(keep, _RESIDUAL_SHARE)


def unit_magnitude(x: Float[Array, "*shape"], axis: int) -> Float[Array, "*shape"]:
    """Scale x to root mean square 1 along `axis` (EDM2's pixel norm)."""
    wide = x.astype(jnp.float32)
    return (wide / (1e-4 + jnp.sqrt(jnp.mean(jnp.square(wide), axis, keepdims=True)))).astype(x.dtype)


def _clamp(x: Array) -> Array:
    return jnp.clip(x, -_CLAMP, _CLAMP)


class MPConv(nn.Module):
    """Convolution over time without bias; kernels have unit norm per output channel, also at initialisation."""

    features: int
    kernel: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[AnyArray, "B T D"]) -> Float[Array, "B T {self.features}"]:
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        return Conv(self.features, (self.kernel,), use_bias=False, dtype=self.dtype, kernel_init=init, name="mp")(x)


class ResidualBlock(nn.Module):
    """Two convolutions with a magnitude-preserving skip connection."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T {self.features}"]:
        x = unit_magnitude(x, axis=-1)
        branch = MPConv(self.features, dtype=self.dtype, name="conv1")(mp_silu(x))
        branch = MPConv(self.features, dtype=self.dtype, name="conv2")(mp_silu(branch))
        if x.shape[-1] != self.features:
            x = MPConv(self.features, 1, dtype=self.dtype, name="shortcut")(x)
        return mp_sum(x, branch)


class Attention(nn.Module):
    """Single-head attention over time; queries, keys and values have unit magnitude."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        features = x.shape[-1]
        qkv = MPConv(3 * features, 1, dtype=self.dtype, name="qkv")(x)
        qkv = unit_magnitude(qkv.reshape(*x.shape[:2], 1, features, 3), axis=-2)  # the released weights interleave q, k, v
        out = attend(qkv[..., 0], qkv[..., 1], qkv[..., 2])[:, :, 0]
        return mp_sum(x, MPConv(features, 1, dtype=self.dtype, name="out")(out))


class Middle(nn.Module):
    """Residual block, attention, residual block, at the lowest rate."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        x = ResidualBlock(x.shape[-1], self.dtype, name="block1")(x)
        x = Attention(self.dtype, name="attention")(x)
        return _clamp(ResidualBlock(x.shape[-1], self.dtype, name="block2")(x))


class Level(nn.Module):
    """`blocks` residual blocks of one width."""

    features: int
    blocks: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T {self.features}"]:
        for i in range(self.blocks):
            x = _clamp(ResidualBlock(self.features, self.dtype, name=f"block{i}")(x))
        return x


class Output(nn.Module):
    """Output convolution, scaled by one learned gain."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float32[Array, "B T {self.features}"]:
        gain = 1 + self.param("gain", nn.initializers.zeros_init(), ())
        return gain * MPConv(self.features, dtype=self.dtype, name="conv")(mp_silu(x)).astype(jnp.float32)


class Encoder(nn.Module):
    """Standardised log-mel -> `features` = 2 x latent_channels: means, then log-variances."""

    widths: Sequence[int]
    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[AnyArray, "B T M"]) -> Float32[Array, "B T//2 {self.features}"]:
        x = MPConv(self.widths[0], dtype=self.dtype, name="conv_in")(x)
        for i, width in enumerate(self.widths):
            x = Level(width, ENCODER_BLOCKS, self.dtype, name=f"level{i}")(x)
            if i == 0:
                x = MPConv(width, 1, dtype=self.dtype, name="down_before")(x)
                x = nn.avg_pool(x, (2,), strides=(2,))
                x = MPConv(width, 1, dtype=self.dtype, name="down_after")(x)
        return Output(self.features, self.dtype, name="output")(Middle(self.dtype, name="middle")(x))


class Decoder(nn.Module):
    """Latents -> standardised log-mel at twice their rate."""

    widths: Sequence[int]
    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[AnyArray, "B T C"]) -> Float32[Array, "B 2*T {self.features}"]:
        x = MPConv(self.widths[-1], dtype=self.dtype, name="conv_in")(x)
        x = Middle(self.dtype, name="middle")(x)
        for i, width in reversed(list(enumerate(self.widths))):
            x = Level(width, DECODER_BLOCKS, self.dtype, name=f"level{i}")(x)
            if i == 1:
                x = MPConv(width, dtype=self.dtype, name="up")(jnp.repeat(x, 2, axis=1))
        return Output(self.features, self.dtype, name="output")(x)


class VAE(nn.Module):
    """Encoder and decoder. The collection `buffers` holds the per-band mean and standard deviation of the log-mels."""

    config: VAEConfig
    dtype: DTypeLike = jnp.float32

    def setup(self):
        c = self.config
        widths = [multiplier * c.width for multiplier in WIDTH_MULTIPLIERS]
        self.encoder = Encoder(widths, 2 * c.latent_channels, self.dtype)
        self.decoder = Decoder(widths, c.bands, self.dtype)
        self.mel_mean = self.variable("buffers", "mel_mean", jnp.zeros, (c.bands,))
        self.mel_std = self.variable("buffers", "mel_std", jnp.ones, (c.bands,))

    def __call__(self, log_mel: Float[AnyArray, "B T M"]) -> Float32[Array, "B T M"]:
        """Reconstruct a log-mel of even length from the mean of its latents."""
        return self.decode(self.encode(log_mel)[0])

    def encode(self, log_mel: Float[AnyArray, "B T M"]) -> tuple[Float32[Array, "B T//2 C"], Float32[Array, "B T//2 C"]]:
        """Return mean and log-variance of the latents."""
        moments = self.encoder((log_mel - self.mel_mean.value) / self.mel_std.value)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, *_LOG_VARIANCE_RANGE)

    def decode(self, latents: Float[AnyArray, "B T C"]) -> Float32[Array, "B 2*T M"]:
        """Decode latents into a log-mel at twice their rate."""
        return self.decoder(latents) * self.mel_std.value + self.mel_mean.value
