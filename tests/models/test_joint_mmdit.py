"""The network of sound and pictures: what each stream sees, the time of each, and its error."""

import dataclasses

from flax.core import meta
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msg_jax.losses import flow
from msg_jax.models.joint_mmdit import (
    JointMMDiT,
    JointMMDiTConfig,
    cosines,
    deviations,
    linear_guess,
    preconditioned,
)
from msg_jax.models.mmdit import drop_conditions, example_inputs
from msg_jax.types import Module

CONFIG = JointMMDiTConfig(
    sound_channels=3, picture_channels=5, latent_tokens=6, text_tokens=4, text_dim=7, hidden=16, heads=2, joint_depth=2,
    fused_depth=1,
)
MODEL: Module = JointMMDiT(CONFIG)
SOUND, PICTURES = slice(0, 3), slice(3, 8)
BATCH = 3


def normal(shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def variables():
    """Random ones: those of `init` make no velocity."""
    shapes = meta.unbox(jax.eval_shape(MODEL.init, jax.random.key(0), *example_inputs(CONFIG)))
    found = jax.tree.map(lambda leaf: 0.3 * normal(leaf.shape, leaf.size), shapes)
    statistics = {"latent_mean": np.zeros(8), "latent_std": np.ones(8), "deviations": np.full((6, 8), 0.5)}
    return found | {"buffers": found["buffers"] | {name: value.astype(np.float32) for name, value in statistics.items()}}


@pytest.fixture(scope="module")
def velocity(variables):
    return jax.jit(lambda x_t, t, conditions: MODEL.apply(variables, x_t, t, conditions))


@pytest.fixture
def inputs():
    x_t, _, conditions = example_inputs(CONFIG, BATCH)
    conditions = conditions.replace(text=normal(conditions.text.shape, 1), given=normal(x_t.shape, 2))
    return normal(x_t.shape, 3), np.array([0.1, 0.5, 0.8], np.float32), conditions


def change(x_t, channels):
    changed = x_t.copy()
    changed[:, :, channels] += 1
    return changed


def known(conditions, sound, pictures):
    return conditions.replace(known=jnp.tile(jnp.array([[sound, pictures]]), (BATCH, 1)))


def test_each_stream_sees_the_other_unless_it_is_alone(velocity, inputs):
    x_t, t, conditions = inputs
    alone = conditions.replace(alone=jnp.array([False, True, True]))
    for own, other in ((SOUND, PICTURES), (PICTURES, SOUND)):
        before, after = (np.asarray(velocity(x, t, alone))[..., own] for x in (x_t, change(x_t, other)))
        assert np.abs(before[0] - after[0]).max() > 0.01
        np.testing.assert_array_equal(before[1:], after[1:])
    # Text is seen either way.
    told = np.asarray(velocity(x_t, t, alone.replace(text=alone.text + 1)))
    assert (np.abs(told - velocity(x_t, t, alone)).max(axis=1) > 1e-3).all()


def test_strips_of_pictures_differ_by_their_place_alone(inputs):
    config = dataclasses.replace(CONFIG, picture_channels=6, strips=3)
    model: Module = JointMMDiT(config)
    shapes = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), *example_inputs(config)))
    params = jax.tree.map(lambda leaf: 0.3 * normal(leaf.shape, leaf.size), shapes["params"])
    buffers = {"empty_text": normal((4, 7), 4), "latent_mean": np.zeros(9, np.float32), "latent_std": np.ones(9, np.float32),
               "deviations": np.full((6, 9), 0.5, np.float32)}
    x_t, t, conditions = normal((BATCH, 6, 9), 3), inputs[1], inputs[2]
    conditions = conditions.replace(given=normal(x_t.shape, 2))
    velocity = jax.jit(lambda params, x_t: model.apply({"params": params, "buffers": buffers}, x_t, t, conditions))
    order, before = np.array([2, 0, 1]), np.asarray(velocity(params, x_t))

    def turned(x):
        return np.concatenate([x[..., :3], x[..., 3:].reshape(BATCH, 6, 3, 2)[:, :, order].reshape(BATCH, 6, 6)], axis=-1)

    after = velocity(params | {"places": params["places"][order]}, turned(x_t))
    np.testing.assert_allclose(after, turned(before), atol=1e-4 * np.abs(before).max())
    assert np.abs(velocity(params, turned(x_t)) - turned(before)).max() > 0.01  # without its place, it is another picture
    one = velocity(params, change(x_t, slice(3, 5)))  # the first strip: all others see it, and so does the sound
    assert (np.abs(one - before).reshape(-1, 9).max(axis=0) > 1e-3).all()


