"""Percentile bootstrap over clips, deterministic in its seed, and a jackknife for what cannot be resampled.

Almost every statistic reported here is a function of sums over clips, so a resample is a row of multinomial weights and
all resamples are one matrix product.
"""

from collections.abc import Callable, Sequence
import zlib

import numpy as np
from scipy.stats import norm

from msg_jax.evaluation.events import micro_f1


def interval(
    per_clip: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> dict[str, float]:
    """`{"value", "low", "high"}` of `statistic(sums)` under resampling of clips with replacement.

    `per_clip` is (N, C); `statistic` maps sums over clips (..., C) to values (...). `low` and `high` are the
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


def f1_interval(counts: np.ndarray, **options) -> dict[str, float]:
    """Interval of micro F1 from per-clip counts (N, 3), see `events.clip_counts`."""
    return interval(counts, micro_f1, **options)


def f1_difference_interval(counts: np.ndarray, baseline: np.ndarray, **options) -> dict[str, float]:
    """Interval of micro F1 of `counts` minus that of `baseline`, both (N, 3) on the *same* clips in the same order.

    Clips are resampled in pairs, so what makes a clip hard for both systems cancels.
    """
    if np.shape(counts) != np.shape(baseline):
        raise ValueError(f"paired counts differ in shape: {np.shape(counts)} and {np.shape(baseline)}")
    pairs = np.concatenate([counts, baseline], axis=1)
    return interval(pairs, lambda sums: micro_f1(sums[..., :3]) - micro_f1(sums[..., 3:]), **options)


def mean_interval(values: np.ndarray, **options) -> dict[str, float]:
    """Interval of the mean of `values` (N,). For a paired difference of means pass the differences."""
    values = np.asarray(values, np.float64)
    pairs = np.stack([values, np.ones_like(values)], axis=1)
    return interval(pairs, lambda sums: sums[..., 0] / sums[..., 1], **options)


def jackknife_groups(names: Sequence[str], groups: int = 20) -> np.ndarray:
    """A group (N,) for each clip, by its name alone: two systems leave out the same clips together."""
    return np.array([zlib.crc32(name.encode()) % groups for name in names])


def jackknife(statistic: Callable[[np.ndarray], float], groups: np.ndarray) -> np.ndarray:
    """Values (G,) of a statistic of all clips but those of one group. `statistic` gets a mask (N,) of the clips to use.

    For what is no function of sums over clips, such as a Fréchet distance, whose resamples with replacement would be
    biased upwards.
    """
    return np.array([statistic(groups != group) for group in np.unique(groups)])


def jackknife_interval(value: float, replicates: np.ndarray, level: float = 0.95) -> dict[str, float]:
    """`{"value", "low", "high"}` from the values without one group each: normal, with the delete-a-group variance.

    For a paired difference pass differences of values and of replicates with the same groups.
    """
    groups = len(replicates)
    error = np.sqrt((groups - 1) / groups * np.square(replicates - replicates.mean()).sum())
    reach = float(norm.ppf((1 + level) / 2) * error)
    return {"value": float(value), "low": float(value) - reach, "high": float(value) + reach}
