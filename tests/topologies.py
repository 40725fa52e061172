"""Devices of machines that are not here: TPU topologies by libtpu, which compiles for them, and stand-ins."""

import dataclasses
import functools
import importlib.util
import os

import jax
from jax.experimental import topologies
import pytest

from msg_jax.infra.topology import TPU_ENVIRONMENT


@functools.cache
def tpu(name: str, **options):
    """The devices of a TPU topology, e.g. v5e:4x4. Skips the test where libtpu is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install 'msg_jax[tpu]'")
    os.environ |= TPU_ENVIRONMENT
    return tuple(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)


@dataclasses.dataclass(frozen=True)
class StandIn:
    """A device with only the properties that decide its place in a mesh."""

    id: int
    platform: str
    device_kind: str
    coords: tuple[int, ...] = ()
    core_on_chip: int = 0
    slice_index: int = 0


def torus(kind: str, *sizes: int, slices: int = 1) -> list[StandIn]:
    """Stand-ins for slices of a TPU, in the order of their coordinates."""
    x, y, z = (*sizes, 1, 1)[:3]
    places = [(i, j, k) for k in range(z) for j in range(y) for i in range(x)]
    return [
        StandIn(each * len(places) + number, "tpu", kind, place, slice_index=each)
        for each in range(slices) for number, place in enumerate(places)
    ]


def traced_for_tpu():
    """A context in which networks are traced as for a TPU, and run here."""
    device = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), (jax.sharding.AxisType.Auto,), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)
