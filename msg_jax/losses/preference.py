"""Direct preference optimisation for flow matching (Diffusion-DPO; TangoFlux's CRPO; V2A-DPO): METHODS in docs/DESIGN.md."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from msg_jax.types import Array


class PairErrors(NamedTuple):
    """Per-item mean-squared flow errors (B,) of policy and reference, at the same noise and the same t for both sides."""

    policy_winner: Array
    policy_loser: Array
    reference_winner: Array
    reference_loser: Array


def margins(errors: PairErrors, beta: float) -> Array:
    """-(beta / 2) [(l_theta(w) - l_ref(w)) - (l_theta(l) - l_ref(l))] of each pair, (B,): above 0 if told apart."""
    winner_change = errors.policy_winner - errors.reference_winner
    loser_change = errors.policy_loser - errors.reference_loser
    return -(beta / 2) * (winner_change - loser_change)


def preference_loss(errors: PairErrors, beta: float) -> tuple[Array, dict[str, Array]]:
    """-log sigmoid of the `margins`, averaged over the batch.

    `beta` acts on *mean*-squared errors. At theta = ref the loss is ln 2.

    >>> import jax.numpy as jnp
    >>> errors = PairErrors(*(jnp.array([x]) for x in (0.9, 1.1, 1.0, 1.0)))
    >>> loss, metrics = preference_loss(errors, beta=10.0)     # inside = -5 * (-0.1 - 0.1) = 1
    >>> round(float(loss), 4)
    0.3133

    Returns the loss () and the figures that tell whether it does what it should: implicit accuracy, margin, and the four
    errors apart (both sides tend to rise; the winner anchor curbs it).
    """
    inside = margins(errors, beta)
    metrics = {
        "implicit_accuracy": jnp.mean((inside > 0).astype(jnp.float32)),
        "margin": jnp.mean(inside),
    } | {f"error_{name}": jnp.mean(value) for name, value in errors._asdict().items()}
    return -jnp.mean(jax.nn.log_sigmoid(inside)), metrics
