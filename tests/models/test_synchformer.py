"""Synchformer's visual encoder against the released architecture, its size, and its segments."""

from golden_files import load, relative_error, synchformer_config, weights
import jax
import jax.numpy as jnp
import numpy as np

from msg_jax.clip import MMAUDIO_16K
from msg_jax.convert import from_torch
from msg_jax.convert.weights import shapes_of
from msg_jax.models.synchformer import PRESETS, Synchformer, cut_segments


def test_equals_the_released_architecture(golden_folder):
    arrays, config = load("synchformer_visual", golden_folder)
    model, variables = from_torch("synchformer", weights(arrays), synchformer_config(config))
    video = arrays["in/video"] if "in/video" in arrays else arrays["in/video_28px_repeat8"].repeat(8, -1).repeat(8, -2)
    segments = np.moveaxis(video, 3, -1).astype(np.float32)
    assert relative_error(jax.jit(model.apply)(variables, segments), arrays["out/feat"]) < 1e-5


def test_published_parameter_count():
    config = PRESETS["released"]
    shapes = shapes_of(Synchformer(config), jnp.zeros((1, 1, 16, 224, 224, 3)))
    unused_patch_embedding = 16 * 16 * 3 * 768 + 768
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) + unused_patch_embedding == 122_440_704


def test_segments_follow_the_clip():
    video = np.broadcast_to(np.arange(200.0)[None, :, None, None, None], (1, 200, 2, 2, 3))
    segments = cut_segments(video, MMAUDIO_16K)
    assert segments.shape == (1, 24, 16, 2, 2, 3)
    expected = 8 * np.arange(24)[:, None] + np.arange(16)
    assert np.array_equal(segments[0, :, :, 1, 0, 2], expected)
