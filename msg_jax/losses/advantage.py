"""Preference losses that weigh every sample by its reward, instead of comparing pairs.

Both work on the straight path from noise to a sample of the old policy, at one random t, and need neither likelihoods nor
guidance. All velocities are (B, T, C); `old` is that of the policy that made the samples. Rewards and advantages are (B, T),
one for each step of the clip, or (B, 1) for whole samples.
"""

import jax.numpy as jnp
from jaxtyping import Float

from msg_jax.types import Array

Velocity = Float[Array, "B T C"]


def nft_loss(
    velocity: Velocity, old: Velocity, target: Velocity, reward: Float[Array, " B #T"], beta: float
) -> Float[Array, ""]:
    """DiffusionNFT (Zheng et al., arXiv 2509.16117): good samples attract the policy, bad ones attract its mirror image.

    The positive policy is old + beta (velocity - old), the negative one old - beta (velocity - old). A sample of `reward` r in
    [0, 1] pulls the positive policy with weight r and the negative one with weight 1 - r. The paper's weighting by the error
    of the predicted data is left out.

    >>> v, old, target = (jnp.full((1, 1, 1), x) for x in (1.0, 0.0, 2.0))
    >>> float(nft_loss(v, old, target, jnp.array([[0.75]]), beta=0.5))  # .75 (.5 - 2)^2 + .25 (-.5 - 2)^2
    3.25
    """
    change = beta * (velocity - old)
    positive, negative = (jnp.square(old + sign * change - target).mean(axis=2) for sign in (1, -1))
    return jnp.mean(reward * positive + (1 - reward) * negative)


def awm_loss(
    velocity: Velocity, old: Velocity, target: Velocity, advantage: Float[Array, " B #T"], beta: float, clip: float,
    kl_weight: float,
) -> Float[Array, ""]:
    """Advantage-weighted matching (arXiv 2509.25050): a policy gradient whose log-likelihood is minus the flow error.

    The ratio of the policies is exp(beta (old error - error)), clipped to 1 +- `clip` as in PPO; `kl_weight` weighs the
    squared distance to the old velocity.

    >>> v, old, target = (jnp.full((1, 1, 1), x) for x in (1.0, 0.0, 2.0))
    >>> float(awm_loss(v, old, target, jnp.array([[2.0]]), beta=0.1, clip=0.2, kl_weight=0.5))  # -1.2 * 2 + .5 * 1
    -1.9...
    """
    error, old_error = (jnp.square(each - target).mean(axis=2) for each in (velocity, old))
    ratio = jnp.exp(beta * (old_error - error))
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)
    return kl_weight * jnp.mean(jnp.square(velocity - old)) - jnp.mean(gain)
