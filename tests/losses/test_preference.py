"""The preference loss: hand-computed pairs and gradients."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msg_jax.losses import preference
from msg_jax.losses.preference import PairErrors, preference_loss


def _errors(*values):
    return PairErrors(*(jnp.array(value, jnp.float32) for value in values))


def test_loss_is_ln_2_where_policy_equals_reference():
    loss, metrics = preference_loss(_errors([1.0, 2.0], [3.0, 0.5], [1.0, 2.0], [3.0, 0.5]), beta=2000.0)
    assert float(loss) == pytest.approx(np.log(2))
    assert float(metrics["margin"]) == 0 and float(metrics["implicit_accuracy"]) == 0


def test_hand_computed_pair():
    # the winner's error falls by .2 and the loser's rises by .1: inside = -(4 / 2) * (-.2 - .1) = .6
    loss, metrics = preference_loss(_errors([0.8], [1.1], [1.0], [1.0]), beta=4.0)
    assert float(loss) == pytest.approx(np.log(1 + np.exp(-0.6)), rel=1e-5)
    assert float(metrics["margin"]) == pytest.approx(0.6, rel=1e-5)
    assert float(metrics["implicit_accuracy"]) == 1
    assert float(metrics["error_policy_loser"]) == pytest.approx(1.1)


def test_gradient_lowers_the_winner_error_and_raises_the_loser_error():
    gradient = jax.grad(lambda w, l: preference_loss(_errors_from(w, l), 10.0)[0], argnums=(0, 1))(1.0, 1.0)
    # at theta = ref: d/dw = (beta / 2) * sigmoid(0)
    assert float(gradient[0]) == pytest.approx(2.5) and float(gradient[1]) == pytest.approx(-2.5)


def _errors_from(winner, loser):
    return PairErrors(jnp.array([winner]), jnp.array([loser]), jnp.array([1.0]), jnp.array([1.0]))


def test_doctests():
    results = doctest.testmod(preference)
    assert results.attempted == 4 and results.failed == 0
