"""From scored candidates to winner and loser."""

from typing import NamedTuple

import numpy as np

RANKINGS = ("reward", "random", "oracle")
WINNERS = ("best_of_n", "real", "real_reconstructed")


class Pairs(NamedTuple):
    """One pair per video, as candidate indices (V,); `gap` is the score difference between best and worst."""

    best: np.ndarray
    worst: np.ndarray
    gap: np.ndarray
    kept: np.ndarray  # (V,) bool: whether the pair is trained on


def rank_candidates(scores: np.ndarray, keep_share: float) -> Pairs:
    """The best and the worst of each video's candidates by `scores` (V, N), and which pairs to keep.

    Kept are the `keep_share` of pairs with the largest gap: a small gap says that the ranking does not know. Ties go to
    the lower index; a video whose candidates all tie is not kept.
    """
    best, worst = scores.argmax(axis=1), scores.argmin(axis=1)
    gap = scores.max(axis=1) - scores.min(axis=1)
    kept = np.zeros(len(scores), bool)
    kept[np.argsort(-gap, kind="stable")[: max(1, round(keep_share * len(scores)))]] = True
    return Pairs(best, worst, gap, kept & (gap > 0))
