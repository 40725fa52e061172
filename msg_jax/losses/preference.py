"""Direct preference optimisation for flow matching (Diffusion-DPO; TangoFlux's CRPO; V2A-DPO): docs/PREFERENCE.md."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from msg_jax.types import Array


class PairErrors(NamedTuple):
    """Mean-squared flow errors per item; policy and reference share the noise and the t of both sides."""

    policy_winner: Float[Array, " B"]
    policy_loser: Float[Array, " B"]
    reference_winner: Float[Array, " B"]
    reference_loser: Float[Array, " B"]


def margins(errors: PairErrors, beta: float) -> Float[Array, " B"]:
    """-(beta / 2) [(l_theta(w) - l_ref(w)) - (l_theta(l) - l_ref(l))]; positive where the policy prefers the winner."""
    winner_change = errors.policy_winner - errors.reference_winner
    loser_change = errors.policy_loser - errors.reference_loser
    return -(beta / 2) * (winner_change - loser_change)


def preference_loss(errors: PairErrors, beta: float) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Return the mean of -log sigmoid(`margins`), and metrics.

    `beta` acts on *mean*-squared errors. At theta = ref the loss is ln 2.

    >>> import jax.numpy as jnp
    >>> errors = PairErrors(*(jnp.array([x]) for x in (0.9, 1.1, 1.0, 1.0)))
    >>> loss, metrics = preference_loss(errors, beta=10.0)     # inside = -5 * (-0.1 - 0.1) = 1
    >>> round(float(loss), 4)
    0.3133

    The metrics are implicit accuracy, mean margin and the four mean errors. Both sides' errors tend to rise; the winner
    anchor limits that.
    """
    inside = margins(errors, beta)
    metrics = {
        "implicit_accuracy": jnp.mean((inside > 0).astype(jnp.float32)),
        "margin": jnp.mean(inside),
    } | {f"error_{name}": jnp.mean(value) for name, value in errors._asdict().items()}
    return -jnp.mean(jax.nn.log_sigmoid(inside)), metrics
