"""Time stretching: sound faster or slower at the same pitch."""

import math

from jaxtyping import Float32
import numpy as np

_FRAME_SEC = 0.04
_REACH_SEC = 0.012  # how far a frame may be moved to continue the one before it; more than a period of 100 Hz


def stretch(waveform: Float32[np.ndarray, " S"], speed: float, hz: int) -> Float32[np.ndarray, " N"]:
    """Plays a waveform `speed` times as fast at its pitch: N = ceil(S / speed) samples.

    WSOLA (Verhelst and Roelands, ICASSP 1993): overlapping frames are laid half a frame apart. Each is taken from near its
    time in the original, where it is most similar to what follows the frame before. An onset may be out of its place by
    12 ms, or sound twice where a slower sound repeats the frame that holds it.
    """
    hop, reach = round(_FRAME_SEC * hz / 2), round(_REACH_SEC * hz)
    size, length = 2 * hop, math.ceil(len(waveform) / speed)
    count = math.ceil(length / hop) + 1
    padded = np.pad(waveform.astype(np.float64), (hop + reach, 2 * size + reach + round(2 * hop * speed)))
    energy = np.concatenate([[0.0], np.cumsum(padded**2)])
    window, shifts = np.hanning(size + 1)[:-1], np.arange(-reach, reach + 1)
    out = np.zeros((count + 1) * hop)
    following = np.zeros(size)
    for i in range(count):
        start = reach + round(i * hop * speed)
        if i:
            likeness = np.correlate(padded[start - reach : start + reach + size], following, "valid")
            norms = np.sqrt(np.maximum(energy[start + shifts + size] - energy[start + shifts], 1e-12))
            start += shifts[np.argmax(likeness / norms - 1e-9 * np.abs(shifts))]  # of equals, the nearest
        out[i * hop : i * hop + size] += window * padded[start : start + size]
        following = padded[start + hop : start + hop + size]
    return out[hop : hop + length].astype(np.float32)
