"""Codebook of sound events without labels: onsets of real clips, clustered by their sound and by what the video shows.

1. `onsets`: peaks of the spectral flux are candidates for the start of a sound.
2. `cluster_onsets`: k-means over the audio features after each onset gives more codes than kinds.
3. `merge`: codes that the video cannot tell apart become one kind.
4. `refine`: the label of an onset combines detection in the audio with prediction from the video. An onset that the video
   does not predict fades out.

The onsets of all clips are two arrays: clip index (J,) and second (J,).
"""

from jaxtyping import Float, Float16, Float32, Int
import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.cluster.vq import kmeans2
from scipy.signal import find_peaks

_RISE_FRAMES = 2  # mel frames over which the rise of the energy is measured
_MIN_GAP_SEC = 0.06
_SPAN_SEC = 0.2  # the audio features of an onset are those of this span after it
_COMPONENTS = 24  # principal components kept for k-means
_PCA_ONSETS = 4000
_BLUR_STEPS = 0.8  # standard deviation of the targets
_CONFIDENT = 0.5  # an onset has full weight if the video's probabilities of all kinds add up to this


def onsets(
    log_mels: Float[np.ndarray, "B T M"], frames_hz: float, threshold: float
) -> tuple[Int[np.ndarray, " J"], Float[np.ndarray, " J"]]:
    """Return (clip, second) of each peak of the spectral flux that rises by at least `threshold` nats, band mean."""
    rise = np.maximum(log_mels[:, _RISE_FRAMES:] - log_mels[:, :-_RISE_FRAMES], 0).mean(axis=2)
    rise = np.pad(rise, ((0, 0), (_RISE_FRAMES, 0)))
    gap = max(1, round(_MIN_GAP_SEC * frames_hz))
    peaks = [find_peaks(clip, height=threshold, distance=gap, prominence=threshold / 2)[0] for clip in rise]
    clip = np.repeat(np.arange(len(peaks)), [len(each) for each in peaks])
    # An onset is in the middle of the two frames of its rise.
    return clip, (np.concatenate([*peaks, np.zeros(0)]) - 0.5) / frames_hz


def cluster_onsets(
    fast: Float[np.ndarray, "B T D"],
    hz: float,
    clip: Int[np.ndarray, " J"],
    second: Float[np.ndarray, " J"],
    codes: int,
    seed: int,
) -> Int[np.ndarray, " J"]:
    """Cluster onsets by sound: k-means over the direction of the principal components of the features after each onset.

    `fast` are audio features (B, T, D) at `hz`. Returns codes (J,) below `codes`; there are at most J / 2 of them.
    """
    codes = min(codes, len(clip) // 2)
    if codes < 2:
        return np.zeros(len(clip), np.int64)
    steps = np.floor(second * hz).astype(int)[:, None] + np.arange(round(_SPAN_SEC * hz))
    features = fast[clip[:, None], np.clip(steps, 0, fast.shape[1] - 1)].reshape(len(clip), -1).astype(np.float32)
    rng = np.random.default_rng(seed)
    mean = features.mean(axis=0)
    sample = features[rng.permutation(len(features))[:_PCA_ONSETS]] - mean
    axes = np.linalg.eigh(sample.T @ sample)[1][:, : -_COMPONENTS - 1 : -1]
    components = (features - mean) @ axes
    components /= np.linalg.norm(components, axis=1, keepdims=True) + 1e-6
    clusters = kmeans2(
        components, codes, minit="++", iter=30,
        seed=seed,  # pyright: ignore[reportCallIssue]  # missing in the stubs; `rng` draws other numbers
    )
    return clusters[1].astype(np.int64)


def one_hot(labels: Int[np.ndarray, " J"], kinds: int) -> Float32[np.ndarray, "J K"]:
    """One-hot labels (J, K) of K = `kinds`."""
    return np.eye(kinds, dtype=np.float32)[labels]


def targets(
    clip: Int[np.ndarray, " J"],
    second: Float[np.ndarray, " J"],
    labels: Float[np.ndarray, "J K"],
    clips: int,
    steps: int,
    hz: float,
) -> Float16[np.ndarray, "clips steps K"]:
    """Training targets (clips, steps, K) at `hz`: a short Gaussian around each onset, scaled by its label in [0, 1].

    Overlapping Gaussians of one kind take the larger value.
    """
    maps = np.zeros((clips, steps, labels.shape[1]), np.float16)
    reach = np.arange(-3, 4)
    for row, position, label in zip(clip, second * hz, labels):
        near = int(position) + reach
        near = near[(near >= 0) & (near < steps)]
        bump = np.exp(-0.5 * ((near + 0.5 - position) / _BLUR_STEPS) ** 2)
        maps[row, near] = np.maximum(maps[row, near], bump[:, None] * label)
    return maps


def probability_at_onsets(
    probability: Float[np.ndarray, "B T K"], hz: float, clip: Int[np.ndarray, " J"], second: Float[np.ndarray, " J"]
) -> Float[np.ndarray, "J K"]:
    """Largest probability (J, K) within one step of each onset, from maps (B, T, K) at `hz`."""
    steps = np.floor(second * hz).astype(int)[:, None] + np.arange(-1, 2)
    return probability[clip[:, None], np.clip(steps, 0, probability.shape[1] - 1)].max(axis=1)


def merge(codes: Int[np.ndarray, " J"], predicted: Float[np.ndarray, "J N"], kinds: int) -> Int[np.ndarray, " J"]:
    """Merge the codes (J,) of onsets into at most `kinds` kinds (J,), by average linkage.

    The distance between two codes is the cosine distance of their mean prediction from the video. `predicted` (J, N) has
    the probability of each of N codes at each onset.
    """
    used = np.unique(codes)
    if len(used) <= 1:
        return np.zeros_like(codes)
    mean = np.stack([predicted[codes == code].mean(axis=0) for code in used])
    groups = fcluster(linkage(mean + 1e-9, "average", metric="cosine"), kinds, "maxclust") - 1
    return groups[np.searchsorted(used, codes)]


def refine(
    detected: Float[np.ndarray, "J K"], predicted: Float[np.ndarray, "J K"], labels: Float[np.ndarray, "J K"]
) -> Float32[np.ndarray, "J K"]:
    """Labels (J, K) of the next round: posterior = detected * predicted / prior, normalised.

    `detected` are probabilities from the audio, `predicted` those from the video; given the kind they count as independent.
    The prior is the mean of the current `labels`. Labels add up to less than one where the video predicts no event.
    """
    joint = (detected + 1e-3) * (predicted + 1e-3) / (labels.mean(axis=0) + 0.02)
    confidence = np.minimum(1.0, predicted.sum(axis=1, keepdims=True) / _CONFIDENT)
    return (joint / joint.sum(axis=1, keepdims=True) * confidence).astype(np.float32)
