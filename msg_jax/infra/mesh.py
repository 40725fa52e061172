"""The device mesh and the sharding of arrays on it. A single device is the mesh (1, 1, 1), not another code path."""

from collections.abc import Sequence
import math
from typing import Any, cast

from flax import linen as nn
from flax.core import meta
import jax
from jax.experimental import mesh_utils
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

SMALLEST_SHARD = 4096
"""Elements. A parameter whose shard would be smaller is replicated: 4096 float32 pass over a link of a TPU v5e (45 GB/s) in
0.4 us, less than the latency of the gather. Half of an SF-CAVP's tensors are so small, and 3 % of its parameters."""


def make_mesh(
    shape: Sequence[int] = (-1, 1, 1),
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm] JAX exports it as a variable
) -> Mesh:
    """A mesh over `devices` (default: all) with the axes `AXES`. One entry of `shape` may be -1, for the rest.

    Neighbours on `tensor`, then on `fsdp`, are neighbours in the torus of a TPU slice. Several slices follow one another on
    `data`. CPUs stand in their given order and GPUs in that of their ids, so that on `data` host follows host.

    Raises UserError if the shape does not multiply to the number of devices, or if `data` cannot be cut into the slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = list(shape)
    if shape.count(-1) == 1:
        known = math.prod(size for size in shape if size != -1)
        shape[shape.index(-1)] = len(devices) // max(known, 1)
    if len(shape) != len(AXES) or math.prod(shape) != len(devices) or min(shape) < 1:
        raise UserError(
            f"config.mesh={tuple(shape)} does not fit {len(devices)} devices: give three sizes for {AXES} that multiply "
            "to that number (-1 for the rest)."
        )
    return Mesh(arrange(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def arrange(shape: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """The devices as an array of this shape, as `make_mesh` wants it. Raises UserError if `data` cannot be cut into slices."""
    slices = len({getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"})
    if slices <= 1:  # of GPUs, JAX calls each host a slice, and sorting by id already puts host after host
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    data, *inside = shape
    if data % slices:
        raise UserError(
            f"config.mesh={tuple(shape)} does not fit {slices} slices of {len(devices) // slices} devices: only `data` crosses "
            f"slices, so make it a multiple of {slices}."
        )
    return mesh_utils.create_hybrid_device_mesh(
        (data // slices, *inside), (slices, 1, 1), devices, allow_split_physical_axes=True
    )


def _spec(names: P, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The mesh axes of one parameter, from its logical axis names.

    Axes that do not divide their dimension are left out, and all of them where that leaves shards below `SMALLEST_SHARD`.
    """
    axes = []
    for name, size in zip(tuple(names) + (None,) * (len(shape) - len(names)), shape):
        axis = RULES[name] if name is not None else None
        axes.append(axis if axis is not None and size % mesh.shape[axis] == 0 else None)
    used = [axis for axis in axes if axis is not None]
    if len(used) != len(set(used)):  # a mesh axis can shard only one dimension: the first
        axes = [axis if axis is None or axes.index(axis) == i else None for i, axis in enumerate(axes)]
    if math.prod(shape) < SMALLEST_SHARD * math.prod(mesh.shape[axis] for axis in axes if axis is not None):
        axes = [None] * len(axes)
    return P(*axes)


def shardings(abstract: Any, mesh: Mesh) -> Any:
    """The NamedSharding of every leaf of a tree of shapes; parameters may be boxed with logical axis names."""
    names = nn.get_partition_spec(abstract)
    return jax.tree.map(
        lambda leaf, spec: NamedSharding(mesh, _spec(spec, leaf.shape, mesh)), meta.unbox(abstract), names,
    )


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Makes global arrays, sharded over the batch axes, from numpy arrays with this process's `local_rows`."""
    sharding = NamedSharding(mesh, BATCH)
    here, ways = len(local_rows(mesh, batch_devices(mesh))), batch_devices(mesh)

    def put_rows(x):
        x = np.asarray(x)
        return jax.make_array_from_process_local_data(sharding, x, (len(x) * ways // here, *x.shape[1:]))

    return jax.tree.map(put_rows, batch)


def local_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """The rows of a global batch on this process's devices, ascending. Several processes may hold the same row."""
    slices = NamedSharding(mesh, BATCH).addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for index in slices if index is not None for row in range(batch_size)[index[0]]})


def spread(tree: Any, mesh: Mesh) -> Any:
    """Places arrays for this process alone, on its own `mesh`: rows sharded if they divide, else replicated."""

    def put(x):
        spec = BATCH if len(x) % batch_devices(mesh) == 0 else REPLICATED
        return jax.device_put(x, NamedSharding(mesh, spec))

    return jax.tree.map(put, tree)


def micro_batches(tree: Any, count: int) -> Any:
    """Splits rows (B, ...) into micro-batches (count, B / count, ...). Each device splits its own rows, so no data moves.

    Raises UserError if the rows of a device do not divide.
    """
    mesh = jax.sharding.get_abstract_mesh()
    ways = math.prod(mesh.shape.get(axis, 1) for axis in BATCH[0])

    def cut(x):
        if x.shape[0] % (count * ways):
            raise UserError(f"accumulate={count} cannot cut a batch of {x.shape[0]} on {ways} devices: make batch_size a "
                            f"multiple of {count * ways}.")
        x = x.reshape(ways, count, -1, *x.shape[1:]).swapaxes(0, 1).reshape(count, -1, *x.shape[1:])
        return x if mesh.empty else jax.lax.with_sharding_constraint(x, P(None, *BATCH))

    return jax.tree.map(cut, tree)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies every leaf to every device."""
    return put(tree, jax.tree.map(lambda _: NamedSharding(mesh, REPLICATED), tree))


def put(tree: Any, layout: Any) -> Any:
    """Places arrays according to `layout`, a tree of shardings. Every process must pass the same values."""

    def put_leaf(x, sharding):
        elsewhere = isinstance(x, jax.Array) and not x.is_fully_addressable
        if sharding.is_fully_addressable or elsewhere:
            return jax.device_put(to_host(x) if elsewhere and sharding.is_fully_addressable else x, sharding)
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put_leaf, tree, layout)


def to_host(tree: Any) -> Any:
    """Gathers the whole tree as numpy arrays on every process."""

    def fetch(x):
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            mesh = cast(NamedSharding, x.sharding).mesh
            x = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, REPLICATED))(x)
        return np.asarray(x)

    return jax.tree.map(fetch, tree)


def batch_devices(mesh: Mesh) -> int:
    """The number of shards of a batch; a global batch size must be a multiple of it."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
