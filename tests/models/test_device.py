"""Where the rows of a batch lie."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import pytest

from msg_jax.infra import explain, hlo
from msg_jax.infra import mesh as mesh_lib
from msg_jax.models.device import keep_rows


@pytest.mark.parametrize(("hold", "moves"), [(keep_rows, False), (lambda x: x, True)])
def test_rows_of_a_product_without_tokens_stay(hold, moves):
    """A pooled condition through two kernels that are split over their inputs, and its gradient."""
    mesh = mesh_lib.make_mesh((1, 8, 1))

    def loss(kernels, x):
        first, second = kernels
        pooled = hold(jax.nn.silu(hold(x.mean(axis=1)) @ first))
        return ((x + hold(pooled @ second)[:, None]) ** 2).sum()

    def shape(*sizes, spec):
        return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=NamedSharding(mesh, spec))

    kernels = (shape(512, 512, spec=P("fsdp")), shape(512, 512, spec=P("fsdp")))
    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(loss)).lower(kernels, shape(8, 32, 512, spec=mesh_lib.BATCH)).compile()
    moved = explain.collectives(hlo.parse(compiled.as_text() or "", 8).collectives())
    assert (moved["all-to-all"][0] + moved["collective-permute"][0] > 0) == moves


def test_rows_that_do_not_divide_are_left_alone():
    with jax.set_mesh(mesh_lib.make_mesh((1, 8, 1))):
        assert jax.jit(keep_rows)(jnp.ones((3, 2))).shape == (3, 2)
    x = jnp.ones((8, 2))
    assert keep_rows(x) is x  # no mesh
