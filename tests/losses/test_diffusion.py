"""The diffusion convention, against closed forms and hand-computed values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msg_jax.losses.diffusion import PREDICTIONS, SCHEDULES, Diffusion

TIMES = jnp.linspace(0.0, 1.0, 101)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rates_preserve_variance_and_rise_towards_the_data(schedule):
    alpha, sigma = Diffusion(schedule=schedule).rates(TIMES)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-6)
    assert (np.diff(alpha) > -1e-7).all() and (np.diff(sigma) < 1e-7).all()
    np.testing.assert_allclose(jnp.log(alpha / sigma), Diffusion(schedule=schedule).log_snr(TIMES), atol=2e-3)


def test_cosine_schedule_is_a_quarter_circle_with_cut_ends():
    alpha, sigma = Diffusion(schedule="cosine").rates(TIMES)
    np.testing.assert_allclose(alpha, np.sin(np.pi / 2 * TIMES), atol=0.007)
    np.testing.assert_allclose([alpha[50], sigma[50]], math.sqrt(0.5), rtol=1e-5)
    np.testing.assert_allclose([sigma[-1] / alpha[-1], alpha[0] / sigma[0]], math.exp(-5), rtol=1e-3)


def test_scaled_linear_is_the_limit_of_a_thousand_steps():
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    steps = np.cumprod(1 - betas) ** 0.5
    alpha, _ = Diffusion(schedule="scaled_linear").rates(1 - (np.arange(1000) + 1) / 1000)
    np.testing.assert_allclose(alpha, steps, rtol=0.012)
    assert float(alpha[-1]) == pytest.approx(0.068, abs=1e-3)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_target_determines_the_data(prediction, schedule):
    diffusion = Diffusion(prediction, schedule)
    data, noise, t = normal(5, 4, 3), normal(5, 4, 3, seed=1), jnp.array([0.1, 0.3, 0.5, 0.9, 1.0])
    x_t = diffusion.noised(data, noise, t)
    np.testing.assert_allclose(diffusion.to_data(x_t, diffusion.target(data, noise, t), t), data, atol=2e-5)


def test_v_by_hand():
    """Halfway through the cosine schedule, alpha = sigma = 1 / sqrt(2)."""
    diffusion, t = Diffusion("v", "cosine"), jnp.array([0.5])
    data, noise = jnp.full((1, 1, 1), 3.0), jnp.full((1, 1, 1), 1.0)
    assert float(diffusion.target(data, noise, t)[0, 0, 0]) == pytest.approx(-2 / math.sqrt(2), rel=1e-5)
    assert float(diffusion.noised(data, noise, t)[0, 0, 0]) == pytest.approx(4 / math.sqrt(2), rel=1e-5)


def test_min_snr_weights_by_hand():
    """At SNR 9 and 1 with gamma 5: min(SNR, 5) / SNR for noise, min(SNR, 5) / (SNR + 1) for v."""
    t = jnp.array([2 / math.pi * math.atan(3.0), 0.5])  # the cosine schedule has alpha / sigma = tan(pi t / 2), nearly
    assert np.exp(2 * Diffusion("v", "cosine").log_snr(t)) == pytest.approx([9, 1], rel=0.03)
    np.testing.assert_allclose(Diffusion("noise", "cosine").weight(t), [5 / 9, 1], rtol=0.03)
    np.testing.assert_allclose(Diffusion("v", "cosine").weight(t), [5 / 10, 1 / 2], rtol=0.03)
    np.testing.assert_array_equal(Diffusion("v", "cosine", min_snr_gamma=0.0).weight(t), [1, 1])


@pytest.mark.parametrize("gamma", [0.0, 5.0])
def test_both_predictions_weigh_the_error_of_the_data_alike(gamma):
    """Min-SNR weighs the error of the *data*: with it, noise and v predictions of the same wrong data cost the same."""
    t, data, noise = jnp.array([0.2, 0.6, 0.9]), normal(3, 4, 2), normal(3, 4, 2, seed=1)
    wrong, costs = data + 0.1 * normal(3, 4, 2, seed=2), []
    for prediction in PREDICTIONS:
        diffusion = Diffusion(prediction, "cosine", gamma)
        alpha, sigma = (rate[:, None, None] for rate in diffusion.rates(t))

        def network(x, t, prediction=prediction, alpha=alpha, sigma=sigma):
            implied = (x - alpha * wrong) / sigma
            return implied if prediction == "noise" else alpha * implied - sigma * wrong

        costs.append(diffusion.error(network, data, noise, t))
    same = np.allclose(*costs, rtol=1e-3)
    assert same if gamma else not same


def test_times_are_uniform():
    t = np.sort(Diffusion().sample_t(jax.random.key(0), 4000))
    np.testing.assert_allclose(t, np.linspace(0, 1, 4000), atol=0.03)
