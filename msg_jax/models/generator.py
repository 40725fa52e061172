"""What the generator networks share: their call, and the statistics that normalise the codec's latents."""

from collections.abc import Sequence
from typing import Any, ClassVar

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Float32
import numpy as np

from msg_jax.types import AnyArray, Array, Conditions


class Generator(nn.Module):
    """A network over latents; a subclass defines `preprocess`, `velocity` and `null_conditions`.

    Mean and standard deviation of the latents, per channel, are in the collection `buffers`.
    """

    conditions: ClassVar[Any] = Conditions  # what `preprocess` takes

    @property
    def streams(self) -> tuple[int, ...]:
        """Channels of each stream that its latents consist of; empty where they are one."""
        return ()

    def add_latent_statistics(self, channels: int) -> None:
        """Make the buffers; call it in `setup`."""
        self.latent_mean = self.variable("buffers", "latent_mean", jnp.zeros, (channels,))
        self.latent_std = self.variable("buffers", "latent_std", jnp.ones, (channels,))

    def preprocess(self, conditions: Any) -> Any:
        """Do all work that depends on neither x_t nor t, once per clip."""
        raise NotImplementedError

    def velocity(
        self, x_t: Float[AnyArray, "B T C"], t: Float[AnyArray, " B"], processed: Any
    ) -> Float32[Array, "B T C"]:
        """Return the network's output at x_t and t for preprocessed conditions."""
        raise NotImplementedError

    def __call__(
        self, x_t: Float[AnyArray, "B T C"], t: Float[AnyArray, " B"], conditions: Any
    ) -> Float32[Array, "B T C"]:
        """Return the network's output at x_t and t."""
        return self.velocity(x_t, t, self.preprocess(conditions))

    def error_weights(self, streams: Sequence[str]) -> Float[np.ndarray, " C"] | None:
        """Weights of the channels' errors, by which the mean over all of them is the sum of the means over each of `streams`.

        None where the latents are one stream.
        """
        return None

    def normalize(self, latents: Float[AnyArray, "B T C"]) -> Float[AnyArray, "B T C"]:
        """Scale codec latents to zero mean and unit standard deviation per channel."""
        return (latents - self.latent_mean.value) / self.latent_std.value

    def unnormalize(self, latents: Float[AnyArray, "*B T C"]) -> Float[AnyArray, "*B T C"]:
        """Invert `normalize`."""
        return latents * self.latent_std.value + self.latent_mean.value
