"""How well scores of an audio-visual model (SF-CAVP) tell right from wrong, and how good a reward they make.

Pure numpy functions of scores; who computes the scores does not matter here. `reward` and `truth` are (V, N): N
candidates for each of V videos. A row that cannot be judged (constant, or not finite) is left out *and counted*.
"""

import numpy as np
from scipy.stats import rankdata


def offset_accuracy(scores: np.ndarray, true_lag: int) -> float:
    """Share of clips whose score is highest at the true lag: `scores` (B, L), `true_lag` an index into L.

    A tie with another lag is no success: a score that does not depend on the lag gets 0. Chance is 1 / L.
    """
    scores = np.asarray(scores)
    others = np.delete(scores, true_lag, axis=1).max(axis=1)
    return float((scores[:, true_lag] > others).mean())


def recall_at_1(similarity: np.ndarray) -> float:
    """R@1 over groups: `similarity` (G, N, N), queries in rows, the right answer on the diagonal; chance is 1 / N.

    Groups of one size (64 here) keep the figure comparable between test sets. A tie is no success.
    """
    similarity = np.asarray(similarity)
    right = np.diagonal(similarity, axis1=-2, axis2=-1)
    wrong = np.where(np.eye(similarity.shape[-1], dtype=bool), -np.inf, similarity).max(axis=-1)
    return float((right > wrong).mean())


def grouped_cosine(queries: np.ndarray, answers: np.ndarray, group: int = 64) -> np.ndarray:
    """Cosine similarities (G, group, group) inside consecutive groups of paired embeddings, both (B, D).

    Clips beyond the last whole group are not used. Raises ValueError if there is not one whole group.
    """
    groups = len(queries) // group
    if not groups:
        raise ValueError(f"a recall over {group} clips needs at least {group} clips, got {len(queries)}")
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (np.asarray(queries), np.asarray(answers))]
    left, right = (x[: groups * group].reshape(groups, group, -1) for x in unit)
    return left @ right.swapaxes(-1, -2)


def within_video_correlation(reward: np.ndarray, truth: np.ndarray, *, ranks: bool = False) -> dict[str, float | int]:
    """Mean over videos of the correlation between `reward` and `truth` (V, N) among one video's candidates.

    Pearson, or Spearman with `ranks`. Pooling videos would measure which *video* is easy instead. Returns `value`,
    `videos` (used) and `ignored` (no variation in reward or truth); NaN if none is usable.
    """
    return _figure(correlation_table(reward, truth, ranks=ranks))


def headroom_share(reward: np.ndarray, truth: np.ndarray) -> dict[str, float | int]:
    """How much of what an oracle would gain by choosing the best of N the `reward` gains: both (V, N).

    (mean truth of the reward's choice - mean truth) / (mean of the best truth - mean truth): 0 is a random choice, 1
    the oracle's, negative is worse than random. Candidates tied for the highest reward share the choice. Returns
    `value`, the three means as `mean`, `chosen`, `oracle`, and `videos`, `ignored` (not finite); NaN if there is no
    headroom.
    """
    table, truth = headroom_table(reward, truth), np.asarray(truth, np.float64)
    gained, possible, videos = (float(total) for total in table.sum(axis=0))
    mean = float(truth[table[:, 2] > 0].mean()) if videos else float("nan")
    videos = videos or float("nan")
    return {"mean": mean, "chosen": mean + gained / videos, "oracle": mean + possible / videos} | _figure(table)


def best_beats_worst(reward: np.ndarray, truth: np.ndarray, keep_share: float = 1.0) -> dict[str, float | int]:
    """Probability that the candidate with the highest reward is truly better than the one with the lowest: (V, N).

    This is what a preference pair relies on; chance is 0.5. Equal truth counts half; videos whose rewards are all equal
    make no pair and are ignored, as are all but the `keep_share` of videos with the largest difference in reward. Returns
    `value`, `videos`, `ignored`.
    """
    return _figure(order_table(reward, truth, keep_share))


# What a figure is made of, video by video: rows (numerator, denominator, whether it is used), all zero where it is not. The
# figure is `quotient` of their sum, so that videos can be resampled and the tables of several seeds added up.


