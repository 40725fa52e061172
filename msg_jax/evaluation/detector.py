"""The judges: small sound-event detectors on log-mels, trained on real clips only.

None serves as a reward and no policy trains on their output, so that no system is judged by its own training signal. The first,
`EventDetector`, hears decoded log-mels; it chooses settings on the validation split, and its pooled features serve the Fréchet
distance. The second, `RecurrentDetector`, hears waveforms; it is only ever reported.
"""

import dataclasses
import functools
from typing import cast

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray
import numpy as np
import optax

from msg_jax.clip import MelSpec
from msg_jax.types import Array, Params

LogMel = Float[Array | np.ndarray, "B T M"]


class EventDetector(nn.Module):
    """Map a log-mel (B, T, M) to onset logits (B, T, classes) and a clip embedding (B, width).

    Residual convolutions over time at the full frame rate, with the mel bands as channels. The receptive field is 0.3 s.
    LayerNorm normalises each frame, so a clip's score does not depend on its batch.
    """

    classes: int
    width: int = 96
    blocks: int = 3
    kernel: int = 5

    @nn.compact
    def __call__(self, mel: LogMel) -> tuple[Float[Array, "B T K"], Float[Array, "B D"]]:
        # TPUs and GPUs round float32 products unless told not to.
        conv, dense = (functools.partial(layer, precision=jax.lax.Precision.HIGHEST) for layer in (nn.Conv, nn.Dense))
        x = conv(self.width, (self.kernel,))(_standardise(mel))
        for _ in range(self.blocks):
            x = x + conv(self.width, (self.kernel,))(nn.relu(nn.LayerNorm()(x)))
        x = nn.relu(nn.LayerNorm()(x))
        # Onsets are rare: a low initial probability saves the first steps of the training.
        return dense(self.classes, bias_init=nn.initializers.constant(-4.0))(x), x.mean(axis=1)


class RecurrentDetector(nn.Module):
    """As `EventDetector`, by another architecture: convolutions over time and frequency, then a bidirectional GRU.

    This is the usual network of sound event detection (CRNN, Cakir et al., arXiv 1702.06286). It sees the whole clip.
    """

    classes: int
    widths: tuple[int, ...] = (16, 32, 64)
    pools: tuple[int, ...] = (4, 4, 2)  # over frequency, after each convolution
    recurrent: int = 48

    @nn.compact
    def __call__(self, mel: LogMel) -> tuple[Float[Array, "B T K"], Float[Array, "B D"]]:
        with jax.default_matmul_precision("highest"):
            x = jnp.asarray(_standardise(mel))[..., None]
            for width, pool in zip(self.widths, self.pools):
                x = nn.relu(nn.LayerNorm()(nn.Conv(width, (3, 3))(x)))
                x = nn.max_pool(x, (1, pool), strides=(1, pool))
            x = x.reshape(*x.shape[:2], -1)
            forward, backward = (
                cast(Array, nn.RNN(nn.GRUCell(self.recurrent), reverse=back, keep_order=True)(x)) for back in (False, True)
            )
            x = jnp.concatenate([forward, backward], axis=-1)
            return nn.Dense(self.classes, bias_init=nn.initializers.constant(-4.0))(x), x.mean(axis=1)


class PictureDetector(nn.Module):
    """Map frames (B, T, H, W, 3) in [-1, 1] to logits of the onsets that they show, and a clip embedding, as `EventDetector`.

    Dense layers over the patches of each frame and of what changed since the last one, then an `EventDetector` over the
    features of the frames. It sees 0.7 s at 25 Hz. Height and width are multiples of the product of `patches`.
    """

    classes: int
    patches: tuple[int, ...] = (4, 2)  # pixels on a side, then patches on a side
    widths: tuple[int, ...] = (32, 64)
    features: int = 128

    @nn.compact
    def __call__(self, video: Float[Array | np.ndarray, "B T H W 3"]) -> tuple[Float[Array, "B T K"], Float[Array, "B D"]]:
        with jax.default_matmul_precision("highest"):
            x = jnp.asarray(video, jnp.float32)
            changed = x - jnp.concatenate([x[:, :1], x[:, :-1]], axis=1)
            x = jnp.concatenate([x, changed], axis=-1)
            for patch, width in zip(self.patches, self.widths):
                x = nn.relu(nn.LayerNorm()(nn.Dense(width)(_patches(x, patch))))
            # Where something is matters (a bounce is a height), so the last map is flattened and not averaged.
            x = nn.Dense(self.features)(x.reshape(*video.shape[:2], -1))
        return EventDetector(self.classes)(x)


