"""The cross-attention network: the features it uses, the training of every parameter, and the interface shared with MM-DiT."""

import functools

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msg_jax import networks, train
from msg_jax.clip import TINY
from msg_jax.config.tree import replace
from msg_jax.inference import sampling
from msg_jax.models.cross_attention import FEATURES
from msg_jax.models.mmdit import drop_conditions, example_inputs
from msg_jax.models.motion import motion_energy
from msg_jax.programs import checks
from msg_jax.recipes import runs
from msg_jax.tasks.flow import flow_draws, flow_loss

BATCH = 4
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # fast compilation


def make(joint=False, **changes):
    """Return config, network, random variables, and inputs for it."""
    config = replace(runs.vta_ldm("smoke"), base=changes, encoders=dict(kind="joint" if joint else "separate"))
    checks.check(config)
    pixels = TINY.video_px**2 * 3
    dims = {"clip": pixels, "sync": pixels, "text": 5} if joint else {"clip": 6, "sync": 7, "text": 5}
    model = networks.generator(config, TINY, dims, jnp.float32)
    draw = np.random.default_rng(0).normal
    x_t, _, conditions = example_inputs(model.config, BATCH)
    x_t, conditions = jax.tree.map(lambda x: jnp.asarray(draw(size=x.shape), jnp.float32), (x_t, conditions))
    if joint:
        conditions = conditions.replace(clip=127.5 * (1 + conditions.clip), sync=127.5 * (1 + conditions.sync))
    variables = jax.jit(model.init, compiler_options=FAST)(jax.random.key(0), *example_inputs(model.config))
    return config, model, variables, x_t, conditions


def leaves(params):
    return {name: np.asarray(value.unbox() if hasattr(value, "unbox") else value)
            for name, value in traverse_util.flatten_dict(params, sep="/").items()}


