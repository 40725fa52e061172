"""Metrics of a generated waveform against the reference's, sample by sample: the multi-resolution STFT distance and PESQ."""

from collections.abc import Iterator

from jaxtyping import Float
import numpy as np
import scipy.fft

HZ = 16_000
"""The rate of both metrics: PESQ's wideband mode knows no other."""

RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
"""FFT size, hop and window in samples, as published."""
_FLOOR = 1e-8  # of a squared magnitude, as in auraloss
_FRAMES_AT_ONCE = 64  # they fit a cache, which halves the time

PESQ_LONGEST_SEC = 19.0
"""The library holds 50 utterances and crashes beyond them. The 51st can begin after 19.4 s at the earliest."""
PESQ_SHORTEST_SEC = 0.25


def stft_distance(
    found: Float[np.ndarray, " S"], reference: Float[np.ndarray, " S"],
    resolutions: tuple[tuple[int, int, int], ...] = RESOLUTIONS,
) -> float:
    """Multi-resolution STFT distance of two waveforms (Yamamoto et al., arXiv 1910.11480), as `auraloss` computes it.

    The sum of two terms, averaged over `resolutions`. Spectral convergence is the norm of the difference of the magnitudes
    over the norm of the reference's. The other term is the mean absolute difference of their natural logarithms. A waveform
    must be longer than half of the largest FFT.
    """
    return float(np.mean([_distance(found, reference, *resolution) for resolution in resolutions]))


def _distance(found: np.ndarray, reference: np.ndarray, n_fft: int, hop: int, window: int) -> float:
    squared_gap = squared_reference = log_gap = 0.0
    values = 0
    for x, y in zip(_magnitudes(found, n_fft, hop, window), _magnitudes(reference, n_fft, hop, window)):
        squared_gap += np.square(y - x).sum(dtype=np.float64)
        squared_reference += np.square(y).sum(dtype=np.float64)
        log_gap += np.abs(np.log(y) - np.log(x)).sum(dtype=np.float64)
        values += x.size
    return float(np.sqrt(squared_gap / squared_reference) + log_gap / values)


def _magnitudes(waveform: np.ndarray, n_fft: int, hop: int, window: int) -> Iterator[np.ndarray]:
    """Magnitudes (T, n_fft // 2 + 1) of blocks of frames, centred by reflection as in `torch.stft`."""
    hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(window) / window)  # periodic
    before = (n_fft - window) // 2
    hann = np.pad(hann, (before, n_fft - window - before)).astype(waveform.dtype)
    padded = np.pad(waveform, n_fft // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop]
    for start in range(0, len(frames), _FRAMES_AT_ONCE):
        spectrum = np.asarray(scipy.fft.rfft(frames[start : start + _FRAMES_AT_ONCE] * hann, axis=-1))
        yield np.sqrt(np.maximum(np.real(spectrum) ** 2 + np.imag(spectrum) ** 2, _FLOOR))


def pesq(found: Float[np.ndarray, " S"], reference: Float[np.ndarray, " S"]) -> float:
    """PESQ (ITU-T P.862.2, wideband) of waveforms (S,) at `HZ`, from 1.0 to 4.6, by the package `pesq`.

    Raises ValueError with the reason where it is undefined.
    """
    import pesq as library  # pyright: ignore[reportMissingImports] an optional dependency

    seconds = len(reference) / HZ
    if seconds < PESQ_SHORTEST_SEC:
        raise ValueError(f"the clip is shorter than {PESQ_SHORTEST_SEC:g} s")
    if seconds > PESQ_LONGEST_SEC:
        raise ValueError(f"the clip is longer than {PESQ_LONGEST_SEC:g} s")
    for side, waveform in (("reference", reference), ("generated", found)):
        if not waveform.any():
            raise ValueError(f"the {side} sound is silent")
    try:
        return float(library.pesq(HZ, reference, found, "wb"))
    except library.NoUtterancesError:
        raise ValueError("the reference has no utterance") from None
    except (library.PesqError, ValueError) as error:  # ValueError: the library's number is not finite
        raise ValueError(f"the library gives no number ({error})") from error
