"""From noise and conditions to latents: solvers, classifier-free guidance, and clips longer than the network's own.

A `model` here is any Flax module with MM-DiT's three methods `preprocess`, `velocity` and `null_conditions`. Latents
are normalised, as the network sees them; `model.unnormalize` gives them back to the codec.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
import itertools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from msg_jax.losses.flow import VelocityFn
from msg_jax.types import Array, Conditions, Params


def _euler(velocity_fn: VelocityFn, x: Array, t: Array, dt: Array) -> Array:
    return x + dt * velocity_fn(x, t)


def _midpoint(velocity_fn: VelocityFn, x: Array, t: Array, dt: Array) -> Array:
    halfway = x + dt / 2 * velocity_fn(x, t)
    return x + dt * velocity_fn(halfway, t + dt / 2)


SOLVERS = {"euler": _euler, "midpoint": _midpoint}


def solver_times(steps: int) -> np.ndarray:
    """linspace(0, 1, steps + 1), counted in float32 from both ends inwards.

    So the released networks were sampled; v2 multiplies t by 10000, and notices its last bit.
    """
    up = np.arange(steps + 1, dtype=np.float32) * (np.float32(1) / np.float32(steps))
    return np.where(np.arange(steps + 1) < (steps + 1) // 2, up, 1 - up[::-1])


def integrate(velocity_fn: VelocityFn, noise: Array, *, steps: int, solver: str = "euler") -> Array:
    """Follows the velocity from noise (B, T, C) at t = 0 to data at t = 1 over linspace(0, 1, steps + 1).

    `solver` is a key of SOLVERS: "euler" calls the velocity once a step, "midpoint" twice.
    """
    times = solver_times(steps)

    def step(x, span):
        start, end = span
        return SOLVERS[solver](velocity_fn, x, jnp.full(x.shape[0], start), end - start), None

    return jax.lax.scan(step, noise, (times[:-1], times[1:]))[0]


def guided(velocity_fn: Callable, cond, null, guidance_scale: float) -> VelocityFn:
    """Classifier-free guidance: s * velocity(cond) + (1 - s) * velocity(null) (Ho & Salimans, arXiv 2207.12598).

    `velocity_fn(x_t, t, processed)` sees both halves as one batch of 2 B. At a scale of 1 there is no null pass.
    """
    if guidance_scale == 1:
        return lambda x_t, t: velocity_fn(x_t, t, cond)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), cond, null)

    def velocity(x_t, t):
        towards, away = jnp.split(velocity_fn(jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]), both), 2)
        return guidance_scale * towards + (1 - guidance_scale) * away

    return velocity


def sample(
    model: nn.Module, variables: Params, conditions: Conditions, noise: Array, *,
    steps: int = 25, guidance_scale: float = 4.5, solver: str = "euler", negative_text: Array | None = None,
) -> Array:
    """Latents (N, T, C) for noise of that shape, conditioned on a batch of B clips.

    N is a multiple of B: rows i N / B to (i + 1) N / B - 1 are candidates for clip i, whose conditions are processed
    once. `negative_text` (B or 1, text_tokens, D) takes the place of the empty text on the null side of the guidance.
    """
    batch, candidates = conditions.clip.shape[0], noise.shape[0] // conditions.clip.shape[0]
    null = model.apply(variables, batch, negative_text, method="null_conditions")

    def process(conditions):
        processed = model.apply(variables, conditions, method="preprocess")
        return jax.tree.map(lambda a: jnp.repeat(a, candidates, axis=0), processed)

    def velocity(x_t, t, processed):
        return model.apply(variables, x_t, t, processed, method="velocity")

    velocity_fn = guided(velocity, process(conditions), process(null), guidance_scale)
    return integrate(velocity_fn, noise, steps=steps, solver=solver)


def window_starts(length: int, window: int, hop: int) -> tuple[int, ...]:
    """Starts of windows that cover `length` >= `window` tokens, `hop` apart; the last one ends where the clip ends."""
    return (*range(0, length - window, hop), length - window)


def blend(windows: np.ndarray, starts: Sequence[int]) -> np.ndarray:
    """One sequence (length, C) out of overlapping windows (len(starts), window, C), the last of which ends it.

    Where windows overlap they are averaged with triangular weights, so that none is heard to begin or end.
    """
    window = windows.shape[1]
    ramp = np.minimum(np.arange(window) + 1, window - np.arange(window)).astype(np.float32)[:, None]
    total = np.zeros((starts[-1] + window, windows.shape[2]), np.float32)
    weights = np.zeros((starts[-1] + window, 1), np.float32)
    for start, values in zip(starts, windows):
        total[start : start + window] += ramp * values
        weights[start : start + window] += ramp
    return total / weights


def chunks(tree: Any, size: int) -> Iterator[Any]:
    """A tree of arrays (rows, ...) in pieces of `size` rows: the last is filled up with the last row."""
    rows = jax.tree.leaves(tree)[0].shape[0]
    for start in range(0, rows, size):
        index = np.minimum(np.arange(start, start + size), rows - 1)
        yield jax.tree.map(lambda a, index=index: np.asarray(a)[index], tree)


def sample_windows(
    model: nn.Module, variables: Params, conditions: Conditions, noise: Array, starts: Sequence[int], *,
    steps: int = 25, guidance_scale: float = 4.5, solver: str = "euler", negative_text: Array | None = None,
    windows_at_once: int = 4,
) -> np.ndarray:
    """Latents (1, length, C) of one clip longer than the network's own, for noise of that shape.

    The conditions' batch is the windows that begin at `starts` (from `window_starts`); all windows are denoised
    together, their velocities blended at every solver step, so that neighbours agree on what they share
    (MultiDiffusion, Bar-Tal et al., arXiv 2302.08113). `negative_text` (1, text_tokens, D) is as in `sample`.

    The solver's loop runs on the host and the network on `windows_at_once` windows at a time: neither its memory nor
    its compiled program depends on the clip's length.
    """
    null = _process(model, variables, model.apply(variables, windows_at_once, negative_text, method="null_conditions"))
    processed = [_process(model, variables, chunk) for chunk in chunks(conditions, windows_at_once)]
    positions = np.asarray(starts)[:, None] + np.arange(model.config.latent_tokens)

    def velocity(x, t):
        times = np.full(windows_at_once, t, np.float32)
        outputs = [
            _window_velocity(model, variables, x_t, times, cond, null, guidance_scale)
            for x_t, cond in zip(chunks(x[0, positions], windows_at_once), processed)
        ]
        return blend(np.concatenate(outputs)[: len(starts)], starts)[None]

    x = np.asarray(noise)
    for start, end in itertools.pairwise(solver_times(steps)):
        x = SOLVERS[solver](velocity, x, start, end - start)
    return x


@functools.partial(jax.jit, static_argnums=0)
def _process(model: nn.Module, variables: Params, conditions: Conditions):
    return model.apply(variables, conditions, method="preprocess")


@functools.partial(jax.jit, static_argnames=("model", "guidance_scale"))
def _window_velocity(model, variables, x_t, t, processed, null, guidance_scale):
    def velocity_fn(*args):
        return model.apply(variables, *args, method="velocity")

    return guided(velocity_fn, processed, null, guidance_scale)(x_t, t)
