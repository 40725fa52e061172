"""Conditional flow matching; the flow convention is defined only here.

t = 0 is noise, t = 1 is data, the path is straight (Lipman et al., arXiv 2210.02747; Tong et al., arXiv 2302.00482):

    x_t = (1 - t) * noise + t * data        velocity = d x_t / dt = data - noise
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key
import numpy as np

from msg_jax.types import AnyArray, Array

VelocityFn = Callable[[Float[Array, "B T C"], Float[Array, " B"]], Float[Array, "B T C"]]
"""(x_t, t) -> velocity, with the conditions bound."""


def interpolate(
    data: Float[Array, "B T C"], noise: Float[Array, "B T C"], t: Float[Array, " B"]
) -> Float[Array, "B T C"]:
    """Return the point x_t on the path from noise to data, at t in [0, 1]."""
    t = t[:, None, None]
    return (1 - t) * noise + t * data


def target_velocity(data: Float[Array, "B T C"], noise: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
    """Regression target of the network, the same at every t."""
    return data - noise


def sample_t(key: Key[Array, ""], batch: int, mean: float = 0.0, std: float = 1.0) -> Float[Array, " {batch}"]:
    """Logit-normal times in (0, 1) (Esser et al., arXiv 2403.03206, section 3.1); a `mean` below 0 is nearer to noise."""
    return jax.nn.sigmoid(mean + std * jax.random.normal(key, (batch,)))


def shifted(t: Float[AnyArray, " N"], shift: float) -> Float[AnyArray, " N"]:
    """Times in [0, 1] with `shift` added to their logits; below 0 is nearer to noise (Esser et al., section 5.3.2)."""
    return t / (t + (1 - t) * np.exp(-shift))


def flow_error(
    velocity_fn: VelocityFn, data: Float[Array, "B T C"], noise: Float[Array, "B T C"], t: Float[Array, " B"],
    weights: Float[AnyArray, " C"] | None = None,
) -> Float[Array, " B"]:
    """Mean-squared velocity error of each item, averaged over time and channels; `weights` multiply the channels' errors."""
    predicted = velocity_fn(interpolate(data, noise, t), t)
    squares = jnp.square(predicted - target_velocity(data, noise))
    return jnp.mean(squares if weights is None else squares * weights, axis=(1, 2))
