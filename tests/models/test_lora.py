"""Low-rank adapters: closed forms for single layers, and the adapters of the MM-DiT."""

import dataclasses

from flax import linen as nn
from flax import traverse_util
from golden_files import relative_error
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from msg_jax import networks
from msg_jax.config.schema import Lora
from msg_jax.errors import UserError
from msg_jax.infra import mesh as mesh_lib
from msg_jax.models import lora
from msg_jax.models.layers import Conv, Dense
from msg_jax.models.mmdit import MMDiT, MMDiTConfig, example_inputs

TARGETS = Lora().lora_targets
CONFIG = MMDiTConfig(
    latent_channels=5, latent_tokens=10, clip_tokens=4, sync_tokens=8, text_tokens=3, clip_dim=6, sync_dim=6, text_dim=6,
    hidden=16, heads=2, joint_depth=1, fused_depth=1,
)


def randomized(tree, seed=0):
    """Replace every leaf, which may be a shape, by noise; no zero then hides an effect."""
    draw = np.random.default_rng(seed).normal
    return jax.tree.map(lambda leaf: 0.2 * draw(size=leaf.shape).astype(np.float32), nn.unbox(tree))


@pytest.fixture(scope="module", params=[False, True], ids=["v1", "v2"])
def network(request):
    model = MMDiT(dataclasses.replace(CONFIG, v2=request.param))
    return jax.jit(model.apply), randomized(example_inputs(model.config, 2), seed=2), random_variables(model)


def random_variables(model):
    return randomized(jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model.config)))


@pytest.mark.parametrize(("layer", "x"), [
    (Dense(6, axes=("embed", "mlp")), (2, 5, 4)), (Conv(6, (3,), axes=("embed", "mlp")), (2, 5, 4)),
    (Conv(6, (3, 2), strides=(2, 1), padding=((0, 1), (1, 0)), axes=("embed", "mlp")), (2, 5, 4, 4)),
], ids=["dense", "conv", "strided"])
def test_an_adapted_layer_equals_the_merged_layer(layer, x):
    x, net = np.random.default_rng(0).normal(size=x).astype(np.float32), nn.Sequential([layer])
    boxed = jax.eval_shape(net.init, jax.random.key(0), x)
    adapters = lora.init(jax.random.key(1), boxed["params"], 3, "layers_0")
    name, window = ("dense", 0) if isinstance(layer, Dense) else ("conv", len(layer.kernel_size))
    specs = nn.get_partition_spec(adapters)["layers_0"]
    assert specs == {"a": P(*(None,) * window, "embed", None), "b": P(None, "mlp")}
    variables, adapters = randomized(boxed, seed=1), randomized(adapters)
    a, b, kernel = adapters["layers_0"]["a"], adapters["layers_0"]["b"], variables["params"]["layers_0"][name]["kernel"]
    assert a.shape == (*kernel.shape[:-1], 3) and b.shape == (3, 6)
    by_hand = {"params": {"layers_0": {name: variables["params"]["layers_0"][name] | {
        "kernel": kernel + 0.5 * np.einsum("...ir,ro->...io", a, b)
    }}}}
    attached = lora.attach(variables, adapters, 0.5)
    expected = net.apply(by_hand, x)
    assert relative_error(net.apply(variables, x), expected) > 0.01
    assert relative_error(net.apply(attached, x), expected) < 1e-6
    merged = lora.merge(attached)
    assert merged.keys() == {"params"} and jax.tree.structure(merged) == jax.tree.structure(by_hand)
    assert relative_error(merged["params"]["layers_0"][name]["kernel"], by_hand["params"]["layers_0"][name]["kernel"]) < 1e-6


def test_initial_adapters_change_nothing_and_merged_weights_equal_adapters(network):
    apply, inputs, variables = network
    adapters = nn.unbox(lora.init(jax.random.key(1), variables["params"], 2, TARGETS))
    plain = apply(variables, *inputs)
    np.testing.assert_array_equal(apply(lora.attach(variables, adapters, 4.0), *inputs), plain)  # bit for bit
    attached = lora.attach(variables, randomized(adapters), 2.0)
    adapted = apply(attached, *inputs)
    assert relative_error(plain, adapted) > 0.01
    merged = lora.merge(attached)
    assert jax.tree.structure(merged) == jax.tree.structure(variables)
    assert relative_error(apply(merged, *inputs), adapted) < 1e-5


