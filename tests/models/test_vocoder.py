"""BigVGAN against the released architecture, its sizes, and its filters against their definitions."""

from golden_files import load, relative_error, vocoder_config, weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msg_jax.convert import from_torch
from msg_jax.convert.weights import shapes_of
from msg_jax.models.vocoder import PRESETS, BigVGAN, Upsample, VocoderConfig, anti_aliased_snake, half_band_filter, sin2


@pytest.mark.parametrize("name", ["bigvgan_16k", "bigvgan_v2_44k"])
def test_equals_the_released_architecture(golden_folder, name):
    arrays, config = load(name, golden_folder)
    model, variables = from_torch("bigvgan", weights(arrays), vocoder_config(config))
    waveform = jax.jit(model.apply)(variables, arrays["in/mel"].swapaxes(1, 2))
    assert relative_error(waveform, arrays["out/wav"][:, 0]) < 1e-5


@pytest.mark.parametrize("preset, count", [("16k", 112_199_473), ("44k", 122_152_752)])
def test_published_parameter_counts(preset, count):
    config = PRESETS[preset]
    shapes = shapes_of(BigVGAN(config), jnp.zeros((1, 2, config.bands)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_half_band_filter_passes_the_lower_half():
    taps = half_band_filter()
    assert taps.sum() == pytest.approx(1) and np.array_equal(taps, taps[::-1])
    frequencies = np.array([0.0, 0.25, 0.45, 0.5])  # cycles per sample; the cut-off is at 0.25
    response = np.abs(np.exp(-2j * np.pi * np.outer(frequencies, np.arange(12))) @ taps)
    assert response[0] == pytest.approx(1)
    assert response[1] == pytest.approx(0.5, abs=0.02)
    assert response[2:].max() < 10 ** (-45 / 20)


def test_sin2_equals_numpy():
    x = np.linspace(-20, 20, 10_001, dtype=np.float32)
    assert np.abs(sin2(x) - np.sin(x.astype(np.float64)) ** 2).max() < 3e-6


@pytest.mark.parametrize("length", [1, 2, 9, 16])
def test_anti_aliased_snake_equals_its_definition(length):
    rng = np.random.default_rng(length)
    x, alpha, beta = rng.normal(size=(1, length, 3)), np.array([0.5, 1.0, 3.0]), np.array([1.0, 2.0, 0.5])
    taps = half_band_filter()
    expected = np.empty_like(x)
    for channel in range(3):
        padded = np.pad(x[0, :, channel], 5, mode="edge")
        stuffed = np.zeros(2 * len(padded))
        stuffed[::2] = 2 * padded
        doubled = np.convolve(stuffed, taps)[15 : 15 + 2 * length]
        doubled = doubled + np.sin(alpha[channel] * doubled) ** 2 / beta[channel]
        expected[0, :, channel] = np.convolve(np.pad(doubled, (5, 6), mode="edge"), taps, mode="valid")[::2]
    assert np.allclose(anti_aliased_snake(*map(jnp.float32, (x, alpha, beta))), expected, atol=1e-5)


@pytest.mark.parametrize("rate", [2, 4, 8])
def test_upsample_is_a_transposed_convolution(rate):
    rng = np.random.default_rng(rate)
    x, kernel, bias = rng.normal(size=(5, 3)), rng.normal(size=(2 * rate, 3, 2)), rng.normal(size=2)
    full = np.zeros((5 * rate + rate, 2))
    for step in range(5):
        for tap in range(2 * rate):
            full[step * rate + tap] += x[step] @ kernel[tap]
    expected = full[rate // 2 :][: 5 * rate] + bias
    later, earlier = (half.swapaxes(0, 1).reshape(3, -1) for half in (kernel[:rate], kernel[rate:]))
    params = {"phases": {"conv": {"kernel": np.stack([earlier, later])}}, "bias": bias}
    assert np.allclose(Upsample(2, rate).apply({"params": params}, jnp.float32(x)[None])[0], expected, atol=1e-5)


def test_bfloat16_stays_near_float32():
    config = VocoderConfig(bands=8, upsample_rates=(2,), v2=True, width=16)
    mel = jax.random.normal(jax.random.key(0), (1, 4, 8))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape), shapes_of(BigVGAN(config), mel))
    exact, rounded = (jax.jit(BigVGAN(config, dtype).apply)(variables, mel) for dtype in (jnp.float32, jnp.bfloat16))
    assert rounded.dtype == jnp.float32 and 0 < relative_error(rounded, np.asarray(exact)) < 0.02
