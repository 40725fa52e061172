"""The level of a sound: loudness by ITU-R BS.1770 in LUFS, and true peak in dBTP."""

from jaxtyping import Float
import numpy as np
import pyloudnorm
from scipy import ndimage, signal

from msg_jax.errors import UserError

CEILING_DBTP = -1.0
"""The highest true peak that `at_loudness` leaves, that of streaming platforms and of EBU R 128."""

SHORTEST_SEC = 0.4
"""A block of BS.1770: a shorter sound has no loudness."""

_OVERSAMPLING = 4  # as in BS.1770, annex 2
_LOOK_AHEAD_SEC = 0.005
_MARGIN_DB = 0.1  # a gain that changes moves peaks between samples a little

Waveform = Float[np.ndarray, " S"]


def loudness_lufs(waveform: Waveform, hz: int) -> float:
    """Integrated loudness of a sound of at least `SHORTEST_SEC`; minus infinity for silence."""
    with np.errstate(divide="ignore"):
        return float(pyloudnorm.Meter(hz).integrated_loudness(np.asarray(waveform, np.float64)))


def true_peak_dbtp(waveform: Waveform) -> float:
    """The highest magnitude between and at the samples, in dB of full scale."""
    with np.errstate(divide="ignore"):
        return float(20 * np.log10(_peaks(waveform).max(initial=0.0)))


def at_loudness(waveform: Waveform, hz: int, target_lufs: float) -> Waveform:
    """The sound with an integrated loudness of `target_lufs` and a true peak of at most `CEILING_DBTP`.

    Peaks above are turned down by a look-ahead limiter, and the gain makes up for what that takes away. Silence stays silence.
    Raises UserError if the sound is too short to have a loudness, or if its peaks stand too far above its loudness.
    """
    if len(waveform) < SHORTEST_SEC * hz:
        raise UserError(f"--loudness={target_lufs:g} needs a sound of at least {SHORTEST_SEC} s, and this one has "
                        f"{len(waveform) / hz:.2f} s: leave --loudness out.")
    gain_db = target_lufs - loudness_lufs(waveform, hz)
    if not np.isfinite(gain_db):
        return waveform
    for _ in range(12):
        levelled = _limited(waveform * 10 ** (gain_db / 20), hz)
        missing = target_lufs - loudness_lufs(levelled, hz)
        if abs(missing) < 0.1:
            return levelled
        gain_db += missing
    raise UserError(f"The sound cannot have --loudness={target_lufs:g} with a true peak of {CEILING_DBTP:g} dBTP, because its "
                    "peaks stand too far above the rest: give a lower number.")


def _peaks(waveform: Waveform) -> Waveform:
    """The highest magnitude near each sample, between samples too."""
    finer = signal.resample_poly(np.asarray(waveform, np.float64), _OVERSAMPLING, 1)
    return np.maximum(np.abs(waveform), np.abs(finer).reshape(-1, _OVERSAMPLING).max(axis=1))


def _limited(waveform: Waveform, hz: int) -> Waveform:
    """The sound with no true peak above the ceiling; the gain falls and rises smoothly around each peak."""
    ceiling = 10 ** ((CEILING_DBTP - _MARGIN_DB) / 20)
    allowed = np.minimum(1.0, ceiling / np.maximum(_peaks(waveform), ceiling))
    size = 2 * round(_LOOK_AHEAD_SEC * hz) + 1
    window = np.hanning(size + 2)[1:-1]
    # Each gain is an average of minima over windows that all hold its sample, and so no larger than what is allowed there.
    lowest = ndimage.minimum_filter1d(allowed, size, mode="nearest")
    gain = ndimage.convolve1d(lowest, window / window.sum(), mode="nearest")
    return (waveform * gain).astype(np.float32)
