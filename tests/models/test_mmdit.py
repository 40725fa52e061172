"""The MM-DiT against reference tensors of the released architecture, and properties that need none."""

import dataclasses
import pathlib

from flax import linen as nn
from flax import traverse_util
from golden_files import SMALL, load, relative_error, weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msg_jax.clip import MMAUDIO_16K, MMAUDIO_44K, TINY
from msg_jax.convert import from_torch
from msg_jax.convert.mmdit import table
from msg_jax.inference import sampling
from msg_jax.losses import flow
from msg_jax.models import mmdit
from msg_jax.models.mmdit import (
    PRESETS,
    MMDiT,
    MMDiTConfig,
    apply_rope,
    draw_drops,
    drop_conditions,
    example_inputs,
    nearest_exact,
    rope_angles,
)
from msg_jax.types import Conditions

TINY_CONFIG = MMDiTConfig.for_clip(
    TINY, clip_dim=12, sync_dim=10, text_dim=6, hidden=96, heads=4, joint_depth=1, fused_depth=1
)


def to_config(c: dict) -> MMDiTConfig:
    return MMDiTConfig(
        latent_channels=c["latent_dim"], latent_tokens=c["latent_seq_len"], clip_tokens=c["clip_seq_len"],
        sync_tokens=c["sync_seq_len"], text_tokens=c["text_seq_len"], clip_dim=c["clip_dim"], sync_dim=c["sync_dim"],
        text_dim=c["text_dim"], hidden=c["hidden_dim"], heads=c["num_heads"],
        joint_depth=c["depth"] - c["fused_depth"], fused_depth=c["fused_depth"], v2=c["v2"],
    )


class Golden:
    """A reference network: its tensors, our module of the same configuration, and its inputs."""

    def __init__(self, name: str, folder: pathlib.Path = SMALL):
        self.file, config = load(name, folder)
        self.config = to_config(config)
        self.model, self.variables = from_torch("mmdit", weights(self.file), self.config)
        self.conditions = Conditions(*(self.file[f"in/{name}_f"] for name in ("clip", "sync", "text")))
        self.null = self.model.apply(self.variables, 2, method="null_conditions")


@pytest.fixture(scope="module", params=["small/v1", "small/v2", "full/v1", "full/v2"])
def golden(request) -> Golden:
    size, version = request.param.split("/")
    folder = SMALL if size == "small" else request.getfixturevalue("shared") / "golden"
    return Golden(f"mmdit_{version}", folder)


def test_processed_conditions(golden):
    preprocess = jax.jit(lambda conditions: golden.model.apply(golden.variables, conditions, method="preprocess"))
    for prefix, conditions in {"cond": golden.conditions, "empty": golden.null}.items():
        processed = preprocess(conditions)
        for name in ("clip", "sync", "text"):
            assert relative_error(getattr(processed, name), golden.file[f"{prefix}/{name}_f"]) < 2e-5, (prefix, name)


def test_velocity(golden):
    apply = jax.jit(golden.model.apply)
    for key, conditions in {"out/flow": golden.conditions, "out/flow_empty": golden.null}.items():
        velocity = apply(golden.variables, golden.file["in/latent"], golden.file["in/t"], conditions)
        assert relative_error(velocity, golden.file[key]) < 2e-5, key


def test_guided_sample_and_unnormalize(golden):
    sample = jax.jit(lambda v, c, x: sampling.sample(golden.model, v, c, x, steps=25, guidance_scale=4.5))
    latents = sample(golden.variables, golden.conditions, golden.file["in/latent"])
    assert relative_error(latents, golden.file["out/sample_euler25_cfg4.5"]) < 2e-5
    raw = golden.model.apply(golden.variables, latents, method="unnormalize")
    assert relative_error(raw, golden.file["out/sample_unnormalized"]) < 2e-5
    assert relative_error(golden.model.apply(golden.variables, raw, method="normalize"), latents) < 1e-6


def test_loss_and_gradient_norm_of_every_parameter(golden):
    file, model = golden.file, golden.model
    data, noise, t = (jnp.asarray(file[key]) for key in ("train/data", "train/noise", "in/t"))
    assert relative_error(flow.interpolate(data, noise, t), file["train/xt"]) < 1e-6

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        variables = {**golden.variables, "params": params}
        error = flow.flow_error(lambda x, t: model.apply(variables, x, t, golden.conditions), data, noise, t)
        return error.mean()

    value, gradients = loss(golden.variables["params"])
    assert float(value) == pytest.approx(file["train/loss_per_item"].mean(), rel=2e-5)
    gradients = traverse_util.flatten_dict({"params": gradients}, sep="/")
    entries = [entry for entry in table(golden.config) if f"gradnorm/{entry.names}" in file]
    assert len(entries) == sum(name.startswith("gradnorm/") for name in file) > 90
    for entry in entries:
        reference = float(file[f"gradnorm/{entry.names}"])
        assert float(jnp.linalg.norm(gradients[entry.path])) == pytest.approx(reference, rel=1e-3), entry.names


