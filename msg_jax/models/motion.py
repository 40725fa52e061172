"""Motion energy: how much the picture changes from frame to frame, the crudest of all cues of when something happens."""

import jax.numpy as jnp

from msg_jax.models.mmdit import nearest_exact
from msg_jax.types import Array

_SCALE = 16.0  # a frame of the scenes differs from the one before by a sixteenth of the range at most, usually


def motion_energy(video: Array, steps: int) -> Array:
    """uint8 frames (B, T, H, W, 3) -> (B, steps, 1): mean absolute difference to the frame before, as a share of the range.

    The first frame has none before it, and no energy. Values are scaled to the order of one.
    """
    frames = video.astype(jnp.float32) / 255
    energy = _SCALE * jnp.abs(jnp.diff(frames, axis=1)).mean(axis=(2, 3, 4))
    energy = jnp.pad(energy, ((0, 0), (1, 0)))
    return energy[:, nearest_exact(video.shape[1], steps), None]
