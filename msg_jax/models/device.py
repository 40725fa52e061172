"""What a network is traced for: the kind of device, and the devices that hold the rows of a batch."""

import math

import jax
from jax.sharding import PartitionSpec as P

from msg_jax.types import Array

BATCH_AXES = ("fsdp", "data")  # of a mesh


def platform() -> str:
    """`cpu`, `gpu` or `tpu`: that of the mesh in `jax.set_mesh`, which need not be of this machine, or JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    found = device.platform if device else jax.default_backend()
    return "gpu" if found in ("cuda", "rocm") else found


def keep_rows(x: Array) -> Array:
    """Hold the rows of x (B, ...) on the devices of their clips, if they divide.

    Of a product without a token axis, the compiler leaves the features on all devices instead, and moves rows to and fro.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % math.prod(mesh.shape[axis] for axis in BATCH_AXES):
        return x
    return jax.lax.with_sharding_constraint(x, P(BATCH_AXES))