def test_what_all_strips_share_is_guessed_from_all_of_them(inputs):
    config = dataclasses.replace(CONFIG, picture_channels=6, strips=3)
    model: Module = JointMMDiT(config)
    params = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), *example_inputs(config)))["params"]
    shared, apart = 3.0, 0.1  # deviations of what the strips share, in their two channels, and of what differs
    spread = np.tile(np.array([1.0] * 3 + [shared] * 2 + [apart] * 4, np.float32), (6, 1))
    buffers = {"empty_text": normal((4, 7), 4), "latent_mean": np.zeros(9, np.float32), "latent_std": np.ones(9, np.float32),
               "deviations": spread}
    still = {"params": jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), params), "buffers": buffers}
    x_t, t = normal((BATCH, 6, 9), 3), inputs[1]
    velocity = model.apply(still, x_t, t, inputs[2].replace(given=x_t))
    at = t[:, None, None, None]

    def slope(deviation):
        return (at * deviation**2 - (1 - at)) / (at**2 * deviation**2 + (1 - at) ** 2)

    strips = x_t[..., 3:].reshape(BATCH, 6, 3, 2)
    mean = strips.mean(axis=2, keepdims=True)
    expected = slope(shared) * mean + slope(apart) * (strips - mean)
    np.testing.assert_allclose(velocity[..., 3:].reshape(strips.shape), expected, rtol=1e-3, atol=1e-4)


def test_known_pictures_are_clean_pictures_at_time_1(velocity, inputs):
    x_t, t, conditions = inputs
    found = np.asarray(velocity(x_t, t, known(conditions, False, True)))
    # Whatever x_t holds of them, the given ones are seen; their velocity leads to them.
    other = np.asarray(velocity(change(x_t, PICTURES), t, known(conditions, False, True)))
    np.testing.assert_array_equal(found[..., SOUND], other[..., SOUND])
    end = x_t + (1 - t)[:, None, None] * found
    np.testing.assert_allclose(end[..., PICTURES], conditions.given[..., PICTURES], atol=1e-5)
    # At t = 1 both streams are at that time, so nothing differs from the joint generation of these pictures.
    clean = np.concatenate([x_t[..., SOUND], conditions.given[..., PICTURES]], axis=-1)
    end, both = np.ones(BATCH, np.float32), (conditions, known(conditions, False, True))
    joint, for_video = (np.asarray(velocity(clean, end, each)) for each in both)
    joint, for_video = joint[..., SOUND], for_video[..., SOUND]
    np.testing.assert_allclose(joint, for_video, atol=1e-5 * np.abs(joint).max())  # there and back in the basis of cosines
    # Before it, the time of the pictures differs.
    earlier = np.asarray(velocity(clean, t, conditions))
    assert np.abs(earlier[..., SOUND] - found[..., SOUND]).max() > 0.01


def test_a_known_stream_has_no_error_and_the_error_is_the_sum_over_streams(variables, inputs):
    data, t, conditions = inputs
    noise, zeros = normal(data.shape, 5), jax.tree.map(np.zeros_like, variables["params"])
    still = {"params": zeros, "buffers": variables["buffers"]}
    conditions = conditions.replace(given=data, known=jnp.array([[False, False], [False, True], [True, False]]))
    weights = MODEL.error_weights(("sound", "picture"))
    errors = flow.flow_error(
        lambda x_t, t: MODEL.apply(still, x_t, t, conditions), jnp.asarray(data), jnp.asarray(noise), jnp.asarray(t), weights
    )
    # Without parameters the velocity is the linear guess.
    at = t[:, None, None]
    x_t = (1 - at) * noise + at * data
    variance = (0.5 * at) ** 2 + (1 - at) ** 2
    error = np.square((0.25 * at - (1 - at)) / variance * x_t - (data - noise))
    sound, pictures = (error[..., part].mean(axis=(1, 2)) for part in (SOUND, PICTURES))
    np.testing.assert_allclose(errors, [sound[0] + pictures[0], sound[1], pictures[2]], rtol=1e-4)
    np.testing.assert_allclose(MODEL.error_weights(("picture",)), [0, 0, 0, *[8 / 5] * 5])


