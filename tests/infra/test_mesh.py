import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from msg_jax.errors import UserError
from msg_jax.infra import mesh as mesh_lib
from msg_jax.models.layers import Conv, Dense

MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (2, 4, 1), (1, 2, 4)]


def test_a_shape_that_does_not_fit_is_refused():
    assert dict(mesh_lib.make_mesh((-1, 2, 2)).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    with pytest.raises(UserError, match=r"config.mesh=\(3, 1, 1\) does not fit 8 devices"):
        mesh_lib.make_mesh((3, 1, 1))


def test_logical_axes_shard_the_parameters():
    mesh = mesh_lib.make_mesh((2, 2, 2))
    abstract = jax.eval_shape(Dense(16, axes=("embed", "mlp")).init, jax.random.key(0), jnp.zeros((1, 8)))
    layout = mesh_lib.shardings(abstract, mesh)["params"]["dense"]
    assert layout["kernel"].spec == P("fsdp", "tensor") and layout["bias"].spec == P("tensor")


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
