"""The flow convention, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msg_jax.losses import flow


def test_the_path_runs_from_noise_to_data():
    noise, data = jnp.full((3, 2, 1), 10.0), jnp.full((3, 2, 1), 20.0)
    x_t = flow.interpolate(data, noise, jnp.array([0.0, 0.25, 1.0]))
    np.testing.assert_allclose(x_t[:, 0, 0], [10.0, 12.5, 20.0])


def test_target_velocity_is_the_derivative_of_the_path():
    noise, data = jax.random.normal(jax.random.key(0), (2, 4, 5, 3))
    _, derivative = jax.jvp(lambda t: flow.interpolate(data, noise, t), (jnp.full(4, 0.3),), (jnp.ones(4),))
    np.testing.assert_allclose(derivative, flow.target_velocity(data, noise), rtol=1e-6)


def test_flow_error_per_item():
    data = jnp.array([[[1.0], [2.0]], [[0.0], [0.0]]])
    noise = jnp.array([[[0.0], [0.0]], [[1.0], [3.0]]])
    # targets are (1, 2) and (-1, -3); predicting 1 everywhere errs by (0, 1) and (2, 4)
    errors = flow.flow_error(lambda x_t, t: jnp.ones_like(x_t), data, noise, jnp.array([0.2, 0.9]))
    np.testing.assert_allclose(errors, [0.5, 10.0])


def test_flow_error_evaluates_the_network_on_the_path():
    data, noise = jnp.full((1, 1, 1), 4.0), jnp.zeros((1, 1, 1))
    # at t = 1/4, x_t = 1: the network returns x_t + t = 1.25, and the target is 4
    error = flow.flow_error(lambda x_t, t: x_t + t[:, None, None], data, noise, jnp.array([0.25]))
    np.testing.assert_allclose(error, [(1.25 - 4) ** 2])


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (0.5, 0.6)])
def test_times_are_logit_normal(mean, std):
    t = flow.sample_t(jax.random.key(0), 20_000, mean, std)
    assert float(t.min()) > 0 and float(t.max()) < 1
    logits = jnp.log(t / (1 - t))
    assert float(logits.mean()) == pytest.approx(mean, abs=0.03)
    assert float(logits.std()) == pytest.approx(std, abs=0.03)
