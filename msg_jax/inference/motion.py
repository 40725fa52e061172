"""The condition `motion`: motion energy, and optical flow where it is asked for."""

import functools

import jax
from jaxtyping import Float32, UInt8
import numpy as np

from msg_jax.data.optical_flow import optical_flow
from msg_jax.models.mmdit import nearest_exact
from msg_jax.models.motion import motion_energy
from msg_jax.types import AnyArray

_energy = functools.partial(jax.jit, static_argnums=1)(motion_energy)


def motion(
    video: UInt8[AnyArray, "B T H W 3"], steps: int, flow_grid: int = 0
) -> Float32[np.ndarray, "B {steps} {1+2*flow_grid*flow_grid}"]:
    """Motion energy and, with a `flow_grid`, the optical flow in so many cells a side."""
    energy = np.asarray(_energy(video, steps))
    if not flow_grid:
        return energy
    flows = np.stack([optical_flow(frames, flow_grid) for frames in np.asarray(video)])
    return np.concatenate([energy, flows[:, nearest_exact(video.shape[1], steps)]], axis=-1)
