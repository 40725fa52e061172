"""The output of --explain_sharding against arithmetic."""

from flax.core import meta
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax

from msg_jax import train
from msg_jax.infra import explain, hlo
from msg_jax.infra import mesh as mesh_lib
from msg_jax.models.layers import Dense


def test_collectives_are_summed_by_kind_and_by_tensor():
    found = [
        hlo.Collective("all-gather", 100, 75, 4, 3, "joint_*/qkv"), hlo.Collective("all-gather", 20, 15, 4, 1, "joint_*/qkv"),
        hlo.Collective("all-reduce", 400, 600, 4, 1, "loss"),
    ]
    totals = explain.collectives(found)
    assert totals["all-gather"] == (4, 320) and totals["all-reduce"] == (1, 400) and totals["all-to-all"] == (0, 0)
    assert explain.tensors(found) == [("all-reduce", "loss", 1, 400), ("all-gather", "joint_*/qkv", 4, 320)]


def test_bytes_per_device_follow_the_sharding():
    """A (64, 32) kernel over fsdp 2 x tensor 2 is a quarter on each device, its bias a half; Adam holds both twice more."""
    mesh = mesh_lib.make_mesh((2, 2, 2))
    optimizer = optax.adamw(1e-3)
    model = Dense(32, axes=("embed", "mlp"))

    def init(key):
        return train.create_state(model.init(key, jnp.zeros((1, 64)))["params"], optimizer, ema=False)

    abstract = jax.eval_shape(init, jax.random.key(0))
    layout = mesh_lib.shardings(abstract, mesh)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), meta.unbox(abstract), layout
    )
    one = 4 * (64 * 32 // 4 + 32 // 2)
    assert explain.device_bytes(state.params) == one
    with jax.set_mesh(mesh):
        def step(state, x):
            def loss(params):
                return jnp.mean(model.apply({"params": params}, x) ** 2)

            return train.apply_gradients(state, jax.grad(loss)(state.params), optimizer)

        batch = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=NamedSharding(mesh, P(("fsdp", "data"))))
        compiled = jax.jit(step, out_shardings=layout, donate_argnums=0).lower(state, batch).compile()
    sizes = explain.device_memory(compiled, state)
    assert sizes["parameters"] == one and sizes["optimiser"] == 2 * one + 8  # and two counters
    assert sizes["inputs"] == 16 * 64 * 4 // 4
    text = explain.describe("dense", compiled, state, mesh)
    assert "data 2, fsdp 2, tensor 2" in text and "all-reduce" in text and f"{one:,}" in text
    assert np.isfinite(sizes["temporary"])

