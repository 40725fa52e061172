"""MMAudio's audio codec: the means of the mel VAE as latents, and BigVGAN as vocoder."""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Float32

from msg_jax.models.codec import Codec
from msg_jax.models.vae import VAE, VAEConfig
from msg_jax.models.vocoder import BigVGAN, VocoderConfig
from msg_jax.types import AnyArray, Array


class NeuralCodec(Codec):
    """Latents come from the VAE unnormalised; the MM-DiT trained on them holds their mean and standard deviation.

    `decode` has unbounded context, because the VAE attends to its whole input. Decode a long clip window by window.
    """

    vae_config: VAEConfig
    vocoder_config: VocoderConfig
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.vae = VAE(self.vae_config, self.dtype)
        self.vocoder = BigVGAN(self.vocoder_config, self.dtype)

    @property
    def context_frames(self) -> int:
        return self.vocoder_config.context_frames

    def __call__(self, log_mel: Float[AnyArray, "B T M"]) -> Float32[Array, "B S"]:
        """Resynthesise a log-mel of even length; it touches every variable, for `init`."""
        return self.vocode(self.decode(self.encode(log_mel)))

    def encode(self, log_mel: Float[AnyArray, "B T M"]) -> Float32[Array, "B N C"]:
        return self.vae.encode(log_mel)[0]

    def decode(self, latents: Float[AnyArray, "B N C"]) -> Float32[Array, "B T M"]:
        return self.vae.decode(latents)

    def vocode(self, log_mel: Float[AnyArray, "B T M"]) -> Float32[Array, "B S"]:
        return self.vocoder(log_mel)
