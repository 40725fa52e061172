"""Onsets and alignment without a trained network: spectral flux of the sound, motion energy of the video.

An onset list is an array (n, 2): seconds in ascending order, and strength in (0, 1], relative to the strongest of the clip.

Scores compare two lists at several tolerances and average the results, as detection scores average over overlaps in computer
vision. At a single tolerance all larger errors count alike, and in a scene of regular steps an error of one period counts as
none.
"""

from jaxtyping import Float, Int, Real, UInt8
import numpy as np
from scipy.ndimage import maximum_filter1d, uniform_filter1d
from scipy.signal import correlate, find_peaks

from msg_jax.clip import MelSpec
from msg_jax.data import mel
from msg_jax.evaluation import events

MEL = MelSpec(audio_hz=16_000, n_fft=512, hop_samples=160, bands=64, high_hz=8_000.0)
"""The log-mel of every metric here: hops of 10 ms and windows of 32 ms, so onsets are exact to within a few hops."""
FLUX_HZ = MEL.frames_hz

TOLERANCES_SEC = (0.05, 0.1, 0.2, 0.4, 0.8)
MOTION_HZ = 25.0
MAX_LAG_SEC = 2.0  # the field's offset grid ends here too

OnsetList = Float[np.ndarray, "_ 2"]

_RANGE = 6.9  # nats (60 dB) below the clip's loudest value that still count as sound
_RISE_FRAMES = 2  # frames over which the rise of the energy is measured: about half a window
_MIN_GAP_SEC = 0.06
_NEIGHBOURHOOD_SEC = 0.2  # an onset must exceed the mean of this neighbourhood
_LEAST = 0.1  # by this share of the clip's largest value
_TREND_SEC = 0.84  # slower changes of motion and sound carry no information about onsets


def log_mel(waveform: Float[np.ndarray, " S"]) -> Float[np.ndarray, "T M"]:
    """Log-mel (T, bands) of a waveform (S,) at `MEL.audio_hz`."""
    return mel.log_mel(waveform, MEL)


def statistics(log_mel: Float[np.ndarray, "T M"]) -> Float[np.ndarray, " 2*M"]:
    """Mean and deviation over time of the level of each band above -60 dB, (2 M,), in units of 10 dB."""
    level = (20.0 / np.log(10.0) * log_mel + 60.0) / 10.0
    return np.concatenate([level.mean(axis=0), level.std(axis=0)])


def flux(log_mel: Float[np.ndarray, "T M"]) -> Float[np.ndarray, " T"]:
    """Spectral flux (T,) at `FLUX_HZ`: the mean rise of the log-mel (T, M) over two frames, in nats.

    Each band is compared with the loudest of its neighbours, so a gliding tone does not count as a rise (SuperFlux, Böck and
    Widmer 2013). Value j is at second (j + 0.5) / FLUX_HZ, the later of the two frames: a window reaches an onset before its
    centre does.
    """
    level = np.maximum(log_mel, log_mel.max() - _RANGE)
    before = maximum_filter1d(level, 3, axis=1)[:-_RISE_FRAMES]
    rise = np.maximum(level[_RISE_FRAMES:] - before, 0.0).mean(axis=1)
    return np.pad(rise, (_RISE_FRAMES, 0))


def sound_onsets(flux: Float[np.ndarray, " T"]) -> OnsetList:
    """Onset list of a spectral flux (T,)."""
    return peaks(flux, FLUX_HZ, offset=0.5)


def motion_energy(frames: UInt8[np.ndarray, "T H W 3"]) -> Float[np.ndarray, " T-1"]:
    """Mean absolute difference (T - 1,) of consecutive video frames (T, H, W, 3), in [0, 1].

    Value j is at second (j + 1) / rate, where the later of the two frames appears.
    """
    grey = frames.astype(np.float32).mean(axis=-1) / 255.0
    return np.abs(np.diff(grey, axis=0)).mean(axis=(1, 2))


def motion_onsets(motion: Float[np.ndarray, " T"]) -> OnsetList:
    """Onset list of the motion energy (T,) of video at `MOTION_HZ`."""
    return peaks(motion, MOTION_HZ, offset=1.0)


def peaks(envelope: Float[np.ndarray, " T"], hz: float, *, offset: float) -> OnsetList:
    """Onset list of the local maxima that exceed their neighbourhood; value j is at second (j + offset) / hz."""
    top = envelope.max(initial=0.0)
    if top <= 1e-6:
        return np.zeros((0, 2))
    width = 2 * round(_NEIGHBOURHOOD_SEC * hz / 2) + 1
    least = uniform_filter1d(envelope, width, mode="nearest") + _LEAST * top
    # Padding makes a maximum in the first or last value a peak too.
    found = find_peaks(np.pad(envelope, 1), distance=max(1, round(_MIN_GAP_SEC * hz)))[0] - 1
    found = found[envelope[found] >= least[found]]
    return np.stack([(found + offset) / hz, envelope[found] / top], axis=1)


