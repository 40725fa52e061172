"""Log-mel spectrograms in numpy, with the exact convention of the published VAEs and vocoders."""

import functools

from jaxtyping import Float, Float32
import numpy as np
import scipy.fft
import scipy.sparse

from msg_jax.clip import MelSpec

# Slaney's mel scale (Auditory Toolbox, 1998): linear up to 1 kHz, logarithmic above.
_LINEAR_HZ_PER_MEL = 200.0 / 3.0
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _LINEAR_HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27.0


def _hz_to_mel(hz: np.ndarray | float) -> np.ndarray:
    return np.where(
        np.less(hz, _BREAK_HZ),
        np.divide(hz, _LINEAR_HZ_PER_MEL),
        _BREAK_MEL + np.log(np.maximum(hz, _BREAK_HZ) / _BREAK_HZ) / _LOG_STEP,
    )


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < _BREAK_MEL, mel * _LINEAR_HZ_PER_MEL, _BREAK_HZ * np.exp(_LOG_STEP * (mel - _BREAK_MEL)))


@functools.cache
def mel_basis(spec: MelSpec) -> Float32[np.ndarray, "M bins"]:
    """Triangular Slaney filters of unit area, (bands, n_fft // 2 + 1), equal to `librosa.filters.mel`; read-only."""
    corners_hz = _mel_to_hz(np.linspace(_hz_to_mel(spec.low_hz), _hz_to_mel(spec.high_hz), spec.bands + 2))
    bins_hz = np.linspace(0.0, spec.audio_hz / 2, spec.n_fft // 2 + 1)
    left, centre, right = (corners_hz[i : i + spec.bands, None] for i in range(3))
    triangles = np.minimum((bins_hz - left) / (centre - left), (right - bins_hz) / (right - centre))
    basis = (np.maximum(triangles, 0.0) * 2.0 / (right - left)).astype(np.float32)
    basis.setflags(write=False)  # all callers share one array
    return basis


@functools.cache
def _sparse_basis(spec: MelSpec) -> scipy.sparse.csr_array:
    # A bin lies in at most two filters. And BLAS threads would compete with the reader threads.
    return scipy.sparse.csr_array(mel_basis(spec))


@functools.cache
def _window(n_fft: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(n_fft) / n_fft)).astype(np.float32)  # periodic Hann


def log_mel(waveform: Float[np.ndarray, "*B S"], spec: MelSpec) -> Float32[np.ndarray, "*B T M"]:
    """Log-mel of a waveform, which is clamped to [-1, 1]; T = S // hop_samples.

    The convention of MMAudio and BigVGAN: reflect padding by (n_fft - hop) / 2, a short-time Fourier transform without
    centring, magnitudes sqrt(|X|^2 + 1e-9), Slaney filters, a floor, then the logarithm to `spec.log_base`.
    """
    pad = (spec.n_fft - spec.hop_samples) // 2
    waveform = np.clip(np.asarray(waveform, np.float32), -1.0, 1.0)
    padded = np.pad(waveform, [(0, 0)] * (waveform.ndim - 1) + [(pad, pad)], mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, spec.n_fft, axis=-1)[..., :: spec.hop_samples, :]
    spectrum = np.asarray(scipy.fft.rfft(frames * _window(spec.n_fft), overwrite_x=True), np.complex64)
    magnitude = np.sqrt(spectrum.real**2 + spectrum.imag**2 + np.float32(1e-9))
    mel = (_sparse_basis(spec) @ magnitude.reshape(-1, magnitude.shape[-1]).T).T
    mel = np.maximum(mel, np.float32(spec.floor)).reshape(*magnitude.shape[:-1], spec.bands)
    return np.log(mel) / np.float32(np.log(spec.log_base))
