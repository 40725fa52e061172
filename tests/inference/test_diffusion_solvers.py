"""The diffusion's solvers on Gaussian data, for which the ideal denoiser and every marginal are known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msg_jax.inference import sampling
from msg_jax.losses.diffusion import PREDICTIONS, SCHEDULES, Diffusion
from tests.inference.test_sampling import MODEL, WINDOW, normal, random_conditions

MEAN, DEVIATION = 1.5, 0.4


def ideal(diffusion):
    """The network that minimises the loss where data are N(MEAN, DEVIATION^2)."""

    def network(x, t):
        alpha, sigma = (rate[:, None, None] for rate in diffusion.rates(t))
        gain = alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)
        data = MEAN + gain * (x - alpha * MEAN)
        noise = (x - alpha * data) / sigma
        return noise if diffusion.prediction == "noise" else alpha * noise - sigma * data

    return network


def start(diffusion, clips=4000):
    """Exact samples of the marginal at t = 0, which is not quite pure noise."""
    alpha, sigma = diffusion.rates(jnp.zeros(()))
    spread = jnp.sqrt(alpha**2 * DEVIATION**2 + sigma**2)
    return alpha * MEAN + spread * jax.random.normal(jax.random.key(0), (clips, 1, 1))


def flow(diffusion, x, start=0.0, end=1.0):
    """Where the probability flow takes x (exact): every point keeps its quantile."""
    (alpha, sigma), (last_alpha, last_sigma) = (diffusion.rates(jnp.array(t)) for t in (start, end))
    spread, last_spread = (jnp.sqrt(a**2 * DEVIATION**2 + s**2) for a, s in ((alpha, sigma), (last_alpha, last_sigma)))
    return last_alpha * MEAN + last_spread * (x - alpha * MEAN) / spread


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("solver", sampling.DIFFUSION_SOLVERS)
def test_many_steps_reach_the_data(solver, prediction, schedule):
    diffusion = Diffusion(prediction, schedule)
    x = sampling.integrate(ideal(diffusion), start(diffusion), steps=400, solver=solver, diffusion=diffusion)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(x.std()) == pytest.approx(DEVIATION, rel=0.04)


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("dpm_solver", 2)])
def test_order_of_convergence(solver, order):
    """Halving the step divides the error by 2 to the order, between two times that are not the ends of the schedule."""
    diffusion, noise = Diffusion("v", "cosine"), normal(50, 1, 1)
    errors = []

    def network(x, t):
        return ideal(diffusion)(x, jnp.full(len(x), t))

    for steps in (40, 80, 160):
        step, memory = sampling.solver_step(solver, noise, diffusion)
        x = noise
        for span in itertools.pairwise(np.linspace(0.1, 0.9, steps + 1, dtype=np.float32)):
            x, memory = step(network, x, *map(jnp.array, span), memory)
        errors.append(float(jnp.abs(x - flow(diffusion, noise, 0.1, 0.9)).mean()))
    rates = [np.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert rates == pytest.approx([order, order], abs=0.25), errors


def test_a_first_step_of_dpm_solver_is_ddim():
    """Both take the first prediction as it is, and then hold data and noise of it: one formula in two notations."""
    diffusion, x = Diffusion("noise", "scaled_linear"), normal(3, 4, 2)

    def one_step(solver):
        return sampling.integrate(ideal(diffusion), x, steps=1, solver=solver, diffusion=diffusion)

    ddim, dpm_solver = one_step("ddim"), one_step("dpm_solver")
    np.testing.assert_allclose(ddim, dpm_solver, rtol=1e-4, atol=1e-5)


def test_ddpm_adds_the_posterior_variance():
    """A step from t = 0.4 to 0.5 of a known datum: variance (1 - (alpha_s sigma_e / alpha_e sigma_s)^2) sigma_e^2, by hand."""
    diffusion = Diffusion("noise", "cosine")
    step, keys = sampling.solver_step("ddpm", jax.random.normal(jax.random.key(1), (20_000, 1, 1)), diffusion)

    def knows(x, t):  # the noise that is in x if the data are zero
        return x / diffusion.rates(t)[1]

    x, _ = step(knows, jnp.zeros((20_000, 1, 1)), jnp.array(0.4), jnp.array(0.5), keys)
    (alpha, sigma), (next_alpha, next_sigma) = (map(float, diffusion.rates(jnp.array(t))) for t in (0.4, 0.5))
    variance = next_sigma**2 * (1 - (alpha * next_sigma / (next_alpha * sigma)) ** 2)
    assert float(x.std()) == pytest.approx(variance**0.5, rel=0.02)
    assert float(x.mean()) == pytest.approx(0, abs=0.01)


def test_noise_of_ddpm_is_the_rows_own():
    """A clip gets the same whatever is sampled beside it; two clips do not get the same."""
    diffusion = Diffusion("v", "cosine")
    noise = normal(3, 4, 2)

    def sample(noise):
        return sampling.integrate(ideal(diffusion), noise, steps=5, solver="ddpm", diffusion=diffusion)

    together = sample(noise)
    np.testing.assert_allclose(together[1:2], sample(noise[1:2]), rtol=1e-5)
    own = together - flow(diffusion, noise)
    assert not np.allclose(own[0], own[1], atol=0.01)


@pytest.mark.parametrize("solver", sampling.DIFFUSION_SOLVERS)
def test_one_window_is_the_plain_sample(solver):
    conditions, noise = random_conditions(1), normal(1, WINDOW, 3)
    settings = dict(steps=3, guidance_scale=2.0, solver=solver, diffusion=Diffusion("v", "cosine"))
    plain = sampling.sample(MODEL, {}, conditions, noise, **settings)
    windows = sampling.sample_windows(MODEL, {}, conditions, noise, (0,), **settings)
    np.testing.assert_allclose(windows, plain, rtol=2e-3, atol=2e-3)