# Agreement of two onset lists


def counts(reference: OnsetList, found: OnsetList) -> Int[np.ndarray, "tolerances 3"]:
    """Count (tp, fp, fn) of one clip's onset lists at each of `TOLERANCES_SEC`: (tolerances, 3). See `events.assign`."""
    true, predicted = _as_events(reference), _as_events(found)
    return np.array([events.match(true, predicted, tolerance, class_aware=False) for tolerance in TOLERANCES_SEC])


def f1(counts: Real[np.ndarray, "... tolerances 3"]) -> Float[np.ndarray, "..."] | float:
    """Micro F1 (...) of summed counts (..., tolerances, 3), averaged over the tolerances."""
    return events.micro_f1(counts).mean(axis=-1)


def near_counts(reference: OnsetList, found: OnsetList, tolerance_sec: float) -> tuple[int, int]:
    """Count (reference onsets with an onset of `found` within the tolerance, reference onsets), one to one."""
    hits, _, missed = events.match(_as_events(reference), _as_events(found), tolerance_sec, class_aware=False)
    return hits, hits + missed


def average_precision(reference: OnsetList, found: OnsetList) -> float:
    """Average precision of one clip's onsets `found`, ranked by strength, averaged over `TOLERANCES_SEC`.

    In order of strength, each onset takes the nearest free reference onset within the tolerance. The result is the sum of the
    precisions at these hits over the number of reference onsets. NaN without reference onsets.
    """
    if not len(reference):
        return float("nan")
    ranked = found[np.argsort(-found[:, 1], kind="stable"), 0]
    values = []
    for tolerance in TOLERANCES_SEC:
        free = np.array(reference[:, 0], np.float64)
        hits, precisions = 0, 0.0
        for rank, onset in enumerate(ranked, 1):
            nearest = np.argmin(np.abs(free - onset))
            if abs(free[nearest] - onset) <= tolerance + 1e-6:
                free[nearest] = np.inf
                hits += 1
                precisions += hits / rank
        values.append(precisions / len(reference))
    return float(np.mean(values))


def av_align(video: OnsetList, sound: OnsetList, windows_sec: tuple[float, ...] = TOLERANCES_SEC) -> float:
    """AV-Align (Yariv et al., arXiv 2309.16429): intersection over union of the onsets of video and sound.

    Onsets match one to one within a window; the result is averaged over `windows_sec`. The paper uses a single window of one
    video frame to either side, and optical flow instead of motion energy. NaN if neither list has an onset.
    """
    total = len(video) + len(sound)
    if not total:
        return float("nan")
    seen, heard = _as_events(video), _as_events(sound)
    hits = np.array([len(events.assign(seen, heard, window, class_aware=False)) for window in windows_sec])
    return float((hits / (total - hits)).mean())


def _as_events(onsets: np.ndarray) -> np.ndarray:
    """The event list of an onset list, with one class."""
    return np.stack([np.zeros(len(onsets)), onsets[:, 0]], axis=1)


# Lag between two envelopes


def lag_sec(reference: Float[np.ndarray, " _"], found: Float[np.ndarray, " _"], hz: float) -> float:
    """Return the delay of `found` (T,) behind `reference` (T,) with the largest covariance, within +-`MAX_LAG_SEC`.

    Cuts the longer one to the length of the other. NaN if one of them is constant.
    """
    steps = min(len(reference), len(found))
    x, y = (np.asarray(part[:steps], np.float64) - np.mean(part[:steps]) for part in (reference, found))
    if not (x.any() and y.any()):
        return float("nan")
    lags = np.arange(1 - steps, steps)
    near = np.abs(lags) <= round(MAX_LAG_SEC * hz)
    covariance = correlate(y, x)[near]
    # Ties go to the smallest lag, so that rounding does not decide.
    best = np.flatnonzero(covariance >= covariance.max() - 1e-9 * np.abs(covariance).max())
    return float(min(lags[near][best], key=abs) / hz)


def motion_lag_sec(motion: Float[np.ndarray, " _"], flux: Float[np.ndarray, " _"]) -> float:
    """Return the delay of the sound behind the video, from motion energy at `MOTION_HZ` and spectral flux: see `lag_sec`.

    Square roots keep a single large event from dominating. Subtracting a moving average removes changes slower than events.
    """
    steps = round(FLUX_HZ / MOTION_HZ)
    seconds = (np.arange(len(motion)) + 1) / MOTION_HZ
    smooth = uniform_filter1d(flux, steps, mode="nearest")
    resampled = np.interp(seconds, (np.arange(len(flux)) + 0.5) / FLUX_HZ, smooth)

    def detrended(envelope: np.ndarray) -> np.ndarray:
        root = np.sqrt(envelope)
        return root - uniform_filter1d(root, round(_TREND_SEC * MOTION_HZ), mode="nearest")

    return lag_sec(detrended(motion), detrended(resampled), MOTION_HZ)
