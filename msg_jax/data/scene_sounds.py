"""Sound synthesis for the procedural scenes: decaying modes and bursts of filtered noise."""

from jaxtyping import Float
import numpy as np
from scipy import fft

_AUDIBLE_DB = 30.0  # an event ends when its sound has decayed by this much


def modes(
    hz: int,
    frequencies_hz: Float[np.ndarray, " modes"],
    decays_sec: Float[np.ndarray, " modes"],
    gains: Float[np.ndarray, " modes"],
) -> Float[np.ndarray, " S"]:
    """A sum of decaying sinusoids at `hz`, until the slowest has decayed by 60 dB.

    Modes above 0.45 `hz` are left out.
    """
    audible = frequencies_hz < 0.45 * hz
    pole = (2j * np.pi * frequencies_hz - 1.0 / decays_sec)[audible] / hz
    # exp(p (a K + b)) = exp(p a K) exp(p b): two short tables and a product instead of one exponential per sample
    block = 128
    blocks = int(np.ceil(6.9 * decays_sec.max() * hz / block))
    coarse = gains[audible] * np.exp(np.outer(np.arange(blocks) * block, pole))
    # einsum, not @: BLAS threads cost more than they bring on arrays this small, far more on a busy machine
    return np.einsum("am,mb->ab", coarse, np.exp(np.outer(pole, np.arange(block)))).imag.ravel()


def noise_burst(
    rng: np.random.Generator, hz: int, low_hz: float, high_hz: float, decay_sec: float
) -> Float[np.ndarray, " S"]:
    """A decaying burst of noise between two frequencies, with a peak of about 1."""
    samples = int(6.9 * decay_sec * hz)
    spectrum = np.asarray(fft.rfft(rng.standard_normal(samples, np.float32)))
    frequencies = np.fft.rfftfreq(samples, 1.0 / hz)
    spectrum *= 1.0 / (1.0 + (low_hz / (frequencies + 1.0)) ** 6 + (frequencies / high_hz) ** 6)
    noise = np.asarray(fft.irfft(spectrum, samples))
    return noise / (3.0 * noise.std()) * np.exp(-np.arange(samples) / (decay_sec * hz))


def audible_sec(decay_sec: float) -> float:
    """How long a sound with this decay time stays audible: until it has decayed by 30 dB."""
    return decay_sec * _AUDIBLE_DB / 20.0 * np.log(10.0)
