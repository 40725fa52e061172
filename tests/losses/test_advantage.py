"""Losses that weigh samples by their reward: hand-computed values and gradients."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msg_jax.losses import advantage
from msg_jax.losses.advantage import awm_loss, nft_loss


def velocities(seed=0):
    return jax.random.normal(jax.random.key(seed), (3, 2, 5, 4))


def test_nft_pulls_towards_good_samples_and_away_from_bad_ones():
    """At velocity = old the gradient is 2 beta (1 - 2 r) (target - old) / (number of values)."""
    old, target, _ = velocities()
    reward = jnp.array([[1.0, 0.5, 0.0, 0.25, 0.75], [0.0] * 5])
    gradient = jax.grad(lambda v: nft_loss(v, old, target, reward, 0.2))(old)
    expected = 2 * 0.2 * (1 - 2 * reward[..., None]) * (target - old) / old.size
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)


def test_nft_with_whole_candidates_has_one_reward_for_all_steps():
    v, old, target = velocities()
    whole = jnp.array([[0.3], [0.9]])
    assert float(nft_loss(v, old, target, whole, 0.5)) == pytest.approx(
        float(nft_loss(v, old, target, jnp.tile(whole, (1, 5)), 0.5)), rel=1e-6
    )


def test_nft_s_best_velocity_lies_beyond_the_old_one():
    """For one sample the minimum over velocity is old + (2 r - 1) (target - old) / beta."""
    old, target, _ = velocities()
    best = old + (2 * 0.8 - 1) / 0.5 * (target - old)
    gradient = jax.grad(lambda v: nft_loss(v, old, target, jnp.full((2, 5), 0.8), 0.5))(best)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_awm_is_a_policy_gradient_at_the_old_policy():
    """There the ratio is 1, and the gradient is beta advantage d error."""
    old, target, _ = velocities()
    weight = jnp.array([[1.0, -2.0, 0.0, 0.5, 3.0], [-1.0] * 5])
    gradient = jax.grad(lambda v: awm_loss(v, old, target, weight, 0.7, 0.2, 4.0))(old)
    errors = jax.grad(lambda v: jnp.mean(weight * jnp.square(v - target).mean(axis=2)))(old)
    np.testing.assert_allclose(gradient, 0.7 * errors, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("advantage", "moved"), [(1.0, True), (-1.0, True), (1.0, False), (-1.0, False)])
def test_awm_stops_where_the_ratio_is_clipped(advantage, moved):
    """Far on the side that the advantage asks for the gain is constant; only the distance to the old velocity is left."""
    old, target = jnp.zeros((1, 1, 1)), jnp.ones((1, 1, 1))
    towards = advantage if moved else -advantage
    v = jnp.full((1, 1, 1), towards * 0.8)
    gradient = jax.grad(lambda v: awm_loss(v, old, target, jnp.full((1, 1), advantage), 2.0, 0.2, 0.0))(v)
    assert (float(gradient[0, 0, 0]) == 0) == moved


def test_doctests():
    results = doctest.testmod(advantage, optionflags=doctest.ELLIPSIS)
    assert results.attempted == 4 and results.failed == 0