def ranking_tables(reward: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """The tables (V, 3) of how `reward` ranks candidates (V, N), by the name of the figure."""
    return {
        "within_video_correlation": correlation_table(reward, truth),
        "within_video_rank_correlation": correlation_table(reward, truth, ranks=True),
        "headroom_share": headroom_table(reward, truth),
        "best_beats_worst": order_table(reward, truth),
    }


def correlation_table(reward: np.ndarray, truth: np.ndarray, *, ranks: bool = False) -> np.ndarray:
    """The table (V, 3) of `within_video_correlation`."""
    reward, truth = _pair(reward, truth)
    usable = _varies(reward) & _varies(truth)
    x, y = reward[usable], truth[usable]
    if ranks:
        x, y = rankdata(x, axis=1), rankdata(y, axis=1)
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    rows = (x * y).sum(axis=1) / np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return _table(usable, rows, 1.0)


def headroom_table(reward: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The table (V, 3) of `headroom_share`: what the reward gains over a random choice, and what the oracle does."""
    reward, truth = _pair(reward, truth)
    usable = _finite(reward) & _finite(truth)
    x, y = reward[usable], truth[usable]
    mean = y.mean(axis=1)
    return _table(usable, _truth_at(x == x.max(axis=1, keepdims=True), y) - mean, y.max(axis=1) - mean)


def order_table(reward: np.ndarray, truth: np.ndarray, keep_share: float = 1.0) -> np.ndarray:
    """The table (V, 3) of `best_beats_worst`."""
    reward, truth = _pair(reward, truth)
    usable = _varies(reward) & _finite(truth)
    gap = np.where(usable, np.ptp(reward, axis=1), 0.0)
    kept = np.argsort(-gap, kind="stable")[: max(1, round(keep_share * len(gap)))]  # as of the pairs that are trained on
    usable &= np.isin(np.arange(len(gap)), kept)
    x, y = reward[usable], truth[usable]
    best = _truth_at(x == x.max(axis=1, keepdims=True), y)
    worst = _truth_at(x == x.min(axis=1, keepdims=True), y)
    return _table(usable, (best > worst) + 0.5 * (best == worst), 1.0)


def false_order_table(untouched: np.ndarray, edited: np.ndarray) -> np.ndarray:
    """The table (V, 3) of how often scores (V,) prefer an edited sound to the true one; ties count half, NaN is not used."""
    usable = np.isfinite(untouched) & np.isfinite(edited)
    return _table(usable, ((edited > untouched) + 0.5 * (edited == untouched))[usable], 1.0)


def quotient(sums: np.ndarray) -> np.ndarray:
    """The figure (...) of sums (..., 3) of a table's rows; NaN where the denominator is 0."""
    above, below = np.asarray(sums, np.float64)[..., 0], np.asarray(sums, np.float64)[..., 1]
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def _table(usable: np.ndarray, above: np.ndarray, below: np.ndarray | float) -> np.ndarray:
    table = np.zeros((len(usable), 3))
    table[usable] = np.stack(np.broadcast_arrays(above, below, 1.0), axis=1)
    return table


def _figure(table: np.ndarray) -> dict[str, float | int]:
    videos = int(table[:, 2].sum())
    return {"value": float(quotient(table.sum(axis=0))), "videos": videos, "ignored": len(table) - videos}


def _pair(reward: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    reward, truth = np.asarray(reward, np.float64), np.asarray(truth, np.float64)
    if reward.shape != truth.shape or reward.ndim != 2:
        raise ValueError(f"reward and truth must both be (videos, candidates), got {reward.shape} and {truth.shape}")
    return reward, truth


def _finite(rows: np.ndarray) -> np.ndarray:
    return np.isfinite(rows).all(axis=1)


def _varies(rows: np.ndarray) -> np.ndarray:
    return _finite(rows) & (rows.max(axis=1) > rows.min(axis=1))


def _truth_at(chosen: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return (chosen * truth).sum(axis=1) / chosen.sum(axis=1)
