"""Conditional flow matching: the one place where the flow's convention is written.

t = 0 is noise, t = 1 is data, the path is straight (Lipman et al., arXiv 2210.02747; Tong et al., arXiv 2302.00482):

    x_t = (1 - t) * noise + t * data        velocity = d x_t / dt = data - noise
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from msg_jax.types import Array

VelocityFn = Callable[[Array, Array], Array]
"""(x_t (B, T, C), t (B,)) -> velocity (B, T, C); the conditions are bound in."""


def interpolate(data: Array, noise: Array, t: Array) -> Array:
    """The point x_t of the path between noise and data, both (B, T, C), at t (B,) in [0, 1]."""
    t = t[:, None, None]
    return (1 - t) * noise + t * data


def target_velocity(data: Array, noise: Array) -> Array:
    """What the network learns to predict, at every t."""
    return data - noise


def sample_t(key: Array, batch: int, mean: float = 0.0, std: float = 1.0) -> Array:
    """(batch,) times in (0, 1): the sigmoid of a normal variable (Esser et al., arXiv 2403.03206, section 3.1)."""
    return jax.nn.sigmoid(mean + std * jax.random.normal(key, (batch,)))


def flow_error(velocity_fn: VelocityFn, data: Array, noise: Array, t: Array) -> Array:
    """Mean-squared velocity error of each item, (B,): the mean is over time and channels."""
    predicted = velocity_fn(interpolate(data, noise, t), t)
    return jnp.mean(jnp.square(predicted - target_velocity(data, noise)), axis=(1, 2))
