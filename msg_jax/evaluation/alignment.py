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
    reward, truth = _pair(reward, truth)
    usable = _varies(reward) & _varies(truth)
    x, y = reward[usable], truth[usable]
    if ranks:
        x, y = rankdata(x, axis=1), rankdata(y, axis=1)
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    rows = (x * y).sum(axis=1) / np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return _mean(rows, usable)


def headroom_share(reward: np.ndarray, truth: np.ndarray) -> dict[str, float | int]:
    """How much of what an oracle would gain by choosing the best of N the `reward` gains: both (V, N).

    (mean truth of the reward's choice - mean truth) / (mean of the best truth - mean truth): 0 is a random choice, 1
    the oracle's, negative is worse than random. Candidates tied for the highest reward share the choice. Returns
    `value`, the three means as `mean`, `chosen`, `oracle`, and `videos`, `ignored` (not finite); NaN if there is no
    headroom.
    """
    reward, truth = _pair(reward, truth)
    usable = _finite(reward) & _finite(truth)
    x, y = reward[usable], truth[usable]
    mean = chosen = oracle = float("nan")
    if len(x):
        mean, oracle = float(y.mean()), float(y.max(axis=1).mean())
        chosen = float(_truth_at(x == x.max(axis=1, keepdims=True), y).mean())
    value = (chosen - mean) / (oracle - mean) if oracle > mean else float("nan")
    counts = {"videos": len(x), "ignored": int((~usable).sum())}
    return {"value": value, "mean": mean, "chosen": chosen, "oracle": oracle, **counts}


def best_beats_worst(reward: np.ndarray, truth: np.ndarray) -> dict[str, float | int]:
    """Probability that the candidate with the highest reward is truly better than the one with the lowest: (V, N).

    This is what a preference pair relies on; chance is 0.5. Equal truth counts half; videos whose rewards are all equal
    make no pair and are ignored. Returns `value`, `videos`, `ignored`.
    """
    reward, truth = _pair(reward, truth)
    usable = _varies(reward) & _finite(truth)
    x, y = reward[usable], truth[usable]
    best = _truth_at(x == x.max(axis=1, keepdims=True), y)
    worst = _truth_at(x == x.min(axis=1, keepdims=True), y)
    return _mean((best > worst) + 0.5 * (best == worst), usable)


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


def _mean(rows: np.ndarray, usable: np.ndarray) -> dict[str, float | int]:
    value = float(rows.mean()) if len(rows) else float("nan")
    return {"value": value, "videos": int(usable.sum()), "ignored": int((~usable).sum())}
