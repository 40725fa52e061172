"""Latent diffusion; the diffusion convention is defined only here.

Time runs as in losses/flow.py: t = 0 is noise, t = 1 is data (step k of K in the papers is t = 1 - k / K). The path is curved,

    x_t = alpha(t) * data + sigma(t) * noise      alpha^2 + sigma^2 = 1      lambda = log(alpha / sigma), SNR = exp(2 lambda)

The network predicts the noise (Ho et al., arXiv 2006.11239) or v = alpha * noise - sigma * data (Salimans & Ho, arXiv
2202.00512). Given x_t, either one determines the other and the data, linearly. Time is continuous; VTA-LDM has 1000 steps.
"""

from collections.abc import Callable
import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key
import numpy as np

from msg_jax.types import AnyArray, Array

NetworkFn = Callable[[Float[Array, "B T C"], Float[Array, " B"]], Float[Array, "B T C"]]
"""(x_t, t) -> the network's output, with the conditions bound."""

Times = Float[AnyArray, "*shape"] | np.floating | float
"""Times in [0, 1] of any shape; the solvers that loop on the host pass numpy scalars."""

_LOG_SNR_LIMIT = 5.0  # bound of |lambda|: no time is pure noise or pure data
_BETA_ROOTS = (math.sqrt(0.00085), math.sqrt(0.012))  # of the first and the last of the steps
_BETA_STEPS = 1000


def cosine(t: Times) -> Float[Array, "*shape"]:
    """lambda of alpha = sin(pi t / 2) (Nichol & Dhariwal, arXiv 2102.09672), with the ends cut where |lambda| is 5."""
    least = math.atan(math.exp(-_LOG_SNR_LIMIT))
    return jnp.log(jnp.tan(least + t * (math.pi / 2 - 2 * least)))


def scaled_linear(t: Times) -> Float[Array, "*shape"]:
    """lambda of latent diffusion, whose square root of beta is linear in time (Rombach et al., arXiv 2112.10752).

    The limit of infinitely many steps: -2 log alpha is the integral of beta. It ends at alpha = 0.07 and not at zero.
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
    """Training objective of a diffusion network.

    `min_snr_gamma` is the gamma of Min-SNR weighting (Hang et al., arXiv 2303.09556); 0 disables the weighting.
    """

    prediction: str = "noise"
    schedule: str = "scaled_linear"
    min_snr_gamma: float = 5.0

    def log_snr(self, t: Times) -> Float[Array, "*shape"]:
        """lambda = log(alpha / sigma), half the logarithm of the SNR."""
        return SCHEDULES[self.schedule](t)

    def rates(self, t: Times) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        """alpha and sigma."""
        log_snr = self.log_snr(t)
        return jnp.sqrt(jax.nn.sigmoid(2 * log_snr)), jnp.sqrt(jax.nn.sigmoid(-2 * log_snr))

    def noised(
        self, data: Float[Array, "B T C"], noise: Float[Array, "B T C"], t: Float[Array, " B"]
    ) -> Float[Array, "B T C"]:
        """Return x_t."""
        alpha, sigma = self._rates(t)
        return alpha * data + sigma * noise

    def target(
        self, data: Float[Array, "B T C"], noise: Float[Array, "B T C"], t: Float[Array, " B"]
    ) -> Float[Array, "B T C"]:
        """Regression target of the network."""
        if self.prediction == "noise":
            return noise
        alpha, sigma = self._rates(t)
        return alpha * noise - sigma * data

    def to_data(
        self, x_t: Float[AnyArray, "B T C"], output: Float[AnyArray, "B T C"], t: Float[AnyArray, " #B"]
    ) -> Float[Array, "B T C"]:
        """Recover the data that a network output implies, given x_t."""
        alpha, sigma = self._rates(t)
        if self.prediction == "noise":
            return (jnp.asarray(x_t) - sigma * output) / alpha
        return alpha * x_t - sigma * output

    def data_per_output(self, t: Float[AnyArray, " #B"]) -> Float[Array, "#B 1 1"]:
        """The factor of a network's output in `to_data`."""
        alpha, sigma = self._rates(t)
        return -sigma / alpha if self.prediction == "noise" else -sigma

    def weight(self, t: Float[Array, " B"]) -> Float[Array, " B"]:
        """Weight of the output's squared error: min(SNR, gamma) on the data, converted to the predicted quantity."""
        if not self.min_snr_gamma:
            return jnp.ones_like(t)
        snr = jnp.exp(2 * self.log_snr(t))
        return jnp.minimum(snr, self.min_snr_gamma) / (snr if self.prediction == "noise" else snr + 1)

    def sample_t(self, key: Key[Array, ""], batch: int) -> Float[Array, " {batch}"]:
        """Times, uniform in [0, 1)."""
        return jax.random.uniform(key, (batch,))

    def error(
        self, network_fn: NetworkFn, data: Float[Array, "B T C"], noise: Float[Array, "B T C"], t: Float[Array, " B"]
    ) -> Float[Array, " B"]:
        """Weighted mean-squared error of each item, averaged over time and channels."""
        output = network_fn(self.noised(data, noise, t), t)
        return self.weight(t) * jnp.mean(jnp.square(output - self.target(data, noise, t)), axis=(1, 2))

    def _rates(self, t: AnyArray) -> tuple[Array, Array]:
        alpha, sigma = self.rates(t)
        return alpha[:, None, None], sigma[:, None, None]