@pytest.mark.parametrize("preset, published", {
    "small_16k": 157_283_644, "small_44k": 157_409_144, "medium_44k": 621_805_944, "large_44k": 1_030_002_168,
    "large_44k_v2": 1_030_575_608,
}.items())
def test_published_parameter_counts(preset, published):
    """The published counts include the buffers, which PyTorch keeps as parameters without gradient."""
    config = PRESETS[preset]
    shapes = jax.eval_shape(MMDiT(config).init, jax.random.key(0), *example_inputs(config))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == published
    buffers = sum(leaf.size for leaf in jax.tree.leaves(shapes["buffers"]))
    assert buffers == 2 * config.latent_channels + 77 * 1024


def test_presets_have_the_published_lengths():
    for name, clip in {"small_16k": MMAUDIO_16K, "large_44k_v2": MMAUDIO_44K}.items():
        config = PRESETS[name]
        assert (config.clip_tokens, config.sync_tokens, config.text_tokens) == (64, 192, 77)
        assert (config.latent_tokens, config.latent_channels) == (clip.latent_tokens, clip.latent_channels)
    assert PRESETS["small_16k"].latent_tokens == 250 and PRESETS["large_44k_v2"].latent_tokens == 345


@pytest.fixture(scope="module")
def tiny():
    model = MMDiT(TINY_CONFIG)
    return model, nn.unbox(jax.jit(model.init)(jax.random.key(0), *example_inputs(TINY_CONFIG)))


def random_inputs(config, batch, seed=0):
    draw = np.random.default_rng(seed).normal
    x_t, _, conditions = jax.tree.map(lambda a: draw(size=a.shape).astype(np.float32), example_inputs(config, batch))
    return x_t, np.linspace(0.1, 0.9, batch, dtype=np.float32), conditions


def test_zero_at_initialisation(tiny):
    model, variables = tiny
    params = variables["params"]
    for name in ("sync_positions", "empty_clip", "empty_sync"):
        assert not params[name].any()
    adaln = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if "adaln" in str(path)]
    assert len(adaln) == 2 * (3 + 1 + 1) and not any(leaf.any() for leaf in adaln)
    np.testing.assert_array_equal(jax.jit(model.apply)(variables, *random_inputs(TINY_CONFIG, 2)), 0)


def test_every_parameter_of_the_tiny_preset_gets_a_gradient(tiny):
    """Head width 24, 20 clip tokens, 80 sync tokens, 40 latents; noise opens the zero-initialised gates."""
    model, variables = tiny
    x_t, t, conditions = random_inputs(TINY_CONFIG, 3)
    assert conditions.clip.shape[1:] == (20, 12) and conditions.sync.shape[1:] == (80, 10) and x_t.shape == (3, 40, 32)
    draw = np.random.default_rng(1).normal
    params = jax.tree.map(lambda a: a + np.float32(0.05) * draw(size=a.shape).astype(np.float32), variables["params"])

    def loss(params, model):
        v = {**variables, "params": params}
        null = model.apply(v, 3, method="null_conditions")
        dropped = drop_conditions(draw_drops(jax.random.key(2), len(conditions.clip), 0.5), conditions, null)
        return jnp.square(model.apply(v, x_t, t, dropped)).mean()

    plain = jax.jit(jax.grad(loss), static_argnums=1)(params, model)
    for path, gradient in jax.tree_util.tree_leaves_with_path(plain):
        unused = any(f"['{stream}']['q_norm']" in jax.tree_util.keystr(path) for stream in ("clip", "text"))
        assert (np.abs(gradient).max() > 0) != unused, path  # in the last joint block clip and text have no queries
    remat = jax.jit(jax.grad(loss), static_argnums=1)(params, MMDiT(TINY_CONFIG, remat=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), plain, remat)


@pytest.mark.parametrize("changes", [{}, {"joint_depth": 2}, {"fused_depth": 0}])
def test_explicit_attention_equals_the_default(changes):
    """Joint and fused blocks pass the implementation on; on a CPU the default is "heads"."""
    config = dataclasses.replace(TINY_CONFIG, **changes)
    default, explicit = MMDiT(config), MMDiT(config, attention_implementation="heads")
    shapes = nn.unbox(jax.eval_shape(default.init, jax.random.key(0), *example_inputs(config)))
    draw = np.random.default_rng(1).normal
    variables = jax.tree.map(lambda leaf: np.float32(0.2) * draw(size=leaf.shape).astype(np.float32), shapes)
    inputs = random_inputs(config, 2)
    expected, found = (jax.jit(model.apply)(variables, *inputs) for model in (default, explicit))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("remat", [False, True])
