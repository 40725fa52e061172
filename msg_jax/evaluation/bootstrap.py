"""Confidence intervals over clips: percentile bootstrap, and a jackknife for statistics that cannot be resampled.

Almost every statistic here is a function of sums over clips. A resample is then a row of multinomial weights, and all
resamples are one matrix product. Results are deterministic in the seed.
"""

from collections.abc import Callable, Sequence
from typing import Any
import zlib

from jaxtyping import Bool, Float, Int, Real
import numpy as np
from scipy.stats import norm

from msg_jax.evaluation.events import micro_f1


def interval(
    per_clip: Real[np.ndarray, "N C"],
    statistic: Callable[[np.ndarray], Any],
    *,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> dict[str, float]:
    """Return `{"value", "low", "high"}` of `statistic(sums)`, resampling clips with replacement.

    `statistic` maps sums over clips (..., C) of `per_clip` (N, C) to values (...). `low` and `high` are the
    (1 - level) / 2 quantiles. Raises ValueError without clips.
    """
    per_clip = np.asarray(per_clip, np.float64)
    clips = len(per_clip)
    if not clips:
        raise ValueError("a bootstrap needs at least one clip")
    weights = np.random.default_rng(seed).multinomial(clips, np.full(clips, 1 / clips), size=resamples)
    draws = statistic(weights @ per_clip)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return {"value": float(statistic(per_clip.sum(axis=0))), "low": float(low), "high": float(high)}


def f1_interval(counts: Real[np.ndarray, "N 3"], **options: Any) -> dict[str, float]:
    """Interval of micro F1, from per-clip counts (N, 3) as `events.clip_counts` returns them."""
    return interval(counts, micro_f1, **options)


def f1_difference_interval(
    counts: Real[np.ndarray, "N 3"], baseline: Real[np.ndarray, "_ 3"], **options: Any
) -> dict[str, float]:
    """Interval of micro F1 of `counts` minus that of `baseline`, both (N, 3) on the *same* clips in the same order.

    The bootstrap is paired: what makes a clip hard for both systems cancels. Raises ValueError if the shapes differ.
    """
    if np.shape(counts) != np.shape(baseline):
        raise ValueError(f"paired counts differ in shape: {np.shape(counts)} and {np.shape(baseline)}")
    pairs = np.concatenate([counts, baseline], axis=1)
    return interval(pairs, lambda sums: micro_f1(sums[..., :3]) - micro_f1(sums[..., 3:]), **options)


def mean_interval(values: Real[np.ndarray, " N"], **options: Any) -> dict[str, float]:
    """Interval of the mean of `values` (N,). For a paired difference of means, pass the differences."""
    values = np.asarray(values, np.float64)
    pairs = np.stack([values, np.ones_like(values)], axis=1)
    return interval(pairs, lambda sums: sums[..., 0] / sums[..., 1], **options)


def jackknife_groups(names: Sequence[str], groups: int = 20) -> Int[np.ndarray, " N"]:
    """Assign each clip to a group (N,), by a hash of its name: two systems leave out the same clips together."""
    return np.array([zlib.crc32(name.encode(errors="surrogateescape")) % groups for name in names])


def jackknife(
    statistic: Callable[[Bool[np.ndarray, " N"]], float], groups: Int[np.ndarray, " N"]
) -> Float[np.ndarray, " G"]:
    """Return the replicates (G,): `statistic(mask)` of all clips except one group, for each group.

    `mask` (N,) selects the clips. Use it for statistics that are not functions of sums over clips. One is the Fréchet
    distance, which resampling with replacement would bias upwards.
    """
    return np.array([statistic(groups != group) for group in np.unique(groups)])


def jackknife_interval(value: float, replicates: Float[np.ndarray, " G"], level: float = 0.95) -> dict[str, float]:
    """Return `{"value", "low", "high"}`: a normal interval with the delete-a-group variance of `replicates` (G,).

    For a paired difference, pass the differences of values and of replicates with the same groups.
    """
    groups = len(replicates)
    error = np.sqrt((groups - 1) / groups * np.square(replicates - replicates.mean()).sum())
    reach = float(norm.ppf((1 + level) / 2) * error)
    return {"value": float(value), "low": float(value) - reach, "high": float(value) + reach}
