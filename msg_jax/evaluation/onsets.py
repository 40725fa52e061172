"""What a clip says without any trained network, above all when something starts in it.

Sound is heard by its spectral flux, pictures are seen by their motion energy. An onset list is (n, 2): seconds in order, and
strength in (0, 1], the strongest of the clip being 1.

Whether two lists agree is asked at several tolerances and the answers are averaged, as detection is averaged over
overlaps in computer vision: at a single one every error beyond it counts alike, and in a scene of regular steps an error
of one period counts as none.
"""

import numpy as np
from scipy.ndimage import maximum_filter1d, uniform_filter1d
from scipy.signal import correlate, find_peaks

from msg_jax.clip import MelSpec
from msg_jax.data import mel
from msg_jax.evaluation import events

MEL = MelSpec(audio_hz=16_000, n_fft=512, hop_samples=160, bands=64, high_hz=8_000.0)
"""The log-mel of every figure here: 10 ms steps and windows of 32 ms, so that an onset is known within a few of them."""
FLUX_HZ = MEL.frames_hz

TOLERANCES_SEC = (0.05, 0.1, 0.2, 0.4, 0.8)
MOTION_HZ = 25.0
MAX_LAG_SEC = 2.0  # the field's offset grid ends here too

_RANGE = 6.9  # nats below the clip's loudest value (60 dB) beyond which differences are no sound
_RISE_FRAMES = 2  # over which energy must have risen: about half a window
_MIN_GAP_SEC = 0.06
_NEIGHBOURHOOD_SEC = 0.2  # an onset must stand out from the mean around it
_LEAST = 0.1  # by this share of the clip's largest rise
_TREND_SEC = 0.84  # slower changes of motion and sound say nothing about when something starts


def log_mel(waveform: np.ndarray) -> np.ndarray:
    """Waveform (S,) at `MEL.audio_hz` -> log-mel (T, bands)."""
    return mel.log_mel(waveform, MEL)


def statistics(log_mel: np.ndarray) -> np.ndarray:
    """Mean level above -60 dB and its deviation over time for every band, (2 M,), in units of 10 dB."""
    level = (20.0 / np.log(10.0) * log_mel + 60.0) / 10.0
    return np.concatenate([level.mean(axis=0), level.std(axis=0)])


def flux(log_mel: np.ndarray) -> np.ndarray:
    """Spectral flux (T,) at `FLUX_HZ`: the mean rise of the log-mel (T, M) over two frames, in nats.

    Each band is compared with the loudest of its neighbours, so that a gliding tone is no rise (SuperFlux, Böck and
    Widmer 2013). Value j belongs to second (j + 0.5) / FLUX_HZ: of the two frames the later one, because a window hears
    an onset before its centre reaches it.
    """
    level = np.maximum(log_mel, log_mel.max() - _RANGE)
    before = maximum_filter1d(level, 3, axis=1)[:-_RISE_FRAMES]
    rise = np.maximum(level[_RISE_FRAMES:] - before, 0.0).mean(axis=1)
    return np.pad(rise, (_RISE_FRAMES, 0))


def sound_onsets(flux: np.ndarray) -> np.ndarray:
    """The onset list of a spectral flux."""
    return peaks(flux, FLUX_HZ, offset=0.5)


def motion_energy(frames: np.ndarray) -> np.ndarray:
    """Mean absolute difference (T - 1,) between pictures uint8 (T, H, W, 3) that follow each other, in [0, 1].

    Value j belongs to second (j + 1) / rate, when the later of the two appears.
    """
    grey = frames.astype(np.float32).mean(axis=-1) / 255.0
    return np.abs(np.diff(grey, axis=0)).mean(axis=(1, 2))


def motion_onsets(motion: np.ndarray) -> np.ndarray:
    """The onset list of the motion energy of pictures at `MOTION_HZ`."""
    return peaks(motion, MOTION_HZ, offset=1.0)


def peaks(envelope: np.ndarray, hz: float, *, offset: float) -> np.ndarray:
    """Local maxima that stand out from their neighbourhood, as an onset list; value j belongs to (j + offset) / hz."""
    top = envelope.max(initial=0.0)
    if top <= 1e-6:
        return np.zeros((0, 2))
    width = 2 * round(_NEIGHBOURHOOD_SEC * hz / 2) + 1
    least = uniform_filter1d(envelope, width, mode="nearest") + _LEAST * top
    # Padded, so that the first and last value can be maxima too.
    found = find_peaks(np.pad(envelope, 1), distance=max(1, round(_MIN_GAP_SEC * hz)))[0] - 1
    found = found[envelope[found] >= least[found]]
    return np.stack([(found + offset) / hz, envelope[found] / top], axis=1)


