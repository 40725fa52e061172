"""Contrastive losses between paired video and audio embeddings.

All are InfoNCE (CLIP's symmetric cross-entropy). They differ in which embeddings they compare and in their negatives.
`scale` is the inverse temperature, > 0.

`axis_name` makes the negatives global. Under `jax.shard_map` over that axis (or axes) every device holds B local items,
gathers the other modality from all devices and computes its own rows and columns. The loss is the mean over devices;
loss and gradients equal those of one device with the whole batch. None uses the local batch alone.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Float

from msg_jax.types import AnyArray, Array, Scalar

_EXACT = lax.Precision.HIGHEST  # at a scale of 100, a similarity rounded to bfloat16 moves a logit by 0.4

AxisName = str | tuple[str, ...] | None


@runtime_checkable
class ClipEmbeddings(Protocol):
    """Embeddings of one modality; the last axis of each has unit norm."""

    @property
    def semantic(self) -> Float[Array, "B D"]: ...

    @property
    def dynamic(self) -> Float[Array, "B T D"]: ...

    @property
    def local(self) -> Float[Array, "B windows D"]: ...


def symmetric_info_nce(
    video: Float[Array, "B D"], audio: Float[Array, "B D"], scale: Scalar, axis_name: AxisName = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Match each `video` row to its `audio` row in the global batch, and the reverse: (loss, accuracy).

    Rows have unit norm. Accuracy is the share of items ranked first, averaged over both directions.

    >>> loss, accuracy = symmetric_info_nce(jnp.eye(2), jnp.eye(2), 1.0)
    >>> print(f"{loss:.4f} {accuracy:.1f}")  # ln(1 + 1/e)
    0.3133 1.0
    """
    return _rank(video, audio, scale, None, axis_name)


def dynamic_info_nce(
    video: Float[Array, "B T D"], audio: Float[Array, "B T D"], scale: Scalar, lags: Sequence[int],
    axis_name: AxisName = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`symmetric_info_nce` on the cosine averaged over time; `lags` (steps, nonzero) add negatives.

    Each clip also competes with itself, shifted by every lag. The shift applies to the comparison and not to the
    features, so a lag costs little and leaves no edge artefact to recognise it by.
    """
    batch, steps, _ = video.shape
    shifted = scale * lagged_cosines(video, audio, lags) if lags else None
    return _rank(video.reshape(batch, -1) / steps, audio.reshape(batch, -1), scale, shifted, axis_name)


def window_info_nce(
    video: Float[Array, "B windows D"], audio: Float[Array, "B windows D"], scale: Scalar, axis_name: AxisName = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`symmetric_info_nce` of single windows, each against all other windows of all clips."""
    features = video.shape[-1]
    return symmetric_info_nce(video.reshape(-1, features), audio.reshape(-1, features), scale, axis_name)


def lagged_cosines(
    video: Float[AnyArray, "B T D"], audio: Float[AnyArray, "B T D"], lags: Sequence[int]
) -> Float[Array, "B lags"]:
    """Mean cosine of unit sequences over their overlap, with the audio read `lag` steps later.

    >>> steps = jnp.eye(4)[None]
    >>> lagged_cosines(steps, jnp.roll(steps, 1, axis=1), (0, 1)).tolist()
    [[0.0, 1.0]]
    """
    cosines = jnp.einsum("btd,bsd->bts", video, audio, precision=_EXACT)  # a lag is a diagonal: one matmul for all
    return jnp.stack([jnp.diagonal(cosines, lag, 1, 2).mean(axis=1) for lag in lags], axis=1)


def sf_cavp_loss(
    video: ClipEmbeddings, audio: ClipEmbeddings, scales: Mapping[str, Scalar], weights: Mapping[str, float],
    lags: Sequence[int], axis_name: AxisName = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Weighted sum of the `semantic`, `dynamic` and `window` losses, and metrics of every term.

    `scales` and `weights` are keyed by the names of the terms.
    """
    terms = {
        "semantic": symmetric_info_nce(video.semantic, audio.semantic, scales["semantic"], axis_name),
        "dynamic": dynamic_info_nce(video.dynamic, audio.dynamic, scales["dynamic"], lags, axis_name),
        "window": window_info_nce(video.local, audio.local, scales["window"], axis_name),
    }
    loss = jnp.asarray(sum(weights[name] * term for name, (term, _) in terms.items()))
    metrics = {f"loss_{name}": term for name, (term, _) in terms.items()}
    metrics |= {f"accuracy_{name}": accuracy for name, (_, accuracy) in terms.items()}
    return loss, metrics


def _rank(
    video: Array, audio: Array, scale: Scalar, extra: Array | None, axis_name: AxisName
) -> tuple[Array, Array]:
    """Symmetric cross-entropy of (B, D) pairs; `extra` (B, L) logits are additional negatives in both directions."""
    rows = jnp.arange(video.shape[0])
    targets = rows if axis_name is None else rows + lax.axis_index(axis_name) * video.shape[0]

    def one_way(query: Array, key: Array) -> tuple[Array, Array]:
        keys = key if axis_name is None else lax.all_gather(key, axis_name, tiled=True)
        logits = jnp.matmul(scale * query, keys.T, precision=_EXACT)
        if extra is not None:
            logits = jnp.concatenate([logits, extra], axis=1)
        loss = jax.nn.logsumexp(logits, axis=1) - logits[rows, targets]
        return loss.mean(), (logits.argmax(axis=1) == targets).mean()

    (loss_va, accuracy_va), (loss_av, accuracy_av) = one_way(video, audio), one_way(audio, video)
    means = (loss_va + loss_av) / 2, (accuracy_va + accuracy_av) / 2
    return means if axis_name is None else lax.pmean(means, axis_name)
