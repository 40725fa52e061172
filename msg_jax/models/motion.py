"""Motion energy: the frame-to-frame change of the picture, the simplest cue of when something happens."""

import jax.numpy as jnp
from jaxtyping import Float, UInt8

from msg_jax.models.mmdit import nearest_exact
from msg_jax.types import AnyArray, Array

_SCALE = 16.0  # brings values to order one: frames of the scenes usually differ by at most 1/16 of the range


def motion_energy(video: UInt8[AnyArray, "B T H W 3"], steps: int) -> Float[Array, "B {steps} 1"]:
    """Mean absolute difference of each frame from the one before, relative to the pixel range and times 16.

    The first frame has no predecessor and gets 0.
    """
    frames = video.astype(jnp.float32) / 255
    energy = _SCALE * jnp.abs(jnp.diff(frames, axis=1)).mean(axis=(2, 3, 4))
    energy = jnp.pad(energy, ((0, 0), (1, 0)))
    return energy[:, nearest_exact(video.shape[1], steps), None]