def trained(steps=3, **changes):
    """Return parameters before and after optimiser steps on one batch (half of it without conditions), and gradients."""
    config, model, variables, x, conditions = make(**changes)
    diffusion = networks.diffusion(config)
    only_gradients = dict(weight_decay=0.0, warmup_steps=0)  # nothing else changes a parameter
    section = replace(config.base, optimizer=only_gradients, condition_dropout=0.5, text_dropout=0.5)
    optimizer = train.make_optimizer(section.optimizer, train.make_schedule(section.optimizer, 100))
    params = jax.tree.map(lambda x: x.unbox() if hasattr(x, "unbox") else x, variables["params"],
                          is_leaf=lambda x: hasattr(x, "unbox"))
    state, buffers = train.create_state(params, optimizer, ema=False), variables.get("buffers", {})

    @functools.partial(jax.jit, compiler_options=FAST)
    def step(state, key):
        drops = jnp.array([[True, False], [False, True]] * (BATCH // 2))
        draws = flow_draws(key, x, section, diffusion.sample_t) | {"drops": drops}
        gradients = jax.grad(
            lambda params: flow_loss(model, {"params": params, "buffers": buffers}, x, conditions, draws, diffusion)
        )(state.params)
        return train.apply_gradients(state, gradients, optimizer), gradients

    for i in range(steps):
        state, gradients = step(state, jax.random.key(i))
    return leaves(params), leaves(state.params), leaves(gradients)


@pytest.mark.parametrize("changes", [
    dict(features=FEATURES),
    dict(joint=True, features=("clip",)),
    dict(features=("sync", "text"), position_kind="learnt"),
    dict(features=("sync", "text"), modality_tokens=2),
], ids=["every_feature", "joint_frame_encoder", "learnt_positions", "modality_tokens"])
def test_every_parameter_is_trained(changes):
    """This includes the projections of the features, which VTA-LDM's released code omits from the optimiser."""
    before, after, gradients = trained(**changes)
    same = [name for name in before if not (before[name] != after[name]).any()]
    assert not same
    assert all(np.abs(gradients[name]).max() > 0 for name in gradients)
    assert {name for name in before if name.startswith("empty_")} == {f"empty_{name}" for name in changes["features"]}
    learnt = {"positions_latents", "positions_sync"} if "position_kind" in changes else set()  # text has no time
    assert {name for name in before if name.startswith("positions_")} == learnt
    modalities = {"modality_sync", "modality_text"} if "modality_tokens" in changes else set()
    assert {name for name in before if name.startswith("modality_")} == modalities


@pytest.mark.parametrize("network", ["mmdit", "cross_attention"])
@pytest.mark.parametrize("objective", ["flow", "diffusion"])
def test_network_and_objective_are_independent(network, objective):
    config, model, variables, x, conditions = make(network=network, objective=objective, features=("clip", "sync", "text"))
    out = sampling.sample(model, variables, conditions, x, steps=2, guidance_scale=2.0, **networks.solver(config))
    assert out.shape == x.shape and bool(jnp.isfinite(out).all())
    assert (networks.diffusion(config) is None) == (objective == "flow")
    back = model.apply(variables, model.apply(variables, x, method="normalize"), method="unnormalize")
    np.testing.assert_allclose(back, x, rtol=1e-5)


def output(model, variables, x, conditions):
    """Return the network's output, with noise on the parameters so that no gate is zero."""
    draw = np.random.default_rng(1).normal
    variables = jax.tree.map(lambda leaf: leaf + 0.1 * draw(size=leaf.shape).astype(np.float32), variables)
    apply = jax.jit(model.apply, compiler_options=FAST)
    return np.asarray(apply(variables, x, jnp.full(len(x), 0.3), conditions))


def test_the_output_depends_on_the_chosen_features_only():
    _, model, variables, x, conditions = make(features=("sync", "motion"))
    reference = output(model, variables, x, conditions)
    for name, matters in (("clip", False), ("text", False), ("sync", True), ("motion", True)):
        changed = output(model, variables, x, conditions.replace(**{name: getattr(conditions, name) + 1}))
        assert np.allclose(changed, reference, atol=1e-5) != matters, name


@pytest.mark.parametrize(("changes", "sensitive"), [
    ({}, True), ({"positions": False}, False), ({"pooled_tokens": 1}, False), ({"position_kind": "learnt"}, True),
    ({"position_kind": "sinusoidal"}, True),
])
def test_feature_order_matters_unless_positions_or_time_are_removed(changes, sensitive):
    _, model, variables, x, conditions = make(features=("sync",), **changes)
    reversed_ = conditions.replace(sync=conditions.sync[:, ::-1])
    same = np.allclose(output(model, variables, x, conditions), output(model, variables, x, reversed_), atol=1e-4)
    assert same != sensitive


def test_sinusoidal_positions_of_equal_times_are_equal():
    """Half as many tokens have the embeddings of every other latent token: sin and cos of t / 10000^(i / D)."""
    _, model, variables, *_ = make(features=("clip", "sync"), position_kind="sinusoidal")
    c = model.config
    zeros = jnp.zeros((1, c.latent_tokens, c.hidden))

    def placed(tokens):
        return np.asarray(model.apply(variables, "latents", zeros[:, :tokens], method="_placed"))[0]

    latents, half = placed(c.latent_tokens), placed(c.latent_tokens // 2)
    np.testing.assert_allclose(half, latents[::2], atol=1e-5)
    frequencies = 10_000.0 ** -(np.arange(0, c.hidden, 2) / c.hidden)
    np.testing.assert_allclose(latents[3], np.concatenate([np.sin(3 * frequencies), np.cos(3 * frequencies)]), atol=1e-5)


def test_modality_tokens_stand_before_those_of_their_feature_and_change_nothing_else():
    """Both networks have equal parameters but for the learnt tokens; the other tokens of the context are equal too."""
    _, model, variables, x, conditions = make(features=("sync", "text"), modality_tokens=3)
    _, without, plain, *_ = make(features=("sync", "text"))
    params = {name: value for name, value in variables["params"].items() if not name.startswith("modality_")}
    assert jax.tree.structure(params) == jax.tree.structure(plain["params"])

    c = model.config
    context = np.asarray(model.apply(variables, conditions, method="preprocess"))
    assert context.shape == (BATCH, 3 + c.sync_tokens + 3 + c.text_tokens, c.hidden)
    sync, learnt = np.split(context, [3 + c.sync_tokens], axis=1)[0], leaves(variables["params"])
    for tokens, name in ((sync, "sync"), (context[:, 3 + c.sync_tokens :], "text")):
        np.testing.assert_array_equal(tokens[:, :3], np.broadcast_to(learnt[f"modality_{name}"], (BATCH, 3, c.hidden)))
    places = np.r_[3 : 3 + c.sync_tokens, 6 + c.sync_tokens : context.shape[1]]
    angles, plain_angles = (network.bind(variables)._context_angles() for network in (model, without))
    np.testing.assert_array_equal(angles[places], plain_angles)
    assert not np.delete(angles, places, axis=0).any()  # they have no time
    expected = without.apply({**variables, "params": params}, conditions, method="preprocess")
    np.testing.assert_array_equal(context[:, places], expected)

    moved = jax.tree.map(lambda leaf: leaf, variables)
    moved["params"]["modality_text"] = jax.tree.map(lambda leaf: leaf + 1, variables["params"]["modality_text"])
    assert not np.allclose(output(model, moved, x, conditions), output(model, variables, x, conditions), atol=1e-3)


def test_modality_tokens_are_the_same_for_null_conditions():
    """Guidance compares a video with none; where neither is given, nothing is left to compare."""
    _, model, variables, x, conditions = make(features=("sync", "text"), modality_tokens=3)
    null = model.apply(variables, BATCH, method="null_conditions")
    dropped = drop_conditions(jnp.ones((BATCH, 2), bool), conditions, null)
    with_video, without = (model.apply(variables, each, method="preprocess") for each in (conditions, dropped))
    np.testing.assert_array_equal(with_video[:, :3], without[:, :3])
    assert (np.asarray(with_video[:, 3:]) != np.asarray(without[:, 3:])).any()
    sample = functools.partial(sampling.sample, model, variables, steps=2)
    guided, plain = sample(null, x, guidance_scale=3.0), sample(null, x, guidance_scale=1.0)
    np.testing.assert_allclose(guided, plain, atol=1e-5)


def test_dropped_conditions_equal_the_null():
    _, model, variables, _, conditions = make(features=FEATURES)
    null = model.apply(variables, BATCH, method="null_conditions")
    dropped = drop_conditions(jnp.ones((BATCH, 2), bool), conditions, null)
    for name in FEATURES:
        np.testing.assert_array_equal(getattr(dropped, name), getattr(null, name))


def test_uint8_and_float_frames_are_equivalent():
    _, model, variables, x, conditions = make(joint=True, features=("clip",))
    clip, sync = (jnp.clip(frames, 0, 255).astype(jnp.uint8) for frames in (conditions.clip, conditions.sync))
    frames = conditions.replace(clip=clip, sync=sync)
    floats = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), frames)
    np.testing.assert_allclose(output(model, variables, x, frames), output(model, variables, x, floats), atol=1e-6)


def test_motion_energy_by_hand():
    """A quarter of the picture turns from black to white at the third frame: a quarter of the range, times 16."""
    video = np.zeros((1, 4, 2, 2, 3), np.uint8)
    video[0, 2:, 0, 0] = 255
    np.testing.assert_allclose(motion_energy(video, 4)[0, :, 0], [0, 0, 4, 0], rtol=1e-6)
    assert motion_energy(video, 8).shape == (1, 8, 1)