def test_every_attention_gets_the_chosen_implementation(monkeypatch, remat):
    chosen, original = [], mmdit.attend

    def recorded(*args, implementation=None, **kwargs):
        chosen.append(implementation)
        return original(*args, implementation=implementation, **kwargs)

    monkeypatch.setattr(mmdit, "attend", recorded)
    config = dataclasses.replace(TINY_CONFIG, joint_depth=2, fused_depth=3)
    model = MMDiT(config, attention_implementation="xla", remat=remat)
    jax.eval_shape(model.init, jax.random.key(0), *example_inputs(config))
    assert chosen and set(chosen) == {"xla"}


def test_bfloat16_computes_near_float32_and_keeps_float32_parameters():
    golden = Golden("mmdit_v1")
    model = MMDiT(golden.config, dtype=jnp.bfloat16)
    velocity = jax.jit(model.apply)(golden.variables, golden.file["in/latent"], golden.file["in/t"], golden.conditions)
    assert velocity.dtype == jnp.float32
    assert 1e-4 < relative_error(velocity, golden.file["out/flow"]) < 0.1
    shapes = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(golden.config))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_parameters_carry_logical_axes():
    shapes = jax.eval_shape(MMDiT(TINY_CONFIG).init, jax.random.key(0), *example_inputs(TINY_CONFIG))
    specs = nn.get_partition_spec(shapes)["params"]["fused_0"]["latent"]
    assert specs["adaln"]["linear"]["dense"]["kernel"] == jax.sharding.PartitionSpec("embed", "modulation")
    assert specs["qkv"]["dense"]["kernel"] == jax.sharding.PartitionSpec("embed", "heads")
    assert specs["out"]["conv"]["kernel"] == jax.sharding.PartitionSpec(None, "heads", "embed")
    assert specs["mlp"]["w1"]["conv"]["kernel"] == jax.sharding.PartitionSpec(None, "embed", "mlp")


def test_negative_prompt_replaces_only_the_empty_text(tiny):
    model, variables = tiny
    prompt = jnp.ones((1, TINY_CONFIG.text_tokens, TINY_CONFIG.text_dim))
    null = model.apply(variables, 2, prompt, method="null_conditions")
    assert null.text.shape[0] == 2 and (null.text == 1).all() and not null.clip.any() and not null.sync.any()


def test_condition_dropout_is_per_item_and_drops_a_whole_video():
    batch = 4000
    ones = Conditions(*(jnp.ones((batch, 2, 1)) for _ in range(3)))
    zeros = jax.tree.map(jnp.zeros_like, ones)
    dropped = drop_conditions(draw_drops(jax.random.key(0), len(ones.clip), 0.1), ones, zeros)
    np.testing.assert_array_equal(dropped.clip, dropped.sync)
    np.testing.assert_array_equal(dropped.text[:, 0], dropped.text[:, 1])
    video, text = 1 - dropped.clip[:, 0, 0], 1 - dropped.text[:, 0, 0]
    assert float(video.mean()) == pytest.approx(0.1, abs=0.015) and float(text.mean()) == pytest.approx(0.1, abs=0.015)
    assert float((video * text).mean()) == pytest.approx(0.01, abs=0.006)
    always = drop_conditions(draw_drops(jax.random.key(0), len(ones.clip), 0.0, text_rate=1.0), ones, zeros)
    assert always.clip.all() and always.sync.all() and not always.text.any()


def test_nearest_exact_by_hand():
    np.testing.assert_array_equal(nearest_exact(4, 6), [0, 1, 1, 2, 3, 3])  # floor((i + 1/2) * 2/3)
    np.testing.assert_array_equal(nearest_exact(80, 40), np.arange(40) * 2 + 1)
    np.testing.assert_array_equal(nearest_exact(7, 7), np.arange(7))


def test_rope_rotates_pairs_and_scores_depend_only_on_distance():
    angles = rope_angles(8, 4, scale=0.5)
    np.testing.assert_allclose(angles[2], [1.0, 0.01])  # position 2 x scale 1/2, frequencies 1 and 1/100
    x = jnp.tile(jnp.array([1.0, 0.0, 0.0, 1.0]), (1, 8, 1, 1))
    np.testing.assert_allclose(
        apply_rope(x, angles)[0, 2, 0], [np.cos(1), np.sin(1), -np.sin(0.01), np.cos(0.01)], rtol=1e-6
    )
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 4))
    scores = jnp.einsum("bqhd,bkhd->qk", *(apply_rope(jnp.tile(a, (1, 8, 1, 1)), angles) for a in (q, k)))
    np.testing.assert_allclose(scores[1:, 1:], scores[:-1, :-1], atol=1e-5)
