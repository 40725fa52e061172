"""The spectrograms of the released audio networks, in numpy; each follows its publisher's convention."""

import functools

from jaxtyping import Float, Float32
import numpy as np
import scipy.fft

from msg_jax.clip import MelSpec
from msg_jax.data import mel

VGGISH_HZ = SYNCHFORMER_HZ = 16_000
VGGISH_FRAMES, VGGISH_BANDS = 96, 64  # 0.96 s
SYNCHFORMER_FRAMES, SYNCHFORMER_BANDS = 66, 128
SEGMENT_SAMPLES, SEGMENT_STRIDE = 10_240, 5_120  # 0.64 s every 0.32 s: 16 video frames every 8

_SYNCHFORMER_MEAN, _SYNCHFORMER_STD = -4.2677393, 4.5689974


def panns_log_mel(waveform: Float[np.ndarray, " S"], spec: MelSpec) -> Float32[np.ndarray, "T M"]:
    """PANNs' (torchlibrosa's) power log-mel in dB; T = 1 + S // hop.

    Centred frames with reflected ends, Slaney filters, 10 log10(max(x, 1e-10)). Ignores `log_base` and `floor` of `spec`.
    """
    power = _power(np.pad(waveform, spec.n_fft // 2, mode="reflect"), spec.n_fft, spec.n_fft, spec.hop_samples)
    return (10.0 * np.log10(np.maximum(power @ mel.mel_basis(spec).T, 1e-10))).astype(np.float32)


def vggish_examples(waveform: Float[np.ndarray, " S"]) -> Float32[np.ndarray, "N 96 64"]:
    """VGGish's log-mel at 16 kHz, cut into N consecutive examples of 0.96 s.

    Windows of 25 ms every 10 ms, magnitudes, filters that are triangles on the HTK mel scale, log(x + 0.01). An incomplete
    last example is dropped, as the publisher does.
    """
    magnitude = np.sqrt(_power(waveform, 400, 512, 160, frame=400))
    log_mel = np.log(magnitude @ _vggish_filters().T + 0.01).astype(np.float32)
    count = len(log_mel) // VGGISH_FRAMES
    return log_mel[: count * VGGISH_FRAMES].reshape(count, VGGISH_FRAMES, VGGISH_BANDS)


def synchformer_spectrograms(waveform: Float[np.ndarray, " S"]) -> Float32[np.ndarray, "N 66 128"]:
    """Synchformer's normalised log-mels of N overlapping segments of a waveform at 16 kHz.

    Each segment on its own: torchaudio's power mel (window 400 in 1024, hop 160, HTK filters without area normalisation),
    log(x + 1e-6), one frame of zeros appended, normalised by AST's mean and twice its standard deviation.
    """
    starts = range(0, len(waveform) - SEGMENT_SAMPLES + 1, SEGMENT_STRIDE)
    found = []
    for start in starts:
        padded = np.pad(waveform[start : start + SEGMENT_SAMPLES], 512, mode="reflect")
        log_mel = np.log(_power(padded, 400, 1024, 160) @ _htk_filters().T + 1e-6)
        found.append(np.pad(log_mel, ((0, SYNCHFORMER_FRAMES - len(log_mel)), (0, 0))))
    spectrograms = np.array(found).reshape(len(starts), SYNCHFORMER_FRAMES, SYNCHFORMER_BANDS)
    return ((spectrograms - _SYNCHFORMER_MEAN) / (2 * _SYNCHFORMER_STD)).astype(np.float32)


def _power(samples: np.ndarray, window: int, n_fft: int, hop: int, frame: int | None = None) -> np.ndarray:
    """Power spectra (frames, n_fft // 2 + 1) of all complete frames of `frame` samples (default `n_fft`).

    A periodic Hann window of `window` samples is centred in the frame.
    """
    frame = frame or n_fft
    hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(window) / window)
    frames = np.lib.stride_tricks.sliding_window_view(np.asarray(samples, np.float64), frame)[::hop]
    return np.square(np.abs(np.asarray(scipy.fft.rfft(frames * np.pad(hann, (frame - window) // 2), n_fft))))


def _to_htk(hz):
    return 2595.0 * np.log10(1.0 + np.asarray(hz, np.float64) / 700.0)


@functools.cache
def _vggish_filters() -> np.ndarray:
    bins = _to_htk(np.linspace(0.0, VGGISH_HZ / 2, 257))
    filters = _triangles(bins, np.linspace(_to_htk(125.0), _to_htk(7500.0), VGGISH_BANDS + 2))
    filters[:, 0] = 0.0
    return filters


@functools.cache
def _htk_filters() -> np.ndarray:
    corners = np.linspace(_to_htk(0.0), _to_htk(SYNCHFORMER_HZ / 2), SYNCHFORMER_BANDS + 2)
    corners_hz = 700.0 * (10.0 ** (corners / 2595.0) - 1.0)
    return _triangles(np.linspace(0.0, SYNCHFORMER_HZ / 2, 513), corners_hz)


def _triangles(bins: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Triangular filters (bands, bins), linear in the unit of `corners`; filter i peaks at corner i + 1."""
    left, centre, right = (corners[start : len(corners) - 2 + start, None] for start in range(3))
    return np.maximum(np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)), 0.0)
