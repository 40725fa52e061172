"""From noise and conditions to latents: solvers, classifier-free guidance, and clips longer than the network's own.

A `model` here is any Flax module with MM-DiT's three methods `preprocess`, `velocity` and `null_conditions`. Latents
are normalised, as the network sees them; `model.unnormalize` gives them back to the codec.

A network was trained with flow matching, or with a `Diffusion`: it decides what its output means, and which solvers there are.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
import itertools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from msg_jax.losses.diffusion import Diffusion
from msg_jax.losses.flow import VelocityFn
from msg_jax.types import Array, Conditions, Params

Denoiser = Callable[[Array, Array], Array]
"""(x (B, T, C), t) -> the data (B, T, C) that the network sees in it."""


Step = Callable[[VelocityFn, Array, Array, Array, Any], tuple[Array, Any]]
"""(network_fn, x, start, end, memory) -> x at the time `end`, and what the next step wants to know of this one."""


def _euler(velocity_fn, x, start, end, memory):
    return x + (end - start) * velocity_fn(x, start), memory


def _midpoint(velocity_fn, x, start, end, memory):
    dt = end - start
    halfway = x + dt / 2 * velocity_fn(x, start)
    return x + dt * velocity_fn(halfway, start + dt / 2), memory


SOLVERS = {"euler": _euler, "midpoint": _midpoint}


def _ddim(diffusion: Diffusion, denoise: Denoiser, x, start, end, memory):
    """Towards the predicted data with the noise that is there (Song et al., arXiv 2010.02502, eta = 0)."""
    (alpha, sigma), (next_alpha, next_sigma) = diffusion.rates(start), diffusion.rates(end)
    data = denoise(x, start)
    return next_alpha * data + next_sigma * (x - alpha * data) / sigma, memory


def _ddpm(diffusion: Diffusion, denoise: Denoiser, x, start, end, keys):
    """A sample of the posterior of the next point given this one and the predicted data (Ho et al., arXiv 2006.11239)."""
    (alpha, sigma), (next_alpha, next_sigma) = diffusion.rates(start), diffusion.rates(end)
    ratio = alpha / next_alpha
    added = sigma**2 - (ratio * next_sigma) ** 2  # variance of the noise between the two
    mean = (ratio * next_sigma**2 * x + next_alpha * added * denoise(x, start)) / sigma**2
    pairs = jax.vmap(jax.random.split)(keys)
    noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(pairs[:, 0])
    return mean + jnp.sqrt(added) * next_sigma / sigma * jnp.where(end < 1, noise, 0), pairs[:, 1]


def _dpm_solver(diffusion: Diffusion, denoise: Denoiser, x, start, end, memory):
    """DPM-Solver++(2M) (Lu et al., arXiv 2211.01095, algorithm 2): extrapolates the data from this and the last prediction.

    The last step, which is long in log-SNR, takes its prediction as it is.
    """
    last, last_log_snr = memory
    (_, sigma), (next_alpha, next_sigma) = diffusion.rates(start), diffusion.rates(end)
    log_snr, next_log_snr = diffusion.log_snr(start), diffusion.log_snr(end)
    data, h = denoise(x, start), next_log_snr - log_snr
    weight = jnp.where(end < 1, h / (2 * (log_snr - last_log_snr)), 0)
    towards = (1 + weight) * data - weight * last
    return next_sigma / sigma * x - next_alpha * jnp.expm1(-h) * towards, (data, log_snr)


def _row_keys(noise: Array) -> Array:
    """A key of its own for each row of noise (B, T, C), which depends on that row alone."""
    bits = jax.lax.bitcast_convert_type(jnp.asarray(noise)[:, 0, 0], jnp.uint32)
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.key(0), row))(bits)


def _nothing_before(noise: Array) -> tuple[Array, Array]:
    """No prediction, infinitely long ago: it weighs nothing."""
    return jnp.zeros_like(noise), jnp.array(-jnp.inf)


DIFFUSION_SOLVERS = {"ddim": (_ddim, None), "ddpm": (_ddpm, _row_keys), "dpm_solver": (_dpm_solver, _nothing_before)}
"""Steps, and what makes the first memory of the noise."""


def solver_step(solver: str, noise: Array, diffusion: Diffusion | None) -> tuple[Step, Any]:
    """The step of a key of SOLVERS, or of DIFFUSION_SOLVERS for a `diffusion`, and the memory to begin with."""
    if diffusion is None:
        return SOLVERS[solver], None
    step, remember = DIFFUSION_SOLVERS[solver]

    def diffusion_step(network_fn, x, start, end, memory):
        def denoise(x, t):
            return diffusion.to_data(x, network_fn(x, t), jnp.full(1, t))

        return step(diffusion, denoise, x, start, end, memory)

    return diffusion_step, remember and remember(noise)


def solver_times(steps: int) -> np.ndarray:
    """linspace(0, 1, steps + 1), counted in float32 from both ends inwards.

    So the released networks were sampled; v2 multiplies t by 10000, and notices its last bit.
    """
    up = np.arange(steps + 1, dtype=np.float32) * (np.float32(1) / np.float32(steps))
    return np.where(np.arange(steps + 1) < (steps + 1) // 2, up, 1 - up[::-1])


def integrate(
    velocity_fn: VelocityFn, noise: Array, *, steps: int, solver: str = "euler", diffusion: Diffusion | None = None
) -> Array:
    """Follows the network from noise (B, T, C) at t = 0 to data at t = 1 over linspace(0, 1, steps + 1).

    `solver` is a key of SOLVERS, or of DIFFUSION_SOLVERS for a `diffusion`; "midpoint" alone calls the network twice a step.
    DDPM's own noise is a function of the noise it begins with, row by row.
    """
    times = solver_times(steps)
    step, memory = solver_step(solver, noise, diffusion)

    def network_fn(x, t):
        return velocity_fn(x, jnp.full(x.shape[0], t))

    def scanned(carry, span):
        x, memory = carry
        return step(network_fn, x, *span, memory), None

    return jax.lax.scan(scanned, (noise, memory), (times[:-1], times[1:]))[0][0]


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
    steps: int = 25, guidance_scale: float = 4.5, solver: str = "euler", diffusion: Diffusion | None = None,
    negative_text: Array | None = None,
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
    return integrate(velocity_fn, noise, steps=steps, solver=solver, diffusion=diffusion)


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
    steps: int = 25, guidance_scale: float = 4.5, solver: str = "euler", diffusion: Diffusion | None = None,
    negative_text: Array | None = None, windows_at_once: int = 4,
) -> np.ndarray:
    """Latents (1, length, C) of one clip longer than the network's own, for noise of that shape.

    The conditions' batch is the windows that begin at `starts` (from `window_starts`); all windows are denoised
    together, their outputs blended at every solver step, so that neighbours agree on what they share
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
    step, memory = solver_step(solver, x, diffusion)
    for start, end in itertools.pairwise(solver_times(steps)):
        x, memory = step(velocity, x, start, end, memory)
    return np.asarray(x)


@functools.partial(jax.jit, static_argnums=0)
def _process(model: nn.Module, variables: Params, conditions: Conditions):
    return model.apply(variables, conditions, method="preprocess")


@functools.partial(jax.jit, static_argnames=("model", "guidance_scale"))
def _window_velocity(model, variables, x_t, t, processed, null, guidance_scale):
    def velocity_fn(*args):
        return model.apply(variables, *args, method="velocity")

    return guided(velocity_fn, processed, null, guidance_scale)(x_t, t)