# How well two onset lists agree


def counts(reference: np.ndarray, found: np.ndarray) -> np.ndarray:
    """(tp, fp, fn) of one clip's onset lists at each of `TOLERANCES_SEC`: (tolerances, 3). See `events.assign`."""
    true, heard = _as_events(reference), _as_events(found)
    return np.array([events.match(true, heard, tolerance, class_aware=False) for tolerance in TOLERANCES_SEC])


def f1(counts: np.ndarray) -> np.ndarray:
    """Micro F1 (...) of summed counts (..., tolerances, 3), averaged over the tolerances."""
    return events.micro_f1(counts).mean(axis=-1)


def average_precision(reference: np.ndarray, found: np.ndarray) -> float:
    """Average precision of one clip's onsets `found`, ranked by strength, averaged over `TOLERANCES_SEC`.

    In order of strength each onset takes the nearest reference onset within the tolerance that is still free. The sum
    of the precisions at which one is taken, over the number of reference onsets; NaN where there is none.
    """
    if not len(reference):
        return float("nan")
    ranked = found[np.argsort(-found[:, 1], kind="stable"), 0]
    values = []
    for tolerance in TOLERANCES_SEC:
        free = np.array(reference[:, 0], np.float64)
        taken, precisions = 0, 0.0
        for rank, onset in enumerate(ranked, 1):
            nearest = np.argmin(np.abs(free - onset))
            if abs(free[nearest] - onset) <= tolerance + 1e-6:
                free[nearest] = np.inf
                taken += 1
                precisions += taken / rank
        values.append(precisions / len(reference))
    return float(np.mean(values))


def av_align(pictures: np.ndarray, sound: np.ndarray, windows_sec: tuple[float, ...] = TOLERANCES_SEC) -> float:
    """AV-Align (Yariv et al., arXiv 2309.16429): onsets of pictures and sound that coincide, over all onsets there are.

    Intersection over union of the two lists, matched one to one within a window; averaged over `windows_sec`. The
    paper's own figure has one window, one video frame to either side, and takes optical flow for motion. NaN if neither
    list has an onset.
    """
    both = len(pictures) + len(sound)
    if not both:
        return float("nan")
    seen, heard = _as_events(pictures), _as_events(sound)
    hits = np.array([len(events.assign(seen, heard, window, class_aware=False)) for window in windows_sec])
    return float((hits / (both - hits)).mean())


def _as_events(onsets: np.ndarray) -> np.ndarray:
    """Onsets as an event list of one class."""
    return np.stack([np.zeros(len(onsets)), onsets[:, 0]], axis=1)


# How far one envelope lies behind another


def lag_sec(reference: np.ndarray, found: np.ndarray, hz: float) -> float:
    """The delay of `found` (T,) behind `reference` (T,) with the largest covariance, within +-`MAX_LAG_SEC`.

    NaN where one of them does not vary, which has no delay.
    """
    steps = min(len(reference), len(found))
    x, y = (np.asarray(part[:steps], np.float64) - np.mean(part[:steps]) for part in (reference, found))
    if not (x.any() and y.any()):
        return float("nan")
    lags = np.arange(1 - steps, steps)
    near = np.abs(lags) <= round(MAX_LAG_SEC * hz)
    covariance = correlate(y, x)[near]
    # Among equals the smallest delay, so that the answer does not hang on rounding.
    best = np.flatnonzero(covariance >= covariance.max() - 1e-9 * np.abs(covariance).max())
    return float(min(lags[near][best], key=abs) / hz)


def motion_lag_sec(motion: np.ndarray, flux: np.ndarray) -> float:
    """The delay of sound behind pictures, from motion energy at `MOTION_HZ` and spectral flux: see `lag_sec`.

    Square roots, so that one large event does not decide alone, without what changes more slowly than events do.
    """
    steps = round(FLUX_HZ / MOTION_HZ)
    seconds = (np.arange(len(motion)) + 1) / MOTION_HZ
    smooth = uniform_filter1d(flux, steps, mode="nearest")
    heard = np.interp(seconds, (np.arange(len(flux)) + 0.5) / FLUX_HZ, smooth)

    def moments(envelope):
        root = np.sqrt(envelope)
        return root - uniform_filter1d(root, round(_TREND_SEC * MOTION_HZ), mode="nearest")

    return lag_sec(moments(motion), moments(heard), MOTION_HZ)
