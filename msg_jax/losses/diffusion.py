"""Latent diffusion: the one place where its convention is written.

Times run as in losses/flow.py: t = 0 is noise, t = 1 is data (step k of K in the papers is t = 1 - k / K). The path is curved,

    x_t = alpha(t) * data + sigma(t) * noise      alpha^2 + sigma^2 = 1      lambda = log(alpha / sigma), SNR = exp(2 lambda)

and the network's output is the noise (Ho et al., arXiv 2006.11239) or v = alpha * noise - sigma * data (Salimans & Ho, arXiv
2202.00512), which are each other's and the data's linear functions. Time is continuous, where VTA-LDM has 1000 steps.
"""

from collections.abc import Callable
import dataclasses
import math

import jax
import jax.numpy as jnp

from msg_jax.types import Array

NetworkFn = Callable[[Array, Array], Array]
"""(x_t (B, T, C), t (B,)) -> the network's output (B, T, C); the conditions are bound in."""

_LOG_SNR_LIMIT = 5.0  # of lambda, on either side: at no time is there nothing but noise, or none
_BETA_ROOTS = (math.sqrt(0.00085), math.sqrt(0.012))  # of step 1 and step K of K
_BETA_STEPS = 1000


def cosine(t: Array) -> Array:
    """lambda at t in [0, 1]: alpha = sin(pi t / 2) (Nichol & Dhariwal, arXiv 2102.09672), cut where |lambda| is 5."""
    least = math.atan(math.exp(-_LOG_SNR_LIMIT))
    return jnp.log(jnp.tan(least + t * (math.pi / 2 - 2 * least)))


def scaled_linear(t: Array) -> Array:
    """lambda at t in [0, 1]: the square root of beta grows linearly, as in latent diffusion (Rombach et al., arXiv 2112.10752).

    The limit of infinitely many steps, -2 log alpha = the integral of beta, which ends at alpha = 0.07 and not at zero.
    """
    first, last = _BETA_ROOTS
    root = first + (last - first) * (1 - t)
    integral = _BETA_STEPS * (root**3 - first**3) / (3 * (last - first))
    log_snr = -0.5 * jnp.log(jnp.expm1(jnp.maximum(integral, 1e-6)))
    return jnp.minimum(log_snr, _LOG_SNR_LIMIT)


SCHEDULES = {"cosine": cosine, "scaled_linear": scaled_linear}
PREDICTIONS = ("noise", "v")


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """What the network is trained for. `min_snr_gamma` is of Min-SNR weighting (Hang et al., arXiv 2303.09556); 0: none."""

    prediction: str = "noise"
    schedule: str = "scaled_linear"
    min_snr_gamma: float = 5.0

    def log_snr(self, t: Array) -> Array:
        """lambda = log(alpha / sigma), half the logarithm of the SNR, at t of any shape."""
        return SCHEDULES[self.schedule](t)

    def rates(self, t: Array) -> tuple[Array, Array]:
        """alpha and sigma at t of any shape."""
        log_snr = self.log_snr(t)
        return jnp.sqrt(jax.nn.sigmoid(2 * log_snr)), jnp.sqrt(jax.nn.sigmoid(-2 * log_snr))

    def noised(self, data: Array, noise: Array, t: Array) -> Array:
        """x_t of data and noise (B, T, C) at t (B,)."""
        alpha, sigma = self._rates(t)
        return alpha * data + sigma * noise

    def target(self, data: Array, noise: Array, t: Array) -> Array:
        """What the network learns to predict."""
        if self.prediction == "noise":
            return noise
        alpha, sigma = self._rates(t)
        return alpha * noise - sigma * data

    def to_data(self, x_t: Array, output: Array, t: Array) -> Array:
        """The data (B, T, C) that an output stands for, given x_t (B, T, C) at t (B,)."""
        alpha, sigma = self._rates(t)
        if self.prediction == "noise":
            return (x_t - sigma * output) / alpha
        return alpha * x_t - sigma * output

    def weight(self, t: Array) -> Array:
        """Weight (B,) of squared errors of the output: Min-SNR's min(SNR, gamma) of the data, in terms of what is predicted."""
        if not self.min_snr_gamma:
            return jnp.ones_like(t)
        snr = jnp.exp(2 * self.log_snr(t))
        return jnp.minimum(snr, self.min_snr_gamma) / (snr if self.prediction == "noise" else snr + 1)

    def sample_t(self, key: Array, batch: int) -> Array:
        """(batch,) times, uniform in [0, 1)."""
        return jax.random.uniform(key, (batch,))

    def error(self, network_fn: NetworkFn, data: Array, noise: Array, t: Array) -> Array:
        """Weighted mean-squared error of each item, (B,): the mean is over time and channels."""
        output = network_fn(self.noised(data, noise, t), t)
        return self.weight(t) * jnp.mean(jnp.square(output - self.target(data, noise, t)), axis=(1, 2))

    def _rates(self, t: Array) -> tuple[Array, Array]:
        alpha, sigma = self.rates(t)
        return alpha[:, None, None], sigma[:, None, None]
