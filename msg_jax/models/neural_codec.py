"""MMAudio's audio codec, with the interface of `models.codec`: the mel VAE's means as latents, BigVGAN as vocoder."""

from flax import linen as nn
import jax.numpy as jnp

from msg_jax.clip import ClipSpec
from msg_jax.models.vae import VAE, VAEConfig
from msg_jax.models.vocoder import BigVGAN, VocoderConfig
from msg_jax.types import Array


class NeuralCodec(nn.Module):
    """Latents are as the VAE gives them: the MM-DiT that was trained on them brings their mean and deviation.

    `decode` has no reach to cut at, as the VAE attends to its whole input; a long clip is decoded window by window.
    """

    clip: ClipSpec
    vae_config: VAEConfig
    vocoder_config: VocoderConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.vae = VAE(self.vae_config, self.dtype)
        self.vocoder = BigVGAN(self.vocoder_config, self.dtype)

    @property
    def context_frames(self) -> int:
        return self.vocoder_config.context_frames

    def __call__(self, log_mel: Array) -> Array:
        """Log-mel (B, T, M), T even -> the waveform of its reconstruction; touches every variable, for `init`."""
        return self.vocode(self.decode(self.encode(log_mel)))

    def encode(self, log_mel: Array) -> Array:
        return self.vae.encode(log_mel)[0]

    def decode(self, latents: Array) -> Array:
        return self.vae.decode(latents)

    def vocode(self, log_mel: Array) -> Array:
        return self.vocoder(log_mel)
