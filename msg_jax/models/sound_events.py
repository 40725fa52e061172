"""Sound events without labels: which kinds of sound start when, detected in the audio and predicted from the video.

Two heads of one design on the frozen SlowFast features of SF-CAVP, one per modality, trained on events that the clips
themselves gave (preference/codebook.py). A smooth distance between embeddings misses what a listener counts: an event
that is there or not, of this kind or another. Two maps of event probabilities say it.
"""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp

from msg_jax.models.layers import Dense
from msg_jax.types import Array, Params


@dataclasses.dataclass(frozen=True)
class SoundEventsConfig:
    kinds: int = 16
    width: int = 96
    blocks: int = 2
    kernel: int = 5


class SoundEvents(nn.Module):
    """Logits (B, T, kinds) at the rate of the fast features, from slow (B, Ts, Ds) and fast (B, T, Df) ones."""

    config: SoundEventsConfig

    def setup(self):
        self.video_head, self.audio_head = _Head(self.config), _Head(self.config)

    def predict(self, slow: Array, fast: Array) -> Array:
        """Logits of sound events that the video promises."""
        return self.video_head(slow, fast)

    def detect(self, slow: Array, fast: Array) -> Array:
        """Logits of the sound events in the audio."""
        return self.audio_head(slow, fast)

    def __call__(self, video: tuple[Array, Array], audio: tuple[Array, Array]) -> tuple[Array, Array]:
        return self.predict(*video), self.detect(*audio)


def embedding(logits: Array) -> Array:
    """Square roots of the probabilities (B, T, kinds), of unit norm over the whole clip.

    The inner product of two of them is the cosine of Bhattacharyya's coefficient: 1 where the maps agree, and as hard on an
    event too many as on one too few. The root lets a rare event that is likely in both count beside a sure one.
    """
    root = jnp.exp(0.5 * jax.nn.log_sigmoid(logits.astype(jnp.float32)))
    return root / jnp.sqrt(jnp.sum(root**2, axis=(1, 2), keepdims=True))


class _Head(nn.Module):
    """Residual convolutions over time, on both streams at the rate of the fast one."""

    config: SoundEventsConfig

    @nn.compact
    def __call__(self, slow: Array, fast: Array) -> Array:
        c = self.config
        slow = Dense(c.width, axes=(None, "embed"), name="from_slow")(self._standardised(slow, "slow"))
        fast = Dense(c.width, axes=(None, "embed"), name="from_fast")(self._standardised(fast, "fast"))
        x = fast + jax.image.resize(slow, fast.shape, "nearest")
        for block in range(c.blocks):
            x = x + nn.Conv(c.width, (c.kernel,), name=f"block_{block}")(nn.relu(nn.LayerNorm()(x)))
        # Onsets are rare: starting at a low probability spares the first steps.
        return nn.Dense(c.kinds, bias_init=nn.initializers.constant(-5.0), name="out")(nn.relu(nn.LayerNorm()(x)))

    def _standardised(self, x: Array, name: str) -> Array:
        """Every feature in its own units: their scales differ more than a normalisation of each step can mend."""
        mean = self.variable("buffers", f"{name}_mean", jnp.zeros, x.shape[-1:])
        deviation = self.variable("buffers", f"{name}_deviation", jnp.ones, x.shape[-1:])
        return (x.astype(jnp.float32) - mean.value) / deviation.value


def statistics(video: tuple[Array, Array], audio: tuple[Array, Array]) -> Params:
    """The buffers of `SoundEvents`: mean and deviation of every feature of slow and fast streams (B, T, D)."""

    def of(name, x):
        x = jnp.asarray(x, jnp.float32)
        return {f"{name}_mean": x.mean(axis=(0, 1)), f"{name}_deviation": x.std(axis=(0, 1)) + 0.1}

    streams = {"video_head": video, "audio_head": audio}
    return {head: of("slow", slow) | of("fast", fast) for head, (slow, fast) in streams.items()}