def _patches(x: Float[Array, "B T H W D"], size: int) -> Float[Array, "B T H//{size} W//{size} {size}*{size}*D"]:
    """Each square of `size` x `size` positions as one vector."""
    batch, steps, height, width, features = x.shape
    x = x.reshape(batch, steps, height // size, size, width // size, size, features)
    return x.swapaxes(3, 4).reshape(batch, steps, height // size, width // size, size * size * features)


def waveform_mel(spec: MelSpec) -> MelSpec:
    """The log-mels that the second judge makes of waveforms: finer in frequency than the codec's, at its frame rate."""
    return dataclasses.replace(spec, bands=64)


def _standardise(mel: LogMel) -> LogMel:
    """Scale each clip to zero mean and unit deviation: neither the level nor the base of the logarithm matters."""
    mean = mel.mean(axis=(1, 2), keepdims=True)
    return (mel - mean) / (mel.std(axis=(1, 2), keepdims=True) + 1e-3)


def detector_loss(
    logits: Float[Array, "B T K"], targets: Float[Array | np.ndarray, "B T K"], positive_weight: float = 4.0
) -> Float[Array, ""]:
    """Mean binary cross-entropy of onset `logits` against blurred `targets` in [0, 1], both (B, T, K).

    A cell has weight 1 + (positive_weight - 1) * target, because onsets fill about one cell in fifty.
    """
    weights = 1 + (positive_weight - 1) * targets
    return (weights * optax.sigmoid_binary_cross_entropy(logits, targets)).mean()


def augment(key: PRNGKeyArray, mel: Float[Array, "B T M"]) -> Float[Array, "B T M"]:
    """Return a random copy of log-mels (B, T, M) with the artefacts of a codec: level, noise, smearing.

    Each clip draws its own attenuation (up to 1.5 in log units, its floor stays), noise deviation (up to 0.15), and mix
    (up to 0.8) with a copy smoothed over three taps in time and frequency.
    """
    level_key, noise_key, scale_key, smooth_key = jax.random.split(key, 4)
    clips = (len(mel), 1, 1)
    smoothed = _three_taps(_three_taps(mel, axis=1), axis=2)
    mel = mel + jax.random.uniform(smooth_key, clips, maxval=0.8) * (smoothed - mel)
    floor = mel.min(axis=(1, 2), keepdims=True)
    mel = jnp.maximum(mel - jax.random.uniform(level_key, clips, maxval=1.5), floor)
    return mel + jax.random.uniform(scale_key, clips, maxval=0.15) * jax.random.normal(noise_key, mel.shape)


def augment_frames(key: PRNGKeyArray, video: Float[Array, "B T H W 3"]) -> Float[Array, "B T H W 3"]:
    """Return a random copy of frames in [-1, 1]: half of the clips mirrored, and the artefacts of a codec, as `augment`.

    Each clip draws its own mix (up to 0.6) with a copy smoothed in space, and its own noise deviation (up to 0.05).
    """
    noise_key, scale_key, smooth_key, mirror_key = jax.random.split(key, 4)
    clips = (len(video), 1, 1, 1, 1)
    video = jnp.where(jax.random.bernoulli(mirror_key, 0.5, clips), video[:, :, :, ::-1], video)
    smoothed = _three_taps(_three_taps(video, axis=2), axis=3)
    video = video + jax.random.uniform(smooth_key, clips, maxval=0.6) * (smoothed - video)
    return video + jax.random.uniform(scale_key, clips, maxval=0.05) * jax.random.normal(noise_key, video.shape)


def _three_taps(x: Array, axis: int) -> Array:
    pad = [(1, 1) if index == axis else (0, 0) for index in range(x.ndim)]
    padded = jnp.pad(x, pad, mode="edge")
    before, after = (jax.lax.slice_in_dim(padded, start, start + x.shape[axis], axis=axis) for start in (0, 2))
    return 0.25 * before + 0.5 * x + 0.25 * after


def detect(
    detector: nn.Module, params: Params, clips: Float[Array | np.ndarray, "B T *_"]
) -> tuple[Float[Array, "B T K"], Float[Array, "B D"]]:
    """Return onset probabilities (B, T, K) and embeddings (B, D) of log-mels (B, T, M) or of frames (B, T, H, W, 3)."""
    logits, embedding = cast(tuple[Array, Array], detector.apply({"params": params}, clips))
    return nn.sigmoid(logits), embedding
