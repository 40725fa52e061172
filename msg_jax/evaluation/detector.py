"""The judge: a small sound-event detector on log-mels, trained on real clips only.

No reward and no policy is ever trained on its output: a system must not be judged by what it was tuned to please. Its
pooled features serve the Fréchet distance.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from msg_jax.types import Array, Params

# Where `decode_events` cuts the probabilities of a detector trained with `detector_loss`.
THRESHOLD = 0.4
MIN_GAP_SEC = 0.08


class EventDetector(nn.Module):
    """Log-mel (B, T, M) -> onset logits (B, T, classes) and a clip embedding (B, width).

    Residual convolutions over time at the full frame rate, all bands being channels; a frame sees 0.3 s around it.
    Normalisation is per frame (LayerNorm), so a clip's score does not depend on its batch.
    """

    classes: int
    width: int = 96
    blocks: int = 3
    kernel: int = 5

    @nn.compact
    def __call__(self, mel: Array) -> tuple[Array, Array]:
        x = nn.Conv(self.width, (self.kernel,))(_standardise(mel))
        for _ in range(self.blocks):
            x = x + nn.Conv(self.width, (self.kernel,))(nn.relu(nn.LayerNorm()(x)))
        x = nn.relu(nn.LayerNorm()(x))
        # Onsets are rare: starting at a low probability spares the first steps.
        return nn.Dense(self.classes, bias_init=nn.initializers.constant(-4.0))(x), x.mean(axis=1)


def _standardise(mel: Array) -> Array:
    """Zero mean and unit deviation per clip, so that neither level nor the base of the logarithm matters."""
    mean = mel.mean(axis=(1, 2), keepdims=True)
    return (mel - mean) / (mel.std(axis=(1, 2), keepdims=True) + 1e-3)


def detector_loss(logits: Array, targets: Array, positive_weight: float = 4.0) -> Array:
    """Mean binary cross-entropy () of onset `logits` against blurred `targets` (B, T, K) in [0, 1].

    Cells count 1 + (positive_weight - 1) * target, because onsets fill about one cell in fifty.
    """
    weights = 1 + (positive_weight - 1) * targets
    return (weights * optax.sigmoid_binary_cross_entropy(logits, targets)).mean()


def augment(key: Array, mel: Array) -> Array:
    """A random copy of log-mel (B, T, M) with what a codec does to real audio: level, noise, smearing.

    Each clip draws how much quieter it gets above its unchanged floor (up to 1.5 in log units), its noise (deviation up
    to 0.15) and its share (up to 0.8) of a copy smoothed by three taps in time and frequency.
    """
    level_key, noise_key, scale_key, smooth_key = jax.random.split(key, 4)
    clips = (len(mel), 1, 1)
    smoothed = _three_taps(_three_taps(mel, axis=1), axis=2)
    mel = mel + jax.random.uniform(smooth_key, clips, maxval=0.8) * (smoothed - mel)
    floor = mel.min(axis=(1, 2), keepdims=True)
    mel = jnp.maximum(mel - jax.random.uniform(level_key, clips, maxval=1.5), floor)
    return mel + jax.random.uniform(scale_key, clips, maxval=0.15) * jax.random.normal(noise_key, mel.shape)


def _three_taps(x: Array, axis: int) -> Array:
    pad = [(1, 1) if index == axis else (0, 0) for index in range(x.ndim)]
    padded = jnp.pad(x, pad, mode="edge")
    before, after = (jax.lax.slice_in_dim(padded, start, start + x.shape[axis], axis=axis) for start in (0, 2))
    return 0.25 * before + 0.5 * x + 0.25 * after


def detect(detector: EventDetector, params: Params, mel: Array) -> tuple[Array, Array]:
    """Onset probabilities (B, T, K) and embeddings (B, D) of log-mels (B, T, M)."""
    logits, embedding = detector.apply({"params": params}, mel)
    return nn.sigmoid(logits), embedding
