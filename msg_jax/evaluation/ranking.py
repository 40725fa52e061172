"""Metrics of an audio-visual model (SF-CAVP) and of its reward: retrieval, and how well the reward ranks candidates.

Pure numpy functions of scores, whichever model computed them. `reward` and `truth` are (V, N): N candidates for each of V
videos.

A reward metric comes as a table (V, 3): one row (numerator, denominator, used) per video. `metric_of` of the summed rows is
the metric. So videos can be resampled, and the tables of several seeds added up. A row is all zero for a video that cannot be
judged (constant or non-finite values); `used` counts the others.
"""

from jaxtyping import Float, Real
import numpy as np
from scipy.stats import rankdata

Table = Float[np.ndarray, "V 3"]
Rewards = Real[np.ndarray, "V N"]
Truths = Real[np.ndarray, "V _"]  # (V, N) too; `_pair` checks it, with an error that names both shapes


def offset_accuracy(scores: Real[np.ndarray, "B L"], true_lag: int) -> float:
    """Share of clips whose score is highest at the true lag: `scores` (B, L), `true_lag` an index into L.

    A tie with another lag is a failure, so a constant score gets 0. Chance is 1 / L.
    """
    scores = np.asarray(scores)
    others = np.delete(scores, true_lag, axis=1).max(axis=1)
    return float((scores[:, true_lag] > others).mean())


def recall_at_1(similarity: Real[np.ndarray, "G N N"]) -> float:
    """R@1 over groups: `similarity` (G, N, N) has queries in rows and the right answers on the diagonal. Chance is 1 / N.

    Groups of a fixed size (64 here) keep the metric comparable between test sets. A tie is a failure.
    """
    similarity = np.asarray(similarity)
    right = np.diagonal(similarity, axis1=-2, axis2=-1)
    wrong = np.where(np.eye(similarity.shape[-1], dtype=bool), -np.inf, similarity).max(axis=-1)
    return float((right > wrong).mean())


def grouped_cosine(
    queries: Real[np.ndarray, "B D"], answers: Real[np.ndarray, "B D"], group: int = 64
) -> Float[np.ndarray, "G N N"]:
    """Cosine similarities (G, group, group) within consecutive groups of paired embeddings, both (B, D).

    Drops the clips after the last whole group. Raises ValueError for fewer than `group` clips.
    """
    groups = len(queries) // group
    if not groups:
        raise ValueError(f"a recall over {group} clips needs at least {group} clips, got {len(queries)}")
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (np.asarray(queries), np.asarray(answers))]
    left, right = (x[: groups * group].reshape(groups, group, -1) for x in unit)
    return left @ right.swapaxes(-1, -2)


def ranking_tables(reward: Rewards, truth: Truths) -> dict[str, Table]:
    """Tables (V, 3) of all metrics of how `reward` ranks candidates (V, N), by name."""
    return {
        "within_video_correlation": correlation_table(reward, truth),
        "within_video_rank_correlation": correlation_table(reward, truth, ranks=True),
        "headroom_share": headroom_table(reward, truth),
        "best_beats_worst": best_beats_worst_table(reward, truth),
    }


def correlation_table(reward: Rewards, truth: Truths, *, ranks: bool = False) -> Table:
    """Table (V, 3) of the correlation between `reward` and `truth` (V, N) among one video's candidates, averaged over videos.

    Pearson, or Spearman with `ranks`. Pooling the candidates of all videos would measure which *video* is easy instead.
    Ignores videos whose reward or truth is constant.
    """
    reward, truth = _pair(reward, truth)
    usable = _varies(reward) & _varies(truth)
    x, y = reward[usable], truth[usable]
    if ranks:
        x, y = rankdata(x, axis=1), rankdata(y, axis=1)
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    rows = (x * y).sum(axis=1) / np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return _table(usable, rows, 1.0)


def headroom_table(reward: Rewards, truth: Truths) -> Table:
    """Table (V, 3) of the headroom share: the gain of the reward's best of N over the gain of an oracle's, both (V, N).

    (truth of the reward's choice - mean truth) / (best truth - mean truth), each averaged over videos. 0 is a random choice,
    1 the oracle's, and a negative value is worse than random. Candidates that tie for the highest reward share the choice.
    """
    reward, truth = _pair(reward, truth)
    usable = _finite(reward) & _finite(truth)
    x, y = reward[usable], truth[usable]
    mean = y.mean(axis=1)
    return _table(usable, _truth_at(x == x.max(axis=1, keepdims=True), y) - mean, y.max(axis=1) - mean)


def best_beats_worst_table(reward: Rewards, truth: Truths, keep_share: float = 1.0) -> Table:
    """Table (V, 3) of the probability that the candidate of highest `reward` has a better `truth` than that of lowest, (V, N).

    Preference pairs rely on this; chance is 0.5. Equal truths count one half. Ignores videos whose rewards all tie, and all
    but the `keep_share` of videos with the largest difference in reward, as `preference.pairs` does.
    """
    reward, truth = _pair(reward, truth)
    usable = _varies(reward) & _finite(truth)
    gap = np.where(usable, np.ptp(reward, axis=1), 0.0)
    kept = np.argsort(-gap, kind="stable")[: max(1, round(keep_share * len(gap)))]
    usable &= np.isin(np.arange(len(gap)), kept)
    x, y = reward[usable], truth[usable]
    best = _truth_at(x == x.max(axis=1, keepdims=True), y)
    worst = _truth_at(x == x.min(axis=1, keepdims=True), y)
    return _table(usable, (best > worst) + 0.5 * (best == worst), 1.0)


def false_order_table(untouched: Real[np.ndarray, " V"], edited: Real[np.ndarray, " V"]) -> Table:
    """Table (V, 3) of how often scores (V,) prefer an edited sound to the original. Ties count one half; NaN is ignored."""
    usable = np.isfinite(untouched) & np.isfinite(edited)
    return _table(usable, ((edited > untouched) + 0.5 * (edited == untouched))[usable], 1.0)


def metric_of(sums: Real[np.ndarray, "... 3"]) -> Float[np.ndarray, "..."]:
    """The metric (...) of summed table rows (..., 3); NaN if the denominator is 0."""
    above, below = np.asarray(sums, np.float64)[..., 0], np.asarray(sums, np.float64)[..., 1]
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def _table(usable: np.ndarray, numerator: np.ndarray, denominator: np.ndarray | float) -> np.ndarray:
    table = np.zeros((len(usable), 3))
    table[usable] = np.stack(np.broadcast_arrays(numerator, denominator, 1.0), axis=1)
    return table


def _pair(reward: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    reward, truth = np.asarray(reward, np.float64), np.asarray(truth, np.float64)
    if reward.shape != truth.shape or reward.ndim != 2:
        raise ValueError(f"reward and truth must both be (videos, candidates), got {reward.shape} and {truth.shape}")
    return reward, truth


def _finite(rows: np.ndarray) -> np.ndarray:
    return np.asarray(np.isfinite(rows).all(axis=1))


def _varies(rows: np.ndarray) -> np.ndarray:
    return _finite(rows) & (rows.max(axis=1) > rows.min(axis=1))


def _truth_at(chosen: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean truth of the chosen candidates of each video."""
    return (chosen * truth).sum(axis=1) / chosen.sum(axis=1)
