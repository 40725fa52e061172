"""Preference pairs: a winner and a loser from scored candidates."""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int
import numpy as np

RANKINGS = ("reward", "random", "oracle")
WINNERS = ("best_of_n", "stitched", "real", "real_reconstructed")


class Pairs(NamedTuple):
    """One pair per video. Candidate indices are (V,) for whole candidates, or (V, T) for one candidate per step."""

    best: Int[np.ndarray, " V"] | Int[np.ndarray, "V T"]
    worst: Int[np.ndarray, " V"] | Int[np.ndarray, "V T"]
    gap: Float[np.ndarray, " V"]  # score of the best minus score of the worst
    kept: Bool[np.ndarray, " V"]  # whether the pair is used for training


def rank_candidates(scores: Float[np.ndarray, "V N"], keep_share: float) -> Pairs:
    """Pair each video's best candidate with its worst, by `scores` (V, N).

    Keeps the `keep_share` of pairs with the largest score gap, at least one: a small gap means that the ranking is unsure.
    Never keeps a video whose candidates all tie. Ties go to the lower index.
    """
    gap = scores.max(axis=1) - scores.min(axis=1)
    return Pairs(scores.argmax(axis=1), scores.argmin(axis=1), gap, _largest(gap, keep_share))


def stitch_candidates(scores: Float[np.ndarray, "V N T"], keep_share: float, join_cost: float) -> Pairs:
    """Stitch each video's best and worst moments into a winner and a loser, by step `scores` (V, N, T).

    Each of N candidates may miss a different event of a scene. As wholes, the best and the worst then differ little, and by
    chance. Stitched from the best and the worst moments, they differ where the ranking is sure. A join must raise the
    clip's mean score by `join_cost`. Keeps pairs as `rank_candidates` does.
    """
    best, worst = (best_path(sign * scores, join_cost) for sign in (1, -1))
    highest, lowest = (np.take_along_axis(scores, path[:, None], axis=1)[:, 0].mean(axis=1) for path in (best, worst))
    return Pairs(best, worst, highest - lowest, _largest(highest - lowest, keep_share))


def best_path(scores: Float[np.ndarray, "V N T"], join_cost: float) -> Int[np.ndarray, "V T"]:
    """Return the candidate of each step, (V, T), that maximises the mean of `scores` (V, N, T) less `join_cost` per join.

    >>> best_path(np.array([[[1.0, 1, 0, 0], [0, 0, 1, 1]]]), join_cost=0.4).tolist()  # the join gains 0.5
    [[0, 0, 1, 1]]
    >>> best_path(np.array([[[1.0, 1, 0, 0], [0, 0, 1, 1]]]), join_cost=0.6).tolist()
    [[0, 0, 0, 0]]
    """
    videos, candidates, steps = scores.shape
    cost, rows, stay = join_cost * steps, np.arange(videos), np.arange(candidates)
    total, came_from = scores[:, :, 0], np.zeros((steps, videos, candidates), np.int64)  # dynamic programming (Viterbi)
    for step in range(1, steps):
        leader = total.argmax(axis=1)
        joined = total[rows, leader][:, None] - cost
        came_from[step] = np.where(total >= joined, stay, leader[:, None])
        total = np.maximum(total, joined) + scores[:, :, step]
    path = [total.argmax(axis=1)]
    for step in range(steps - 1, 0, -1):
        path.append(came_from[step, rows, path[-1]])
    return np.stack(path[::-1], axis=1)


def _largest(gap: np.ndarray, share: float) -> np.ndarray:
    """Mask of the `share` of gaps that are largest, at least one; never a gap of 0."""
    kept = np.zeros(len(gap), bool)
    kept[np.argsort(-gap, kind="stable")[: max(1, round(share * len(gap)))]] = True
    return kept & (gap > 0)
