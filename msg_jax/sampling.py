"""From noise and conditions to latents: solvers, classifier-free guidance, and clips longer than the network's own.

A `model` here is any Flax module with MM-DiT's three methods `preprocess`, `velocity` and `null_conditions`. Latents
are normalised, as the network sees them; `model.unnormalize` gives them back to the codec.
"""

from collections.abc import Callable, Sequence

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


def blend_windows(velocity_fn: VelocityFn, starts: Sequence[int], window: int) -> VelocityFn:
    """A velocity for one long clip out of the velocities of its windows.

    `velocity_fn` takes the windows as a batch (len(starts), window, C); the result takes (1, length, C). Where windows
    overlap, their velocities are averaged with triangular weights at every solver step, so that neighbours agree on
    what they share (MultiDiffusion, Bar-Tal et al., arXiv 2302.08113).
    """
    positions = np.asarray(starts)[:, None] + np.arange(window)
    ramp = np.minimum(np.arange(window) + 1, window - np.arange(window)).astype(np.float32)
    total = np.bincount(positions.ravel(), np.tile(ramp, len(starts))).astype(np.float32)
    weights = (ramp / total[positions])[..., None]

    def velocity(x_t, t):
        windows = velocity_fn(x_t[0, positions], jnp.broadcast_to(t, len(starts)))
        return jnp.zeros_like(x_t).at[0, positions].add(weights * windows)

    return velocity


def sample_windows(
    model: nn.Module, variables: Params, conditions: Conditions, noise: Array, starts: Sequence[int], *,
    steps: int = 25, guidance_scale: float = 4.5, solver: str = "euler", negative_text: Array | None = None,
    windows_at_once: int = 4,
) -> Array:
    """Latents (1, length, C) of one clip longer than the network's own, for noise of that shape.

    The conditions' batch is the windows that begin at `starts` (from `window_starts`); all windows are denoised
    together and blended at every step (`blend_windows`). The network runs on `windows_at_once` windows at a time, so
    its memory does not grow with the clip. `negative_text` (1, text_tokens, D) is as in `sample`.
    """
    window = model.config.latent_tokens

    def process(conditions):
        return model.apply(variables, conditions, method="preprocess")

    null = process(model.apply(variables, windows_at_once, negative_text, method="null_conditions"))
    processed = _map_chunks(process, conditions, windows_at_once)

    def chunk_velocity(inputs):
        x_t, t, cond = inputs
        velocity = guided(lambda *args: model.apply(variables, *args, method="velocity"), cond, null, guidance_scale)
        return velocity(x_t, t)

    def velocity(x_t, t):
        return _map_chunks(chunk_velocity, (x_t, t, processed), windows_at_once)

    return integrate(blend_windows(velocity, starts, window), noise, steps=steps, solver=solver)


def _map_chunks(function: Callable, inputs, size: int):
    """`function` over the leading axis, always `size` rows at a time: the last chunk is filled up with the last row."""
    rows = jax.tree.leaves(inputs)[0].shape[0]
    index = np.minimum(np.arange(-(-rows // size) * size), rows - 1).reshape(-1, size)
    outputs = jax.lax.map(function, jax.tree.map(lambda a: a[index], inputs))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:rows], outputs)
