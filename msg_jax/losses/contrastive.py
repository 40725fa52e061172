"""Contrastive losses between paired video and audio embeddings: pure functions of arrays.

All are InfoNCE (CLIP's symmetric cross-entropy) and differ in what is compared and against what. `scale` is the inverse
temperature, > 0.

`axis_name` makes the negatives global: under `jax.shard_map` over that axis (or axes) every device holds B local
items, gathers the other modality from all devices, computes its own rows and columns, and the mean over devices is
returned. Loss and gradients then equal those of one device with the whole batch. None means that the batch at hand is
the whole one.
"""

from collections.abc import Mapping, Sequence

import jax
from jax import lax
import jax.numpy as jnp

from msg_jax.types import Array

AxisName = str | tuple[str, ...] | None


def symmetric_info_nce(video: Array, audio: Array, scale: Array, axis_name: AxisName = None) -> tuple[Array, Array]:
    """(loss, accuracy) of matching each of (B, D) `video` to its `audio` among the global batch, and the reverse.

    Rows have unit norm. Accuracy is the share of items ranked first, averaged over both directions.

    >>> loss, accuracy = symmetric_info_nce(jnp.eye(2), jnp.eye(2), 1.0)
    >>> print(f"{loss:.4f} {accuracy:.1f}")  # ln(1 + 1/e)
    0.3133 1.0
    """
    return _rank(video, audio, scale, None, axis_name)


def dynamic_info_nce(
    video: Array, audio: Array, scale: Array, lags: Sequence[int], axis_name: AxisName = None
) -> tuple[Array, Array]:
    """`symmetric_info_nce` of (B, T, D) sequences on the mean-of-time cosine; `lags` (steps, not 0) add negatives.

    Besides the other clips, each clip competes with itself shifted by every lag. Both streams keep their features and
    only the comparison slides, so that a lag costs next to nothing and has no edge to be recognised by.
    """
    batch, steps, _ = video.shape
    shifted = scale * lagged_cosines(video, audio, lags) if lags else None
    return _rank(video.reshape(batch, -1) / steps, audio.reshape(batch, -1), scale, shifted, axis_name)


def window_info_nce(video: Array, audio: Array, scale: Array, axis_name: AxisName = None) -> tuple[Array, Array]:
    """`symmetric_info_nce` of (B, W, D) windows, each against all other windows of all clips."""
    return symmetric_info_nce(*(x.reshape(-1, x.shape[-1]) for x in (video, audio)), scale, axis_name)


def within_video_info_nce(video: Array, audio: Array, scale: Array, axis_name: AxisName = None) -> tuple[Array, Array]:
    """`symmetric_info_nce` inside each video: (B, K, D), K windows cut from one video (CAVP, Diff-Foley)."""
    loss, accuracy = jax.vmap(lambda v, a: symmetric_info_nce(v, a, scale))(video, audio)
    return _mean((loss.mean(), accuracy.mean()), axis_name)


def lagged_cosines(video: Array, audio: Array, lags: Sequence[int]) -> Array:
    """Mean cosine of (B, T, D) unit sequences with the audio read `lag` steps later, over the overlap: (B, len(lags)).

    >>> steps = jnp.eye(4)[None]
    >>> lagged_cosines(steps, jnp.roll(steps, 1, axis=1), (0, 1)).tolist()
    [[0.0, 1.0]]
    """
    cosines = jnp.einsum("btd,bsd->bts", video, audio)  # a lag is a diagonal: one matmul serves them all
    return jnp.stack([jnp.diagonal(cosines, lag, 1, 2).mean(axis=1) for lag in lags], axis=1)


def sf_cavp_loss(
    video, audio, scales: Mapping[str, Array], weights: Mapping[str, float], lags: Sequence[int],
    axis_name: AxisName = None,
) -> tuple[Array, dict[str, Array]]:
    """Weighted sum of the `semantic`, `dynamic` and `window` losses, and every term and accuracy apart.

    `video` and `audio` have fields `semantic` (B, D), `dynamic` (B, T, D) and `local` (B, W, D) of unit norm;
    `scales` and `weights` are keyed by the names of the terms.
    """
    terms = {
        "semantic": symmetric_info_nce(video.semantic, audio.semantic, scales["semantic"], axis_name),
        "dynamic": dynamic_info_nce(video.dynamic, audio.dynamic, scales["dynamic"], lags, axis_name),
        "window": window_info_nce(video.local, audio.local, scales["window"], axis_name),
    }
    loss = sum(weights[name] * term for name, (term, _) in terms.items())
    metrics = {f"loss_{name}": term for name, (term, _) in terms.items()}
    metrics |= {f"accuracy_{name}": accuracy for name, (_, accuracy) in terms.items()}
    return loss, metrics


def _rank(
    video: Array, audio: Array, scale: Array, extra: Array | None, axis_name: AxisName
) -> tuple[Array, Array]:
    """Symmetric cross-entropy of (B, D) pairs; `extra` (B, L) logits are further negatives of both directions."""
    rows = jnp.arange(video.shape[0])
    targets = rows if axis_name is None else rows + lax.axis_index(axis_name) * video.shape[0]

    def one_way(query: Array, key: Array) -> tuple[Array, Array]:
        keys = key if axis_name is None else lax.all_gather(key, axis_name, tiled=True)
        logits = scale * query @ keys.T
        if extra is not None:
            logits = jnp.concatenate([logits, extra], axis=1)
        loss = jax.nn.logsumexp(logits, axis=1) - logits[rows, targets]
        return loss.mean(), (logits.argmax(axis=1) == targets).mean()

    (loss_va, accuracy_va), (loss_av, accuracy_av) = one_way(video, audio), one_way(audio, video)
    return _mean(((loss_va + loss_av) / 2, (accuracy_va + accuracy_av) / 2), axis_name)


def _mean(values: tuple[Array, Array], axis_name: AxisName) -> tuple[Array, Array]:
    return values if axis_name is None else lax.pmean(values, axis_name)
