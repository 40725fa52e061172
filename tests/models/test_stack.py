"""The loop over blocks against the blocks one by one."""

import dataclasses

from flax import linen as nn
from golden_files import relative_error
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msg_jax.models import lora
from msg_jax.models.clip_encoder import TransformerBlock, quick_gelu
from msg_jax.models.device import platform
from msg_jax.models.layers import Dense
from msg_jax.models.mmdit import MMDiT, MMDiTConfig, example_inputs
from msg_jax.models.stack import run_blocks

CONFIG = MMDiTConfig(
    latent_channels=4, latent_tokens=6, clip_tokens=3, sync_tokens=8, text_tokens=2, clip_dim=5, sync_dim=5, text_dim=5,
    hidden=16, heads=2, joint_depth=3, fused_depth=3,
)


def random_like(tree, seed, scale=0.2):
    draw = np.random.default_rng(seed).normal
    return jax.tree.map(lambda leaf: (scale * draw(size=leaf.shape)).astype(np.float32), nn.unbox(tree))


@pytest.fixture(scope="module")
def case():
    inputs = example_inputs(CONFIG, 2)
    shapes = jax.eval_shape(MMDiT(CONFIG).init, jax.random.key(0), *inputs)
    return random_like(shapes, 1), random_like(inputs, 2, 1.0)


def gradient(model, variables, inputs):
    def loss(params):
        return jnp.square(model.apply({**variables, **params}, *inputs)).mean()

    trained = {name: variables[name] for name in ("params", "lora") if name in variables}
    return jax.jit(jax.value_and_grad(loss))(trained)


def worst_error(found, expected):
    """The largest relative error of a tensor; tensors without gradient must be zero in both."""
    return max(jax.tree.leaves(jax.tree.map(
        lambda a, b: relative_error(a, b) if np.any(b) else float(np.any(a)), found, expected
    )))


@pytest.mark.parametrize("remat", [False, True])
def test_a_loop_equals_the_blocks_one_by_one(case, remat):
    """The value, and the gradient of every parameter."""
    variables, inputs = case
    one_by_one, loop = (gradient(MMDiT(CONFIG, remat=remat, scan=scan), variables, inputs) for scan in (False, True))
    assert worst_error(loop, one_by_one) < 1e-5


@pytest.mark.slow
def test_a_loop_in_bfloat16_is_as_near_to_float32(case):
    """The loop has its kernels in bfloat16, where the layers have them too; scales of norms stay in float32."""
    variables, inputs = case
    exact = gradient(MMDiT(CONFIG), variables, inputs)
    one_by_one, loop = (
        worst_error(gradient(MMDiT(CONFIG, dtype=jnp.bfloat16, scan=scan), variables, inputs), exact) for scan in (False, True)
    )
    assert 1e-3 < one_by_one < 0.2 and loop < 1.2 * one_by_one


def test_blocks_with_and_without_adapters_keep_their_order(case):
    variables, inputs = case
    adapters = random_like(lora.init(jax.random.key(0), variables["params"], 2, "fused_1/latent/qkv|joint_0/text"), 3)
    adapted = lora.attach(variables, adapters, 1.0)
    plain, one_by_one, loop = (
        gradient(MMDiT(CONFIG, scan=scan), v, inputs) for v, scan in ((variables, False), (adapted, False), (adapted, True))
    )
    assert abs(plain[0] / one_by_one[0] - 1) > 1e-3
    assert worst_error(loop, one_by_one) < 1e-5


def products(model, variables, inputs):
    return jax.jit(model.apply).lower(variables, *inputs).as_text().count("stablehlo.dot_general")


def test_the_program_does_not_grow_with_the_depth(case):
    _, inputs = case
    counts = {}
    for depth in (3, 5):
        config = dataclasses.replace(CONFIG, joint_depth=depth, fused_depth=depth)
        for scan in (False, True):
            model = MMDiT(config, scan=scan)
            variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
            counts[depth, scan] = products(model, nn.unbox(variables), inputs)
    assert counts[3, True] == counts[5, True] < counts[3, False] < counts[5, False]


def test_a_cpu_unrolls(case):
    variables, inputs = case
    assert platform() == "cpu"
    assert products(MMDiT(CONFIG), variables, inputs) == products(MMDiT(CONFIG, scan=False), variables, inputs)


def test_the_platform_is_that_of_the_mesh():
    device = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), (jax.sharding.AxisType.Auto,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        assert platform() == "tpu"
    assert platform() == jax.default_backend()


class Encoder(nn.Module):
    """A compact module with a stack, as the towers of CLIP are."""

    scan: bool

    @nn.compact
    def __call__(self, x):
        blocks = [TransformerBlock(2, quick_gelu, causal=True, name=f"block{i}") for i in range(3)]
        x = run_blocks(blocks, TransformerBlock.__call__, x, scan=self.scan)
        return Dense(3, name="out")(x)


def test_a_stack_in_a_compact_module():
    x = random_like(jnp.zeros((2, 5, 8)), 4, 1.0)
    shapes = nn.unbox(jax.eval_shape(Encoder(True).init, jax.random.key(0), x))
    assert set(shapes["params"]) == {"block0", "block1", "block2", "out"}
    variables = random_like(shapes, 5)
    found, expected = (jax.jit(Encoder(scan).apply)(variables, x) for scan in (True, False))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    swapped = {"params": variables["params"] | {"block0": variables["params"]["block1"],
                                                 "block1": variables["params"]["block0"]}}
    assert relative_error(jax.jit(Encoder(True).apply)(swapped, x), expected) > 1e-3
