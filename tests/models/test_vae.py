"""The mel VAE against the released architecture, its sizes, and its magnitude-preserving operations."""

import functools

from golden_files import load, relative_error, vae_config, weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msg_jax.convert import from_torch
from msg_jax.convert.weights import shapes_of
from msg_jax.models.vae import PRESETS, VAE, mp_silu, mp_sum, unit_magnitude


@pytest.mark.parametrize("name", ["vae_16k", "vae_44k"])
@pytest.mark.parametrize("spelling", ["raw", "folded"])
def test_equals_the_released_architecture(golden_folder, name, spelling):
    arrays, config = load(name, golden_folder)
    if f"{spelling}/data_mean" not in arrays:
        pytest.skip("the toy-width file has raw weights only")
    model, variables = from_torch("vae", weights(arrays, spelling), vae_config(config))

    def time_major(key):
        return arrays[key].swapaxes(1, 2)

    encode, decode = (jax.jit(functools.partial(model.apply, method=method)) for method in ("encode", "decode"))
    mean, log_variance = encode(variables, time_major("out/mel"))
    assert relative_error(mean, time_major("out/enc_mean")) < 1e-5
    assert relative_error(log_variance, time_major("out/enc_logvar")) < 1e-5
    assert relative_error(decode(variables, time_major("in/latent")), time_major("out/decoded_mel")) < 1e-5


@pytest.mark.parametrize("preset, count", [("16k", 171_657_218), ("44k", 305_479_682)])
def test_published_parameter_counts(preset, count):
    config = PRESETS[preset]
    shapes = shapes_of(VAE(config), jnp.zeros((1, 4, config.bands)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count


def test_operations_preserve_magnitude():
    x, branch = jax.random.normal(jax.random.key(0), (2, 1_000_000))
    assert jnp.mean(jnp.square(mp_silu(x))) == pytest.approx(1.0, abs=0.01)
    assert jnp.mean(jnp.square(mp_sum(x, branch))) == pytest.approx(1.0, abs=0.01)
    row = np.array([[3.0, -4.0]])
    assert np.allclose(unit_magnitude(jnp.asarray(row), axis=-1), row / np.sqrt(12.5), rtol=1e-4)


@pytest.mark.parametrize("frames, tokens", [(24, 12), (25, 12)])
def test_two_frames_give_a_token_and_an_odd_last_frame_is_dropped(frames, tokens):
    config = PRESETS["16k"]
    model = VAE(config)
    shapes = shapes_of(model, jnp.zeros((1, 2, config.bands)))
    encode, decode = (functools.partial(model.apply, method=method) for method in ("encode", "decode"))
    mean, _ = jax.eval_shape(encode, shapes, jnp.zeros((1, frames, config.bands)))
    assert mean.shape == (1, tokens, config.latent_channels)
    assert jax.eval_shape(decode, shapes, mean).shape == (1, 2 * tokens, config.bands)
