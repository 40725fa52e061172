import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from topologies import StandIn, torus, tpu

from msg_jax.errors import UserError
from msg_jax.infra import mesh as mesh_lib
from msg_jax.models.layers import Conv, Dense

MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (2, 4, 1), (1, 2, 4)]


def test_a_shape_that_does_not_fit_is_refused():
    assert dict(mesh_lib.make_mesh((-1, 2, 2)).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    with pytest.raises(UserError, match=r"config.mesh=\(3, 1, 1\) does not fit 8 devices"):
        mesh_lib.make_mesh((3, 1, 1))


DOCUMENTED = {
    "v5e:4x4": [(4, 4, 1), (1, 16, 1), (2, 8, 1), (2, 4, 2)],
    "v5e:16x16": [(8, 32, 1), (1, 256, 1), (256, 1, 1)],
    "v6e:4x4": [(2, 8, 1), (1, 16, 1)],
    "v6e:16x16": [(8, 32, 1), (2, 64, 2)],
    "v5p:4x4x4": [(2, 32, 1), (4, 16, 1), (1, 64, 1), (1, 8, 8)],
}
KINDS = {"v5e": "TPU v5 lite", "v6e": "TPU v6 lite", "v5p": "TPU v5"}


def sizes_of(name):
    return [int(size) for size in name.partition(":")[2].split("x")]


def hops(a, b, sizes):
    """Links between two chips of a torus."""
    distances = (abs(i - j) for i, j in zip(a.coords, b.coords))
    return sum(min(distance, size - distance) for distance, size in zip(distances, (*sizes, 1, 1)))


def has_every_device(mesh, devices, shape):
    return mesh.shape == shape and {device.id for device in mesh.flat} == {device.id for device in devices}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_documented_mesh_of_a_slice_is_built(name):
    devices = torus(KINDS[name.partition(":")[0]], *sizes_of(name))
    for shape in DOCUMENTED[name]:
        assert has_every_device(mesh_lib.arrange(shape, devices), devices, shape)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_libtpu_has_the_slices_that_the_stand_ins_are_of(name):
    devices = tpu(name)
    assert sorted(each.coords for each in torus("", *sizes_of(name))) == sorted(tuple(each.coords) for each in devices)
    assert {device.device_kind for device in devices} == {KINDS[name.partition(":")[0]]}
    for shape in DOCUMENTED[name]:
        mesh = mesh_lib.make_mesh(shape, devices)
        assert mesh.axis_names == mesh_lib.AXES and has_every_device(mesh.devices, devices, shape)


def test_fsdp_groups_are_blocks_of_the_torus():
    """On v6e 4x4, the eight chips of each fsdp group of (2, 8, 1) are two whole rows: no more than three links apart."""
    mesh = mesh_lib.arrange((2, 8, 1), torus("TPU v6 lite", 4, 4))
    assert max(hops(a, b, (4, 4)) for group in mesh[:, :, 0] for a in group for b in group) == 3


def test_only_data_crosses_slices():
    for devices in (torus("TPU v5 lite", 4, 4, slices=2), torus("TPU v6 lite", 4, 4, slices=2)):
        for shape in ((2, 16, 1), (4, 8, 1), (2, 8, 2)):
            mesh = mesh_lib.arrange(shape, devices)
            assert has_every_device(mesh, devices, shape)
            slices = np.vectorize(lambda device: device.slice_index)(mesh)
            assert (slices == np.repeat([0, 1], shape[0] // 2)[:, None, None]).all()
    with pytest.raises(UserError, match=r"config.mesh=\(1, 32, 1\) does not fit 2 slices of 16 devices.*multiple of 2"):
        mesh_lib.make_mesh((1, -1, 1), devices)


def test_two_slices_of_libtpu():
    mesh = mesh_lib.make_mesh((2, 16, 1), tpu("v5e:4x4", num_slices=2))
    assert [{device.slice_index for device in group.flat} for group in mesh.devices] == [{0}, {1}]


def test_cpus_keep_their_order_and_gpus_that_of_their_ids():
    """JAX gives each GPU host a slice_index of its own; fsdp may cross hosts."""
    devices = jax.devices()[::-1]
    assert mesh_lib.make_mesh((2, 4, 1), devices).devices.ravel().tolist() == devices
    gpus = [StandIn(i, "gpu", "NVIDIA H100 80GB HBM3", slice_index=i // 8) for i in range(16)]
    for shape in ((2, 8, 1), (1, 16, 1)):
        assert [gpu.id for gpu in mesh_lib.arrange(shape, gpus[::-1]).flat] == list(range(16))


def test_logical_axes_shard_the_parameters():
    mesh = mesh_lib.make_mesh((2, 2, 2))
    abstract = jax.eval_shape(Dense(16, axes=("embed", "mlp")).init, jax.random.key(0), jnp.zeros((1, 8)))
    layout = mesh_lib.shardings(abstract, mesh)["params"]["dense"]
    assert layout["kernel"].spec == P("fsdp", "tensor") and layout["bias"].spec == P("tensor")


def test_a_parameter_with_a_tiny_shard_is_replicated(monkeypatch):
    """Two devices hold 512 x 16 = 2 x 4096 elements in shards; one column less stays whole, as does the bias."""
    monkeypatch.setattr(mesh_lib, "SMALLEST_SHARD", 4096)
    mesh = mesh_lib.make_mesh((4, 2, 1))
    for width, spec in ((16, P("fsdp", "tensor")), (15, P(None, None))):
        abstract = jax.eval_shape(Dense(width, axes=("embed", "mlp")).init, jax.random.key(0), jnp.zeros((1, 512)))
        layout = mesh_lib.shardings(abstract, mesh)["params"]["dense"]
        assert layout["kernel"].spec == spec and layout["bias"].spec == P(None)


def test_an_axis_that_does_not_divide_is_left_out():
    mesh = mesh_lib.make_mesh((1, 8, 1))
    abstract = jax.eval_shape(Conv(12, (3,)).init, jax.random.key(0), jnp.zeros((1, 5, 4)))
    assert mesh_lib.shardings(abstract, mesh)["params"]["conv"]["kernel"].spec == P(None, None, None)


@pytest.mark.parametrize("shape", MESHES)
def test_batch_order_keeps_rows_of_a_tensor_sharded_matmul(shape):
    """With the batch as ("data", "fsdp"), a partitioner bug permutes the rows of this product on (2, 2, 2)."""
    mesh = mesh_lib.make_mesh(shape)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(16, 32)).astype(np.float32), rng.normal(size=(32, 24)).astype(np.float32)
    with jax.set_mesh(mesh):
        a_there = jax.device_put(a, NamedSharding(mesh, P(mesh_lib.BATCH[0], "tensor")))
        b_there = jax.device_put(b, NamedSharding(mesh, P("tensor", None)))
        out = NamedSharding(mesh, P(mesh_lib.BATCH[0], "tensor"))
        product = jax.jit(lambda a, b: a @ b, out_shardings=out)(a_there, b_there)
    np.testing.assert_allclose(np.asarray(product), a @ b, rtol=1e-4, atol=1e-5)


def test_put_batch_splits_rows_in_order():
    mesh = mesh_lib.make_mesh((2, 2, 2))
    batch = mesh_lib.put_batch({"x": np.arange(8)}, mesh)
    np.testing.assert_array_equal(np.asarray(batch["x"]), np.arange(8))
    assert mesh_lib.batch_devices(mesh) == 4
    per_axis = functools.partial(jax.shard_map, mesh=mesh, in_specs=mesh_lib.BATCH, out_specs=mesh_lib.BATCH)
    np.testing.assert_array_equal(np.asarray(per_axis(lambda x: x * 2)(batch["x"])), 2 * np.arange(8))