def test_dropping_takes_the_other_stream_or_the_text(inputs):
    _, _, conditions = inputs
    null = conditions.replace(text=np.zeros_like(conditions.text))
    drops = jnp.array([[False, False], [True, False], [False, True]])
    dropped = drop_conditions(drops, conditions, null)
    np.testing.assert_array_equal(dropped.alone, [False, True, False])
    np.testing.assert_array_equal(dropped.text[:2], conditions.text[:2])
    assert not dropped.text[2].any()


def test_the_linear_guess_has_the_least_error_of_all_linear_ones():
    rng, t, deviation = np.random.default_rng(0), 0.7, 0.4
    data, noise = deviation * rng.normal(size=200_000), rng.normal(size=200_000)
    x_t = (1 - t) * noise + t * data
    zero, one, at = jnp.zeros((1, 1, 1)), jnp.ones((1, 1, 1)), jnp.full(1, t)
    guess = preconditioned(zero, one, at, np.array([[deviation]], np.float32))
    best = (x_t * (data - noise)).mean() / (x_t**2).mean()
    assert guess.item() == pytest.approx(best, abs=0.01)
    left = (data - noise - best * x_t).std()
    scale = preconditioned(one, zero, at, np.array([[deviation]], np.float32))
    assert scale.item() == pytest.approx(left, rel=0.01)


def test_the_guess_of_what_stands_still_is_taken_from_all_tokens():
    tokens, t, still, moving = 5, 0.3, 4.0, 0.5
    data = np.float32(moving) * normal((4000, tokens, 1), 6) + np.float32(still) * normal((4000, 1, 1), 7)
    x_t = t * data + (1 - t) * normal(data.shape, 8)
    spread = deviations(data)
    np.testing.assert_allclose(spread[:, 0], [np.sqrt(tokens * still**2 + moving**2), *[moving] * 4], rtol=0.05)
    # The regression of each token on all others, in closed form for this covariance.
    covariance = still**2 + moving**2 * np.eye(tokens)
    best = t * covariance @ np.linalg.inv(t**2 * covariance + (1 - t) ** 2 * np.eye(tokens))
    guess = np.asarray(linear_guess(x_t, np.full(len(x_t), t, np.float32), spread))
    np.testing.assert_allclose(guess[..., 0], x_t[..., 0] @ best, atol=0.15)
    # The velocity leads to the same guess of the data.
    velocity = preconditioned(jnp.zeros_like(x_t), x_t, np.full(len(x_t), t, np.float32), spread)
    np.testing.assert_allclose(x_t + (1 - t) * velocity, guess, atol=1e-4)


def test_cosines_are_orthonormal_and_begin_with_the_mean():
    basis = cosines(6)
    np.testing.assert_allclose(basis @ basis.T, np.eye(6), atol=1e-6)
    np.testing.assert_allclose(basis @ np.ones(6), [np.sqrt(6), 0, 0, 0, 0, 0], atol=1e-6)


def test_the_linear_guess_at_initialisation_and_a_gradient_for_every_parameter(variables, inputs):
    x_t, t, conditions = inputs
    initial = meta.unbox(jax.jit(MODEL.init)(jax.random.key(0), *example_inputs(CONFIG)))
    at = t[:, None, None]
    np.testing.assert_allclose(
        MODEL.apply(initial, x_t, t, conditions), (2 * at - 1) / (at**2 + (1 - at) ** 2) * x_t, rtol=1e-4, atol=1e-6
    )
    loss = jax.jit(jax.grad(lambda params: jnp.square(MODEL.apply(variables | {"params": params}, x_t, t, conditions)).mean()))
    for path, gradient in jax.tree_util.tree_leaves_with_path(loss(variables["params"])):
        unused = "['text']['q_norm']" in jax.tree_util.keystr(path) and "joint_1" in jax.tree_util.keystr(path)
        assert np.abs(gradient).max() > 0 or unused, path
