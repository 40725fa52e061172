"""The device mesh, and where every array lies on it. One device is the mesh (1, 1, 1), not another code path."""

from collections.abc import Sequence
import math
from typing import Any

from flax import linen as nn
from flax.core import meta
import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from msg_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")

# The order matters: with ("data", "fsdp") XLA's partitioner permutes the rows of a tensor-sharded matmul on a mesh whose
# three axes all exceed 1 (seen on jax 0.6 to 0.12). tests/infra/test_mesh.py holds this.
BATCH = P(("fsdp", "data"))
REPLICATED = P()

# Logical axis of a parameter (models/layers.py) -> mesh axis.
RULES = {
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "modulation": None,
    "conv_in": None,
    "conv_out": "fsdp",
}


def make_mesh(shape: Sequence[int] = (-1, 1, 1), devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (default: all). One entry of `shape` may be -1: whatever is left.

    Raises UserError if the shape does not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = list(shape)
    if shape.count(-1) == 1:
        known = math.prod(size for size in shape if size != -1)
        shape[shape.index(-1)] = len(devices) // known
    if len(shape) != len(AXES) or math.prod(shape) != len(devices) or min(shape) < 1:
        raise UserError(
            f"config.mesh={tuple(shape)} does not fit {len(devices)} devices: give three sizes for {AXES} that multiply "
            "to that number (-1 for the rest)."
        )
    return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def _spec(names: P, shape: tuple[int, ...], mesh: Mesh) -> P:
    """Mesh axes for one parameter; an axis that does not divide its dimension is left out."""
    axes = []
    for name, size in zip(tuple(names) + (None,) * (len(shape) - len(names)), shape):
        axis = RULES[name] if name is not None else None
        axes.append(axis if axis is not None and size % mesh.shape[axis] == 0 else None)
    used = [axis for axis in axes if axis is not None]
    if len(used) != len(set(used)):  # one mesh axis cannot hold two dimensions: the first keeps it
        axes = [axis if axis is None or axes.index(axis) == i else None for i, axis in enumerate(axes)]
    return P(*axes)


def shardings(abstract: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every leaf of a tree of shapes whose parameters may be boxed with logical axis names."""
    names = nn.get_partition_spec(abstract)
    return jax.tree.map(
        lambda leaf, spec: NamedSharding(mesh, _spec(spec, leaf.shape, mesh)), meta.unbox(abstract), names,
    )


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Numpy arrays of this process -> global arrays split over the batch axes."""
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Every leaf whole on every device."""
    return jax.device_put(tree, NamedSharding(mesh, REPLICATED))


def batch_devices(mesh: Mesh) -> int:
    """How many ways a batch is split; a global batch size must be a multiple of it."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
