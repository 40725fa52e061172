"""Distances between distributions of features or class scores: FD, KL, Inception Score, KID.

Definitions follow av-benchmark, the field's common protocol. Report a value under a name that includes the backbone of the
features (`fd_detector`, `fd_passt`). All computation is in float64.
"""

from jaxtyping import Float, Real
import numpy as np
from scipy import linalg
from scipy.special import log_expit, log_softmax, logsumexp

# av-benchmark shuffles with numpy's legacy generator and this seed; another shuffle changes the results.
FIELD_SEED = 2020


def frechet_distance(features: Real[np.ndarray, "N D"], reference: Real[np.ndarray, "M _"]) -> float:
    """Fréchet distance between Gaussians fitted to `features` (N, D) and `reference` (M, D).

    |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), covariances with N - 1. With S = R^T R, the trace of the root is the sum
    of the singular values of R1 R2^T. No matrix is squared or inverted, so the result is exact even with fewer samples than
    dimensions, where roots of S1 S2 become complex.

    Raises ValueError for fewer than two samples, for different widths, and for values that are not finite.
    """
    features, reference = _double(features), _double(reference)
    if min(len(features), len(reference)) < 2:
        raise ValueError(f"a Fréchet distance needs two samples on each side, got {len(features)} and {len(reference)}")
    if features.shape[1:] != reference.shape[1:] or features.ndim != 2:
        raise ValueError(f"a Fréchet distance needs features of one width, got {features.shape} and {reference.shape}")
    first, second = _covariance_factor(features), _covariance_factor(reference)
    trace_of_root = np.sum(linalg.svdvals(first @ second.T, overwrite_a=True))
    gap = features.mean(axis=0) - reference.mean(axis=0)
    # Rounding can make the distance of equal distributions slightly negative.
    return max(float(gap @ gap + (first**2).sum() + (second**2).sum() - 2 * trace_of_root), 0.0)


def _covariance_factor(features: np.ndarray) -> np.ndarray:
    """R with R^T R the covariance of `features` (N, D); at most D rows."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    rows, columns = centred.shape
    if rows <= columns:
        return centred
    return np.asarray(linalg.qr(centred, mode="r", overwrite_a=True, check_finite=True)[0])[:columns]


def kl_softmax(logits: Real[np.ndarray, "N K"], reference: Real[np.ndarray, "N K"]) -> Float[np.ndarray, " N"]:
    """KL(softmax(reference) || softmax(logits)) of each pair, (N,) in nats. The field reports the mean."""
    log_p, log_q = log_softmax(_double(reference), axis=1), log_softmax(_double(logits), axis=1)
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=1)


def kl_sigmoid(logits: Real[np.ndarray, "N K"], reference: Real[np.ndarray, "N K"]) -> Float[np.ndarray, " N"]:
    """sum_k p_k log(p_k / q_k) of each pair, (N,), with p, q = sigmoid of `reference` and of `logits`.

    For multi-label scores. It has the field's form, without the (1 - p) terms, so it can be negative.
    """
    log_p, log_q = log_expit(_double(reference)), log_expit(_double(logits))
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=1)


def inception_score(logits: Real[np.ndarray, "N K"], splits: int = 10) -> tuple[float, float]:
    """Mean and standard deviation over `splits` of exp(mean KL(p(y|x) || p(y))), from class `logits` (N, K).

    Shuffles the samples with the field's fixed permutation first. Split i begins at sample i N // splits.
    Raises ValueError for fewer samples than splits.
    """
    count = len(logits)
    if count < splits:
        raise ValueError(f"an Inception Score with {splits} splits needs {splits} samples, got {count}")
    order = np.random.RandomState(FIELD_SEED).permutation(count)
    log_p = log_softmax(_double(logits)[order], axis=1)
    scores = []
    for part in range(splits):
        chunk = log_p[part * count // splits : (part + 1) * count // splits]
        marginal = logsumexp(chunk, axis=0) - np.log(len(chunk))
        scores.append(np.exp((np.exp(chunk) * (chunk - marginal)).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def kernel_distance(
    features: Real[np.ndarray, "N D"], reference: Real[np.ndarray, "M D"], subsets: int = 100, subset_size: int = 1000
) -> tuple[float, float]:
    """KID: mean and standard deviation over random subsets of the unbiased squared MMD, with kernel (x.y / D + 1)^3.

    A subset is at most as large as the smaller of `features` (N, D) and `reference` (M, D). One legacy generator draws both
    sides in turn, as in the field. Raises ValueError for fewer than two samples.
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
