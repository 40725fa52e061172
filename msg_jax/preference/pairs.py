"""From scored candidates to winner and loser."""

from typing import NamedTuple

import numpy as np

RANKINGS = ("reward", "random", "oracle")
WINNERS = ("best_of_n", "stitched", "real", "real_reconstructed")


class Pairs(NamedTuple):
    """One pair per video, as candidate indices: of whole candidates (V,), or of the one that is heard at each step (V, T)."""

    best: np.ndarray
    worst: np.ndarray
    gap: np.ndarray  # (V,) difference in score between best and worst
    kept: np.ndarray  # (V,) bool: whether the pair is trained on


def rank_candidates(scores: np.ndarray, keep_share: float) -> Pairs:
    """The best and the worst of each video's candidates by `scores` (V, N), and which pairs to keep.

    Kept are the `keep_share` of pairs with the largest gap: a small gap says that the ranking does not know. Ties go to
    the lower index; a video whose candidates all tie is not kept.
    """
    gap = scores.max(axis=1) - scores.min(axis=1)
    return Pairs(scores.argmax(axis=1), scores.argmin(axis=1), gap, _largest(gap, keep_share))


def stitch_candidates(scores: np.ndarray, keep_share: float, join_cost: float) -> Pairs:
    """At every step the best and the worst of each video's candidates by `scores` (V, N, T), changing over where it pays.

    Of N attempts at three events each may get another one wrong; best and worst of them as a whole then differ in little
    and by chance. Joined from what is good in each, and from what is bad, they differ where the ranking knows better.
    `join_cost` is what a join must gain in the mean score of the clip. Which pairs are kept: as in `rank_candidates`.
    """
    best, worst = (best_path(sign * scores, join_cost) for sign in (1, -1))
    gained, lost = (np.take_along_axis(scores, path[:, None], axis=1)[:, 0].mean(axis=1) for path in (best, worst))
    return Pairs(best, worst, gained - lost, _largest(gained - lost, keep_share))


def best_path(scores: np.ndarray, join_cost: float) -> np.ndarray:
    """The candidate of each step, (V, T), with the largest mean of `scores` (V, N, T) less `join_cost` for every change.

    >>> best_path(np.array([[[1.0, 1, 0, 0], [0, 0, 1, 1]]]), join_cost=0.4).tolist()  # the join brings 0.5
    [[0, 0, 1, 1]]
    >>> best_path(np.array([[[1.0, 1, 0, 0], [0, 0, 1, 1]]]), join_cost=0.6).tolist()
    [[0, 0, 0, 0]]
    """
    videos, candidates, steps = scores.shape
    cost, rows, stay = join_cost * steps, np.arange(videos), np.arange(candidates)
    total, came_from = scores[:, :, 0], np.zeros((steps, videos, candidates), np.int64)  # dynamic programming (Viterbi)
    for step in range(1, steps):
        leader = total.argmax(axis=1)
        changed = total[rows, leader][:, None] - cost
        came_from[step] = np.where(total >= changed, stay, leader[:, None])
        total = np.maximum(total, changed) + scores[:, :, step]
    path = [total.argmax(axis=1)]
    for step in range(steps - 1, 0, -1):
        path.append(came_from[step, rows, path[-1]])
    return np.stack(path[::-1], axis=1)


def _largest(gap: np.ndarray, share: float) -> np.ndarray:
    kept = np.zeros(len(gap), bool)
    kept[np.argsort(-gap, kind="stable")[: max(1, round(share * len(gap)))]] = True
    return kept & (gap > 0)
