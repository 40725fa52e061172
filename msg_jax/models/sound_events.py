"""Unlabelled sound events: which kinds of sound start when, detected in the audio and predicted from the video.

One head per modality, of the same design, on the frozen SlowFast features of SF-CAVP. They are trained on events found
by clustering the clips (preference/codebook.py). A smooth distance between embeddings misses what a listener notices: a
missing or an extra event, or one of the wrong kind. Maps of event probabilities capture it.
"""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from msg_jax.models.layers import Dense
from msg_jax.types import AnyArray, Array, Params

Streams = tuple[Float[AnyArray, "B _ _"], Float[AnyArray, "B T _"]]
"""Slow and fast features of one modality."""


@dataclasses.dataclass(frozen=True)
class SoundEventsConfig:
    """Sizes of each head."""

    kinds: int = 16
    width: int = 96
    blocks: int = 2
    kernel: int = 5


class SoundEvents(nn.Module):
    """Event logits per step of the fast features, from the slow and fast features of either modality."""

    config: SoundEventsConfig

    def setup(self):
        self.video_head, self.audio_head = _Head(self.config), _Head(self.config)

    def predict(self, slow: Float[AnyArray, "B Ts Ds"], fast: Float[AnyArray, "B T Df"]) -> Float[Array, "B T kinds"]:
        """Predict sound events from the video."""
        return self.video_head(slow, fast)

    def detect(self, slow: Float[AnyArray, "B Ts Ds"], fast: Float[AnyArray, "B T Df"]) -> Float[Array, "B T kinds"]:
        """Detect sound events in the audio."""
        return self.audio_head(slow, fast)

    def __call__(
        self, video: Streams, audio: Streams
    ) -> tuple[Float[Array, "B T kinds"], Float[Array, "B T kinds"]]:
        return self.predict(*video), self.detect(*audio)


def embedding(logits: Float[Array, "B T kinds"]) -> Float[Array, "B T kinds"]:
    """Square roots of the probabilities, scaled to unit norm over the whole clip.

    The inner product of two embeddings is the normalised Bhattacharyya coefficient. It is 1 for equal maps and penalises
    an extra event like a missing one. The root gives a rare event that is likely in both maps weight beside a certain one.
    """
    root = jnp.exp(0.5 * jax.nn.log_sigmoid(logits.astype(jnp.float32)))
    return root / jnp.sqrt(jnp.sum(root**2, axis=(1, 2), keepdims=True))


class _Head(nn.Module):
    """Residual convolutions over time; both streams run at the rate of the fast one."""

    config: SoundEventsConfig

    @nn.compact
    def __call__(self, slow: AnyArray, fast: AnyArray) -> Array:
        c = self.config
        slow = Dense(c.width, axes=(None, "embed"), name="from_slow")(self._standardised(slow, "slow"))
        fast = Dense(c.width, axes=(None, "embed"), name="from_fast")(self._standardised(fast, "fast"))
        x = fast + jax.image.resize(slow, fast.shape, "nearest")
        for block in range(c.blocks):
            x = x + nn.Conv(
                c.width, (c.kernel,), name=f"block_{block}", precision=jax.lax.Precision.HIGHEST
            )(nn.relu(nn.LayerNorm()(x)))
        # Onsets are rare: a low initial probability saves the first training steps.
        return nn.Dense(
            c.kinds, bias_init=nn.initializers.constant(-5.0), name="out", precision=jax.lax.Precision.HIGHEST
        )(nn.relu(nn.LayerNorm()(x)))

    def _standardised(self, x: AnyArray, name: str) -> Array:
        """Standardise every feature: their scales differ more than a per-step normalisation can correct."""
        mean = self.variable("buffers", f"{name}_mean", jnp.zeros, x.shape[-1:])
        deviation = self.variable("buffers", f"{name}_deviation", jnp.ones, x.shape[-1:])
        return (jnp.asarray(x, jnp.float32) - mean.value) / deviation.value


def statistics(video: Streams, audio: Streams) -> Params:
    """Compute the buffers of `SoundEvents`: mean and standard deviation (plus 0.1) of every feature."""

    def of(name, x):
        x = jnp.asarray(x, jnp.float32)
        return {f"{name}_mean": x.mean(axis=(0, 1)), f"{name}_deviation": x.std(axis=(0, 1)) + 0.1}

    streams = {"video_head": video, "audio_head": audio}
    return {head: of("slow", slow) | of("fast", fast) for head, (slow, fast) in streams.items()}
