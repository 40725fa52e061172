"""MMAudio's mel VAE (Cheng et al., arXiv 2412.15322, section 3.1): log-mel frames <-> latents at half their rate.

One-dimensional over time and magnitude-preserving (EDM2, arXiv 2312.02696): every operation keeps the expected size of
its input, so no layer has a bias or a learned normalisation. Kernels are stored ready for use, their norm folded in.
"""

from collections.abc import Sequence
import dataclasses
import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from msg_jax.models.layers import Conv
from msg_jax.types import Array

WIDTH_MULTIPLIERS = (1, 2, 4)  # one per level; only the first level changes the rate, by two
ENCODER_BLOCKS, DECODER_BLOCKS = 2, 3  # residual blocks per level
_RESIDUAL_SHARE = 0.3  # EDM2 eq. 88's t, of every residual branch
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


def mp_silu(x: Array) -> Array:
    """SiLU that keeps unit magnitude (EDM2 eq. 81)."""
    return nn.silu(x) / 0.596


def mp_sum(x: Array, branch: Array) -> Array:
    """Blend of two inputs of unit magnitude that has unit magnitude (EDM2 eq. 88)."""
    keep = 1 - _RESIDUAL_SHARE
    return (keep * x + _RESIDUAL_SHARE * branch) / math.hypot(keep, _RESIDUAL_SHARE)


def unit_magnitude(x: Array, axis: int) -> Array:
    """x with root mean square 1 along `axis` (EDM2's pixel norm)."""
    wide = x.astype(jnp.float32)
    return (wide / (1e-4 + jnp.sqrt(jnp.mean(jnp.square(wide), axis, keepdims=True)))).astype(x.dtype)


def _clamp(x: Array) -> Array:
    return jnp.clip(x, -_CLAMP, _CLAMP)


class MPConv(nn.Module):
    """Convolution over time without bias; its kernels have unit norm per output channel, at initialisation too."""

    features: int
    kernel: int = 3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        return Conv(self.features, (self.kernel,), use_bias=False, dtype=self.dtype, kernel_init=init, name="mp")(x)


class ResidualBlock(nn.Module):
    """(B, T, any) -> (B, T, features)."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = unit_magnitude(x, axis=-1)
        branch = MPConv(self.features, dtype=self.dtype, name="conv1")(mp_silu(x))
        branch = MPConv(self.features, dtype=self.dtype, name="conv2")(mp_silu(branch))
        if x.shape[-1] != self.features:
            x = MPConv(self.features, 1, dtype=self.dtype, name="shortcut")(x)
        return mp_sum(x, branch)


class Attention(nn.Module):
    """Single-head attention over time whose queries, keys and values have unit magnitude: (B, T, D) -> the same."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        features = x.shape[-1]
        qkv = MPConv(3 * features, 1, dtype=self.dtype, name="qkv")(x)
        qkv = unit_magnitude(qkv.reshape(*x.shape[:2], 1, features, 3), axis=-2)  # q, k and v alternate, as released
        out = jax.nn.dot_product_attention(*(qkv[..., i] for i in range(3)))[:, :, 0]
        return mp_sum(x, MPConv(features, 1, dtype=self.dtype, name="out")(out))


class Middle(nn.Module):
    """Residual block, attention, residual block, at the lowest rate: (B, T, D) -> the same."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = ResidualBlock(x.shape[-1], self.dtype, name="block1")(x)
        x = Attention(self.dtype, name="attention")(x)
        return _clamp(ResidualBlock(x.shape[-1], self.dtype, name="block2")(x))


class Level(nn.Module):
    """`blocks` residual blocks of one width: (B, T, any) -> (B, T, features)."""

    features: int
    blocks: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.blocks):
            x = _clamp(ResidualBlock(self.features, self.dtype, name=f"block{i}")(x))
        return x


class Output(nn.Module):
    """(B, T, any) -> (B, T, features), scaled by one learned gain."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        gain = 1 + self.param("gain", nn.initializers.zeros_init(), ())
        return gain * MPConv(self.features, dtype=self.dtype, name="conv")(mp_silu(x)).astype(jnp.float32)


class Encoder(nn.Module):
    """Standardised log-mel (B, T, bands) -> (B, T // 2, 2 x latent_channels): means, then log-variances."""

    widths: Sequence[int]
    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = MPConv(self.widths[0], dtype=self.dtype, name="conv_in")(x)
        for i, width in enumerate(self.widths):
            x = Level(width, ENCODER_BLOCKS, self.dtype, name=f"level{i}")(x)
            if i == 0:
                x = MPConv(width, 1, dtype=self.dtype, name="down_before")(x)
                x = nn.avg_pool(x, (2,), strides=(2,))
                x = MPConv(width, 1, dtype=self.dtype, name="down_after")(x)
        return Output(self.features, self.dtype, name="output")(Middle(self.dtype, name="middle")(x))


class Decoder(nn.Module):
    """Latents (B, T, C) -> standardised log-mel (B, 2 T, bands)."""

    widths: Sequence[int]
    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = MPConv(self.widths[-1], dtype=self.dtype, name="conv_in")(x)
        x = Middle(self.dtype, name="middle")(x)
        for i, width in reversed(list(enumerate(self.widths))):
            x = Level(width, DECODER_BLOCKS, self.dtype, name=f"level{i}")(x)
            if i == 1:
                x = MPConv(width, dtype=self.dtype, name="up")(jnp.repeat(x, 2, axis=1))
        return Output(self.features, self.dtype, name="output")(x)


class VAE(nn.Module):
    """Encoder and decoder. The collection `buffers` holds the per-band mean and deviation of the log-mels."""

    config: VAEConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        c = self.config
        widths = [multiplier * c.width for multiplier in WIDTH_MULTIPLIERS]
        self.encoder = Encoder(widths, 2 * c.latent_channels, self.dtype)
        self.decoder = Decoder(widths, c.bands, self.dtype)
        self.mel_mean = self.variable("buffers", "mel_mean", jnp.zeros, (c.bands,))
        self.mel_std = self.variable("buffers", "mel_std", jnp.ones, (c.bands,))

    def __call__(self, log_mel: Array) -> Array:
        """Log-mel (B, T, bands), T even -> its reconstruction from the latents' means."""
        return self.decode(self.encode(log_mel)[0])

    def encode(self, log_mel: Array) -> tuple[Array, Array]:
        """Log-mel (B, T, bands) -> mean and log-variance of the latents, both (B, T // 2, C) float32."""
        moments = self.encoder((log_mel - self.mel_mean.value) / self.mel_std.value)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, *_LOG_VARIANCE_RANGE)

    def decode(self, latents: Array) -> Array:
        """Latents (B, T, C) -> log-mel (B, 2 T, bands) float32."""
        return self.decoder(latents) * self.mel_std.value + self.mel_mean.value
