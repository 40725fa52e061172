"""Distances between distributions of features or class scores: FD, KL, Inception Score, KID.

Definitions are those of av-benchmark, the field's common protocol; the backbone that made the features belongs in the
name under which a value is reported (`fd_detector`, `fd_passt`). Computed in float64.
"""

import numpy as np
from scipy import linalg
from scipy.special import log_expit, log_softmax, logsumexp

# av-benchmark shuffles with numpy's legacy generator from this seed; another shuffle gives other numbers.
FIELD_SEED = 2020


def frechet_distance(features: np.ndarray, reference: np.ndarray) -> float:
    """Fréchet distance of Gaussians fitted to `features` (N, D) and `reference` (M, D).

    |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), covariances with N - 1. With S = R^T R the trace of the root is the sum
    of the singular values of R1 R2^T: no matrix is squared or inverted, so that it is exact with fewer samples than
    dimensions too, where roots of S1 S2 turn complex. Raises ValueError with fewer than two samples, for widths that
    differ, and where a value is not finite.
    """
    features, reference = _double(features), _double(reference)
    if min(len(features), len(reference)) < 2:
        raise ValueError(f"a Fréchet distance needs two samples on each side, got {len(features)} and {len(reference)}")
    if features.shape[1:] != reference.shape[1:] or features.ndim != 2:
        raise ValueError(f"features of two shapes cannot be compared: {features.shape} and {reference.shape}")
    first, second = _covariance_factor(features), _covariance_factor(reference)
    trace_of_root = linalg.svd(first @ second.T, compute_uv=False, overwrite_a=True).sum()
    gap = features.mean(axis=0) - reference.mean(axis=0)
    # rounding can leave a hair less than nothing between equal distributions
    return max(float(gap @ gap + (first**2).sum() + (second**2).sum() - 2 * trace_of_root), 0.0)


def _covariance_factor(features: np.ndarray) -> np.ndarray:
    """R with R^T R the covariance of `features` (N, D); at most D rows."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    rows, columns = centred.shape
    return centred if rows <= columns else linalg.qr(centred, mode="r", overwrite_a=True, check_finite=True)[0][:columns]


def kl_softmax(logits: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """KL(softmax(reference) || softmax(logits)) of each pair, (N,) in nats for (N, K) both. The field reports the mean."""
    log_p, log_q = log_softmax(_double(reference), axis=1), log_softmax(_double(logits), axis=1)
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=1)


def kl_sigmoid(logits: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """sum_k p_k log(p_k / q_k) of each pair, (N,), with p, q = sigmoid of `reference`, `logits` (N, K).

    For multi-label scores. It has the field's form, without the (1 - p) terms, and can therefore be negative.
    """
    log_p, log_q = log_expit(_double(reference)), log_expit(_double(logits))
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=1)


def inception_score(logits: np.ndarray, splits: int = 10) -> tuple[float, float]:
    """Mean and standard deviation over `splits` of exp(mean KL(p(y|x) || p(y))) from class `logits` (N, K).

    Samples are shuffled first with the field's fixed permutation, then cut into `splits` runs, i N // splits each.
    Raises ValueError with fewer samples than splits.
    """
    count = len(logits)
    if count < splits:
        raise ValueError(f"an Inception Score with {splits} splits needs as many samples, got {count}")
    order = np.random.RandomState(FIELD_SEED).permutation(count)
    log_p = log_softmax(_double(logits)[order], axis=1)
    scores = []
    for part in range(splits):
        chunk = log_p[part * count // splits : (part + 1) * count // splits]
        marginal = logsumexp(chunk, axis=0) - np.log(len(chunk))
        scores.append(np.exp((np.exp(chunk) * (chunk - marginal)).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def kernel_distance(
    features: np.ndarray, reference: np.ndarray, subsets: int = 100, subset_size: int = 1000
) -> tuple[float, float]:
    """KID: mean and standard deviation over random subsets of the unbiased squared MMD, kernel (x.y / D + 1)^3.

    `features` (N, D), `reference` (M, D); a subset is no larger than the smaller set. Both sides are drawn in turn from
    one legacy generator, as the field does.
    """
    features, reference = _double(features), _double(reference)
    size = min(subset_size, len(features), len(reference))
    if size < 2:
        raise ValueError(f"a kernel distance needs two samples on each side, got {len(features)} and {len(reference)}")
    rng = np.random.RandomState(FIELD_SEED)
    values = []
    for _ in range(subsets):
        x = features[rng.choice(len(features), size, replace=False)]
        y = reference[rng.choice(len(reference), size, replace=False)]
        xx, yy, xy = (_cubic_kernel(a, b) for a, b in ((x, x), (y, y), (x, y)))
        within = xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)
        values.append(within / (size * (size - 1)) - 2 * xy.mean())
    return float(np.mean(values)), float(np.std(values))


def _cubic_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _double(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float64)
