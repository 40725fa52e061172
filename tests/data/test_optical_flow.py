"""Optical flow against pictures that move by known amounts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msg_jax import networks
from msg_jax.clip import TINY
from msg_jax.config.tree import replace
from msg_jax.data.optical_flow import optical_flow
from msg_jax.inference.motion import motion
from msg_jax.models.mmdit import example_inputs
from msg_jax.recipes import runs


def drifting(left: tuple[int, int], right: tuple[int, int], frames: int = 5) -> np.ndarray:
    """A video (1, T, 64, 64, 3) of a smooth texture whose halves move by (x, y) pixels a frame."""
    y, x = np.mgrid[:64, :64]
    video = np.empty((1, frames, 64, 64, 3), np.uint8)
    for t in range(frames):
        for columns, (dx, dy) in ((slice(0, 32), left), (slice(32, 64), right)):
            wave = np.sin((x - t * dx) / 3.0) + np.sin((y - t * dy) / 4.0) + np.sin((x - t * dx + y - t * dy) / 5.0)
            video[0, t, :, columns] = (128 + 40 * wave)[:, columns, None]
    return video


def test_each_cell_has_its_own_direction():
    pytest.importorskip("cv2")
    flow = optical_flow(drifting((1, 0), (0, -2))[0], 2).reshape(5, 2, 2, 2)
    assert (flow[0] == 0).all()
    for row in range(2):
        np.testing.assert_allclose(flow[1:, row, 0], np.tile([16 / 64, 0], (4, 1)), atol=0.05)
        np.testing.assert_allclose(flow[1:, row, 1], np.tile([0, -32 / 64], (4, 1)), atol=0.07)


def test_a_network_takes_it():
    config = replace(runs.vta_ldm("smoke"), extract=dict(flow_grid=3), base=dict(features=("sync", "motion")))
    model = networks.generator(config, TINY, {"clip": 6, "sync": 7, "text": 5}, jnp.float32)
    x, t, conditions = example_inputs(model.config, 2)
    assert conditions.motion.shape == (2, TINY.sync_tokens, 19)
    variables = jax.eval_shape(model.init, jax.random.key(0), x, t, conditions)
    assert jax.eval_shape(model.apply, variables, x, t, conditions).shape == x.shape


def test_it_stands_beside_motion_energy():
    pytest.importorskip("cv2")
    video = drifting((1, 0), (1, 0), frames=4)
    found = motion(video, 8, 1)
    np.testing.assert_array_equal(found[..., :1], motion(video, 8))
    np.testing.assert_array_equal(found[0, ::2, 1:], optical_flow(video[0], 1))