def test_adapters_train_equally_on_one_device_and_on_eight():
    """The shards cover contractions over `fsdp` and `tensor`, in dense layers and a convolution, also of the base network."""
    dense = [Dense(16, axes=("embed", "mlp")), Dense(8, axes=("mlp", "embed"))]
    net = nn.Sequential([*dense, Conv(4, (3,), axes=("embed", None))])
    x, y = (np.random.default_rng(0).normal(size=(8, 5, width)).astype(np.float32) for width in (8, 4))
    boxed = jax.eval_shape(net.init, jax.random.key(0), x)
    variables, boxed_adapters = randomized(boxed), lora.init(jax.random.key(1), boxed["params"], 2, "layers")

    def step(adapters, batch, variables):
        def loss(adapters):
            return jnp.mean((net.apply(lora.attach(variables, adapters, 2.0), batch["x"]) - batch["y"]) ** 2)

        return jax.tree.map(lambda leaf, gradient: leaf - 0.1 * gradient, adapters, jax.grad(loss)(adapters))

    results = []
    for shape in ((1, 1, 1), (2, 2, 2)):
        mesh = mesh_lib.make_mesh(shape, jax.devices()[: int(np.prod(shape))])
        layout = mesh_lib.shardings(boxed_adapters, mesh)
        with jax.set_mesh(mesh):
            adapters = jax.device_put(randomized(boxed_adapters, seed=3), layout)
            there = jax.device_put(variables, mesh_lib.shardings(boxed, mesh))
            step_fn = jax.jit(step, out_shardings=layout)
            for _ in range(3):
                adapters = step_fn(adapters, mesh_lib.put_batch({"x": x, "y": y}, mesh), there)
        results.append(adapters)
    assert results[1]["layers_0"]["a"].sharding.spec == P("fsdp", None)
    assert results[1]["layers_0"]["b"].sharding.spec == P(None, "tensor")
    assert results[1]["layers_1"]["a"].sharding.spec == P("tensor", None)
    for one, eight in zip(*map(jax.tree.leaves, results)):
        assert relative_error(eight, np.asarray(one)) < 1e-5


def test_targets_of_the_mmdit():
    """Two joint blocks of three streams; in the last, only the latent has output and feed-forward. One fused block."""
    variables = random_variables(MMDiT(dataclasses.replace(CONFIG, joint_depth=2)))
    adapters = nn.unbox(lora.init(jax.random.key(1), variables["params"], 2, TARGETS))
    layers = {"/".join(path[:-1]) for path in traverse_util.flatten_dict(adapters)}
    whole = ("qkv", "out", "mlp/w1", "mlp/w2", "mlp/w3")
    assert layers == (
        {f"joint_0/{stream}/{layer}" for stream in ("latent", "clip", "text") for layer in whole}
        | {f"{block}/latent/{layer}" for block in ("joint_1", "fused_0") for layer in whole}
        | {"joint_1/clip/qkv", "joint_1/text/qkv"}
    )
    # rank x (inputs x window + outputs), for hidden 16 and its feed-forward width 256
    latent = 2 * ((16 + 48) + (3 * 16 + 16) + 2 * (3 * 16 + 256) + (3 * 256 + 16))
    text = 2 * ((16 + 48) + (16 + 16) + 2 * (16 + 256) + (256 + 16))
    assert networks.count(adapters) == 4 * latent + text + 2 * 2 * (16 + 48)
    assert {leaf.dtype for leaf in jax.tree.leaves(adapters)} == {np.dtype("float32")}
    only_text = lora.init(jax.random.key(1), variables["params"], 2, "^joint.*text/qkv")
    assert only_text.keys() == {"joint_0", "joint_1"}
    chosen, all_of_them = (nn.unbox(tree)["joint_0"]["text"]["qkv"]["a"] for tree in (only_text, adapters))
    np.testing.assert_array_equal(chosen, all_of_them)  # a layer starts the same whatever else is adapted
    assert float(all_of_them.std()) == pytest.approx((2 / 16) ** 0.5, rel=0.3)


def test_float32_adapters_compute_in_the_dtype_of_the_layer():
    x = np.ones((1, 4), np.float32)
    layer = Dense(6, dtype=jnp.bfloat16)
    variables = nn.unbox(layer.init(jax.random.key(0), x))
    adapter = {"a": np.ones((4, 2), np.float32), "b": np.ones((2, 6), np.float32)}
    program = jax.make_jaxpr(layer.apply)(lora.attach(variables, adapter, 1.0), x)
    products = [eqn for eqn in program.jaxpr.eqns if eqn.primitive.name == "dot_general"]
    assert len(products) == 3 and all(var.aval.dtype == jnp.bfloat16 for eqn in products for var in eqn.invars)


@pytest.mark.parametrize(("rank", "targets", "sentence"), [
    (2, "qvk", "lora_targets='qvk' matches no layer; one of them is audio_input/mlp/w1"),
    (2, "(qkv", r"lora_targets='\(qkv' is not a regular expression"), (-1, "qkv", "lora_rank=-1: .* or 0 to train all"),
])
def test_invalid_rank_or_targets_raise(rank, targets, sentence):
    with pytest.raises(UserError, match=sentence):
        lora.init(jax.random.key(0), random_variables(MMDiT(CONFIG))["params"], rank, targets)
