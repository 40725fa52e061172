"""A codebook of sound events that no label names: found in real clips, sorted by what is heard and by what is seen.

1. `onsets`: peaks of the spectral flux say *when* a sound may start.
2. `heard_codes`: k-means over the audio features that follow each onset sorts them by sound, into more codes than needed.
3. `merge`: codes that the video cannot tell apart become one kind.
4. `refine`: an onset's kind is what detection in the audio and prediction from the video say together; an onset of which
   the video knows nothing fades.

Onsets of many clips are two arrays, clip index (J,) and second (J,).
"""

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.cluster.vq import kmeans2
from scipy.signal import find_peaks

_RISE_FRAMES = 2  # mel frames over which energy must have risen
_MIN_GAP_SEC = 0.06
_SPAN_SEC = 0.2  # after an onset, in which its sound is described
_COMPONENTS = 24
_BLUR_STEPS = 0.8
_SEEN = 0.5  # probability of all kinds together, by the video, from which on an onset counts whole


def onsets(log_mels: np.ndarray, frames_hz: float, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """(clip, second) of peaks of the spectral flux of log-mels (B, T, M): mean rise of at least `threshold` nats."""
    rise = np.maximum(log_mels[:, _RISE_FRAMES:] - log_mels[:, :-_RISE_FRAMES], 0).mean(axis=2)
    rise = np.pad(rise, ((0, 0), (_RISE_FRAMES, 0)))
    gap = max(1, round(_MIN_GAP_SEC * frames_hz))
    peaks = [find_peaks(clip, height=threshold, distance=gap, prominence=threshold / 2)[0] for clip in rise]
    clip = np.repeat(np.arange(len(peaks)), [len(each) for each in peaks])
    # A window hears an onset before its centre reaches it.
    return clip, (np.concatenate([*peaks, np.zeros(0)]) - 0.5) / frames_hz


def heard_codes(fast: np.ndarray, hz: float, clip: np.ndarray, second: np.ndarray, codes: int, seed: int) -> np.ndarray:
    """Code (J,) of each onset: k-means over directions of the principal components of the features after it.

    `fast` are audio features (B, T, D) at `hz`. There are fewer codes where there are few onsets.
    """
    codes = min(codes, len(clip) // 2)
    if codes < 2:
        return np.zeros(len(clip), np.int64)
    steps = np.floor(second * hz).astype(int)[:, None] + np.arange(round(_SPAN_SEC * hz))
    described = fast[clip[:, None], np.clip(steps, 0, fast.shape[1] - 1)].reshape(len(clip), -1).astype(np.float32)
    rng = np.random.default_rng(seed)
    mean = described.mean(axis=0)
    some = described[rng.permutation(len(described))[:4000]] - mean
    axes = np.linalg.eigh(some.T @ some)[1][:, : -_COMPONENTS - 1 : -1]
    parts = (described - mean) @ axes
    parts /= np.linalg.norm(parts, axis=1, keepdims=True) + 1e-6
    return kmeans2(parts, codes, minit="++", seed=seed, iter=30)[1].astype(np.int64)


def one_hot(labels: np.ndarray, kinds: int) -> np.ndarray:
    return np.eye(kinds, dtype=np.float32)[labels]


def targets(
    clip: np.ndarray, second: np.ndarray, labels: np.ndarray, clips: int, steps: int, hz: float
) -> np.ndarray:
    """Training targets (clips, steps, K) float16: labels (J, K) in [0, 1], each a short Gaussian around its onset."""
    found = np.zeros((clips, steps, labels.shape[1]), np.float16)
    reach = np.arange(-3, 4)
    for where, at, label in zip(clip, second * hz, labels):
        near = int(at) + reach
        near = near[(near >= 0) & (near < steps)]
        bump = np.exp(-0.5 * ((near + 0.5 - at) / _BLUR_STEPS) ** 2)
        found[where, near] = np.maximum(found[where, near], bump[:, None] * label)
    return found


def at_onsets(probability: np.ndarray, hz: float, clip: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The largest probability (J, K) within a step of each onset, of maps (B, T, K) at `hz`."""
    steps = np.floor(second * hz).astype(int)[:, None] + np.arange(-1, 2)
    return probability[clip[:, None], np.clip(steps, 0, probability.shape[1] - 1)].max(axis=1)


def merge(codes: np.ndarray, seen: np.ndarray, kinds: int) -> np.ndarray:
    """Kind (J,) of each onset: codes (J,) joined, by average linkage, until at most `kinds` are left.

    Codes are alike whose onsets look alike: by the cosine of the mean prediction from the video, `seen` (J, codes).
    """
    used = np.unique(codes)
    if len(used) <= 1:
        return np.zeros_like(codes)
    mean = np.stack([seen[codes == code].mean(axis=0) for code in used])
    groups = fcluster(linkage(mean + 1e-9, "average", metric="cosine"), kinds, "maxclust") - 1
    return groups[np.searchsorted(used, codes)]


def refine(heard: np.ndarray, seen: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Labels (J, K) of the next round from the probabilities of both modalities at the onsets, (J, K) each.

    Given the kind, what is heard and what is seen are taken as independent: posterior = heard * seen / prior. Its sum
    is less than one where the video sees no event of any kind.
    """
    joint = (heard + 1e-3) * (seen + 1e-3) / (labels.mean(axis=0) + 0.02)
    share = np.minimum(1.0, seen.sum(axis=1, keepdims=True) / _SEEN)
    return (joint / joint.sum(axis=1, keepdims=True) * share).astype(np.float32)
