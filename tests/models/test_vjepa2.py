"""V-JEPA 2's encoder against the publisher's classes, its size, and the frames that it sees."""

from golden_files import load, relative_error, vjepa2_config, weights
import jax
import jax.numpy as jnp
import numpy as np

from msg_jax.convert import from_torch
from msg_jax.convert.weights import shapes_of
from msg_jax.models.vjepa2 import PIXEL_STD, PRESETS, VJEPA2, cut_phases, join_phases, prepare


def test_equals_the_publishers_class():
    """To 1e-5. The order of frames matters, so the positions are compared too."""
    arrays, sizes = load("vjepa2")
    config = vjepa2_config(sizes)
    model, variables = from_torch("vjepa2", weights(arrays), config)
    tokens = jax.jit(lambda pixels: model.apply(variables, pixels, method="tokens"))
    pixels, expected = arrays["in/pixels"].astype(np.float32), arrays["out/tokens"]
    assert expected.shape == (1, 3 * 16, config.width)
    assert relative_error(tokens(pixels), expected) < 1e-5
    np.testing.assert_allclose(tokens(pixels), expected, atol=1e-4)
    assert relative_error(tokens(pixels[:, ::-1]), expected) > 0.1


def test_pictures_are_prepared_as_the_publisher_does():
    """It rounds to whole levels after each of the two axes, so up to one level apart. Without antialiasing it would be 56."""
    arrays, sizes = load("vjepa2")
    found = prepare(arrays["in/video"] / np.float32(127.5) - 1, vjepa2_config(sizes))
    levels = (np.asarray(found) - arrays["out/pixels"]) * np.array(PIXEL_STD) * 255
    assert levels.shape == (1, 2, 28, 28, 3)
    assert np.abs(levels).max() < 1 and np.sqrt((levels**2).mean()) < 0.4 and abs(levels.mean()) < 0.02


def test_features_are_means_over_the_patches_of_a_step():
    arrays, sizes = load("vjepa2")
    model, variables = from_torch("vjepa2", weights(arrays), vjepa2_config(sizes))
    frames = np.random.default_rng(0).uniform(-1, 1, (1, 4, 40, 40, 3)).astype(np.float32)
    features = model.apply(variables, frames)
    tokens = model.apply(variables, prepare(frames, model.config), method="tokens")
    np.testing.assert_allclose(features[0], np.asarray(tokens).reshape(2, 16, -1).mean(axis=1), atol=1e-5)


def test_parameter_count():
    """By hand: a linear map of a tube, 24 blocks, and the last norm. The checkpoint has 388 tensors without the predictor."""
    config = PRESETS["vitl"]
    shapes = shapes_of(VJEPA2(config), jnp.zeros((1, 2, config.image_px, config.image_px, 3)))
    width = 1024
    block = 4 * width + 4 * (width**2 + width) + 2 * 4 * width**2 + 5 * width  # norms, attention, feed-forward
    tube = 2 * 16 * 16 * 3 * width + width
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == tube + 24 * block + 2 * width == 303_885_312


def test_every_frame_gets_the_tube_that_it_is_in():
    """8 Hz are two phases at 4 Hz. The last of 7 frames is repeated: (0, 2), (4, 6), and (1, 3), (5, 6)."""
    video = np.arange(7.0)[None, :, None, None, None] * np.ones((1, 1, 2, 2, 3))
    phases = cut_phases(video, 8.0)
    assert phases.shape == (1, 2, 4, 2, 2, 3)
    np.testing.assert_array_equal(phases[0, :, :, 0, 0, 0], [[0, 2, 4, 6], [1, 3, 5, 6]])
    tubes = np.array([[[[10], [20]], [[30], [40]]]])  # of phase 0, and of phase 1
    np.testing.assert_array_equal(join_phases(tubes, 7)[0, :, 0], [10, 30, 10, 30, 20, 40, 20])
    assert cut_phases(video, 25.0).shape[1] == 6 and cut_phases(video, 4.0).shape[1:3] == (1, 8)
