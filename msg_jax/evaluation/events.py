"""Sound events: training targets, decoding of a detector's output, matching with the truth, F1.

The event list of a clip is an array (n, 2) of (class index, onset_sec). Frame `j` of a log-mel is centred at
(j + 0.5) / frames_hz, which follows from the front end's padding (`clip.MelSpec`).
"""

from collections.abc import Sequence

from jaxtyping import Float, Int, Real
import numpy as np
from scipy.signal import find_peaks
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

TOLERANCE_SEC = 0.08  # a detected onset matches within +-80 ms: two frames of 25 fps video
EventList = Float[np.ndarray, "_ 2"]


def frame_targets(
    events: Float[np.ndarray, "B E 3"], frames: int, frames_hz: float, classes: int, blur_frames: float = 1.0
) -> Float[np.ndarray, "B T K"]:
    """Return onset targets (B, T, K) float32 in [0, 1] for training a detector.

    Each of `events` (B, E, 3: class, onset_sec, offset_sec; class -1 = unused) becomes a Gaussian of standard deviation
    `blur_frames` around its exact onset, so a peak between two frames keeps its sub-frame position. Overlapping events of
    one class take the larger value.
    """
    events = np.asarray(events, np.float32)
    targets = np.zeros((len(events), frames, classes), np.float32)
    centres = np.arange(frames) + 0.5
    for clip, row in zip(*np.nonzero(events[:, :, 0] >= 0)):
        label, onset_sec, _ = events[clip, row]
        bump = np.exp(-0.5 * ((centres - onset_sec * frames_hz) / blur_frames) ** 2)
        targets[clip, :, int(label)] = np.maximum(targets[clip, :, int(label)], bump)
    return targets


def true_events(events: Real[np.ndarray, "B E 3"]) -> list[np.ndarray]:
    """Convert padded `events` (B, E, 3) to one event list per clip, without unused rows and in order of onset."""
    clips = [clip[clip[:, 0] >= 0, :2] for clip in np.asarray(events)]
    return [clip[np.argsort(clip[:, 1], kind="stable")] for clip in clips]


def decode_events(
    onset_probability: Float[np.ndarray, "B T K"], frames_hz: float, threshold: float, min_gap_sec: float
) -> list[np.ndarray]:
    """Decode `onset_probability` (B, T, K) to event lists: local maxima of at least `threshold`, in order of onset.

    Of two peaks of one class closer than `min_gap_sec`, only the higher one stays. A parabola through the logarithms of
    three frames refines each position; it is exact for the Gaussians of `frame_targets`.
    """
    gap = max(1, round(min_gap_sec * frames_hz))
    # Padding makes a maximum in the first or last frame a peak too.
    padded = np.pad(np.asarray(onset_probability, np.float64), ((0, 0), (1, 1), (0, 0)))
    logs = np.log(np.maximum(padded, 1e-9))
    found = [[] for _ in padded]
    for clip, label in zip(*np.nonzero(padded.max(axis=1) >= threshold)):
        peaks, _ = find_peaks(padded[clip, :, label], height=threshold, distance=gap)
        before, at, after = (logs[clip, peaks + step, label] for step in (-1, 0, 1))
        curvature = before - 2 * at + after
        shift = 0.5 * (before - after) / np.where(curvature < 0, curvature, -np.inf)
        # A peak in the first or last frame has a neighbour on one side only.
        inner = (peaks > 1) & (peaks < padded.shape[1] - 2)
        onsets = (peaks - 0.5 + np.where(inner, np.clip(shift, -0.5, 0.5), 0.0)) / frames_hz
        found[clip].extend((label, onset) for onset in onsets)
    return [np.array(sorted(clip, key=lambda event: event[1]), np.float64).reshape(-1, 2) for clip in found]


def assign(
    true: EventList, predicted: EventList, tolerance_sec: float = TOLERANCE_SEC, class_aware: bool = True
) -> Int[np.ndarray, "hits 2"]:
    """Match the predictions of one clip with its true events: index pairs (hits, 2) of (true, predicted).

    Two events can match within `tolerance_sec` (inclusive), and only within one class if `class_aware`. Each event has at
    most one partner. This is a maximum bipartite matching, so the counts do not depend on the order of events.
    """
    # Rounding of float32 onsets must not exclude those exactly at the tolerance.
    near = np.abs(true[:, None, 1] - predicted[None, :, 1]) <= tolerance_sec + 1e-6
    if class_aware:
        near &= true[:, None, 0] == predicted[None, :, 0]
    if not near.any():
        return np.zeros((0, 2), np.int64)
    partner = maximum_bipartite_matching(csr_array(near), perm_type="column")
    matched = np.flatnonzero(partner >= 0)
    return np.stack([matched, partner[matched]], axis=1)


def unmatched_onsets(true: EventList, predicted: EventList, tolerance_sec: float = TOLERANCE_SEC) -> Float[np.ndarray, " n"]:
    """Return the onsets in seconds of one clip's false negatives, then those of its false positives, under `assign`."""
    hits = assign(true, predicted, tolerance_sec)
    return np.concatenate([np.delete(true[:, 1], hits[:, 0]), np.delete(predicted[:, 1], hits[:, 1])])


def match(
    true: EventList, predicted: EventList, tolerance_sec: float = TOLERANCE_SEC, class_aware: bool = True
) -> tuple[int, int, int]:
    """Count (true positives, false positives, false negatives) of one clip's event lists under `assign`."""
    hits = len(assign(true, predicted, tolerance_sec, class_aware))
    return hits, len(predicted) - hits, len(true) - hits


def clip_counts(
    true: Sequence[EventList], predicted: Sequence[EventList], tolerance_sec: float = TOLERANCE_SEC
) -> dict[str, Int[np.ndarray, "B 3"]]:
    """Count (tp, fp, fn) per clip, (B, 3), for three scores; `micro_f1` turns counts into F1.

    - `event_f1`: class and onset must match.
    - `onset_f1`: only the onset must match. Busy scenes score high by chance.
    - `class_f1`: compares the sets of classes in the clip, at any time.

    Raises ValueError if the two sequences differ in length.
    """
    pairs = list(zip(true, predicted, strict=True))
    present = [(set(t[:, 0].astype(int)), set(p[:, 0].astype(int))) for t, p in pairs]
    counts = {
        "event_f1": [match(t, p, tolerance_sec) for t, p in pairs],
        "onset_f1": [match(t, p, tolerance_sec, class_aware=False) for t, p in pairs],
        "class_f1": [(len(t & p), len(p - t), len(t - p)) for t, p in present],
    }
    return {name: np.array(rows, np.int64).reshape(-1, 3) for name, rows in counts.items()}


def micro_f1(counts: Real[np.ndarray, "... 3"]) -> Float[np.ndarray, "..."]:
    """F1 (...) of counts (tp, fp, fn) (..., 3); NaN without any true or predicted event.

    `micro_f1(counts.sum(0))` is the score of a test set, `micro_f1(counts)` that of each clip.
    """
    hits, extra, missed = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    total = 2 * hits + extra + missed
    return np.divide(2 * hits, total, out=np.full_like(total, np.nan), where=total > 0)
