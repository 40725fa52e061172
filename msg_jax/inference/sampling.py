"""Sampling: solvers, classifier-free guidance, and clips longer than the network's window.

A `model` is any Flax module with `preprocess`, `velocity`, `null_conditions` and `streams` of `models.generator.Generator`.
Latents here are normalised, as the network sees them; `model.unnormalize` turns them into the codec's.

Flow matching is the default. With a `Diffusion`, that object says what the network's output means, and `solver` is one of
DIFFUSION_SOLVERS.
"""

from collections.abc import Callable, Sequence
import functools
import itertools
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from msg_jax.inference.batching import chunks, deinterleave, interleave
from msg_jax.infra import progress
from msg_jax.losses import flow
from msg_jax.losses.diffusion import Diffusion
from msg_jax.losses.flow import VelocityFn
from msg_jax.types import Array, Conditions, JointConditions, Params

Denoiser = Callable[[Array, Array], Array]
"""(x (B, T, C), t) -> the predicted data (B, T, C)."""

Step = Callable[[Any, Any, Any, Any, Any], tuple[Any, Any]]
"""(network_fn, x, start, end, memory) -> x at the time `end`, and the memory of multi-step solvers."""


def _euler(velocity_fn, x, start, end, memory):
    return x + (end - start) * velocity_fn(x, start), memory


def _ddim(diffusion: Diffusion, denoise: Denoiser, x, start, end, memory):
    """DDIM with eta = 0: keep the noise, replace the data by its prediction (Song et al., arXiv 2010.02502)."""
    (alpha, sigma), (next_alpha, next_sigma) = diffusion.rates(start), diffusion.rates(end)
    data = denoise(x, start)
    return next_alpha * data + next_sigma * (x - alpha * data) / sigma, memory


def _ddpm(diffusion: Diffusion, denoise: Denoiser, x, start, end, keys):
    """DDPM: sample the posterior of the next point given this one and the predicted data (Ho et al., arXiv 2006.11239)."""
    (alpha, sigma), (next_alpha, next_sigma) = diffusion.rates(start), diffusion.rates(end)
    ratio = alpha / next_alpha
    added = sigma**2 - (ratio * next_sigma) ** 2  # variance of the noise added between the two points
    mean = (ratio * next_sigma**2 * x + next_alpha * added * denoise(x, start)) / sigma**2
    pairs = jax.vmap(jax.random.split)(keys)
    noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(pairs[:, 0])
    return mean + jnp.sqrt(added) * next_sigma / sigma * jnp.where(end < 1, noise, 0), pairs[:, 1]


def _dpm_solver(diffusion: Diffusion, denoise: Denoiser, x, start, end, memory):
    """DPM-Solver++(2M): extrapolate the data from the last two predictions (Lu et al., arXiv 2211.01095, algorithm 2).

    The final step spans much log-SNR, so it does not extrapolate.
    """
    last, last_log_snr = memory
    (_, sigma), (next_alpha, next_sigma) = diffusion.rates(start), diffusion.rates(end)
    log_snr, next_log_snr = diffusion.log_snr(start), diffusion.log_snr(end)
    data, h = denoise(x, start), next_log_snr - log_snr
    weight = jnp.where(end < 1, h / (2 * (log_snr - last_log_snr)), 0)
    towards = (1 + weight) * data - weight * last
    return next_sigma / sigma * x - next_alpha * jnp.expm1(-h) * towards, (data, log_snr)


def _row_keys(noise: Array | np.ndarray) -> Array:
    """One key per row of noise (B, T, C), a function of that row alone."""
    bits = jax.lax.bitcast_convert_type(jnp.asarray(noise)[:, 0, 0], jnp.uint32)
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.key(0), row))(bits)


def _nothing_before(noise: Array | np.ndarray) -> tuple[Array, Array]:
    """A previous prediction at infinite distance, which gets zero weight."""
    return jnp.zeros_like(noise), jnp.array(-jnp.inf)


DIFFUSION_SOLVERS = {"ddim": (_ddim, None), "ddpm": (_ddpm, _row_keys), "dpm_solver": (_dpm_solver, _nothing_before)}
"""Name -> (step function, function that makes the first memory from the noise)."""


def solver_step(solver: str, noise: Any, diffusion: Diffusion | None) -> tuple[Step, Any]:
    """The step function of a solver, and its first memory: Euler, or one of DIFFUSION_SOLVERS for a `diffusion`."""
    if diffusion is None:
        return _euler, None
    step, remember = DIFFUSION_SOLVERS[solver]

    def diffusion_step(network_fn, x, start, end, memory):
        def denoise(x, t):
            return diffusion.to_data(x, network_fn(x, t), jnp.full(1, t))

        return step(diffusion, denoise, x, start, end, memory)

    return diffusion_step, remember(noise) if remember else None


def solver_times(steps: int, shift: float = 0.0) -> np.ndarray:
    """linspace(0, 1, steps + 1) in float32, counted from both ends as PyTorch does, and `flow.shifted`.

    MMAudio sampled so, and v2's time embedding multiplies t by 10000, which makes the last bit visible.
    """
    up = np.arange(steps + 1, dtype=np.float32) * (np.float32(1) / np.float32(steps))
    times = np.where(np.arange(steps + 1) < (steps + 1) // 2, up, 1 - up[::-1])
    return np.asarray(flow.shifted(times, shift), np.float32) if shift else times


def integrate(
    velocity_fn: VelocityFn, noise: Float[Array | np.ndarray, "B T C"], *, steps: int, solver: str = "",
    diffusion: Diffusion | None = None, time_shift: float = 0.0,
) -> Float[Array, "B T C"]:
    """Integrate from noise at t = 0 to data at t = 1 in `steps` steps, which are equal without a `time_shift`.

    Flow matching uses Euler. With a `diffusion`, `solver` is a key of DIFFUSION_SOLVERS; the noise that DDPM adds is a
    function of the initial noise, row by row.
    """
    times = solver_times(steps, time_shift)
    step, memory = solver_step(solver, noise, diffusion)

    def network_fn(x, t):
        return velocity_fn(x, jnp.full(x.shape[0], t))

    def scanned(carry, span):
        x, memory = carry
        start, end = span
        return step(network_fn, x, start, end, memory), None

    return jax.lax.scan(scanned, (jnp.asarray(noise), memory), (times[:-1], times[1:]))[0][0]


def euler_path(
    velocity_fn: VelocityFn, noise: Float[Array, "B T C"], steps: int, time_shift: float = 0.0
) -> Float[Array, "B {steps}+1 T C"]:
    """All states of `integrate` with Euler's method, from noise at t = 0 to data at t = 1."""
    times = solver_times(steps, time_shift)

    def step(x, span):
        start, end = span
        x, _ = _euler(lambda x, t: velocity_fn(x, jnp.full(x.shape[0], t)), x, start, end, None)
        return x, x

    ends = jax.lax.scan(step, noise, (times[:-1], times[1:]))[1]
    return jnp.concatenate([noise[:, None], jnp.moveaxis(ends, 0, 1)], axis=1)


def guided(
    velocity_fn: Callable, cond, null, guidance_scale: float, rescale: float = 0.0, diffusion: Diffusion | None = None, *,
    projection: float = 0.0, streams: Sequence[int] = (),
) -> VelocityFn:
    """Classifier-free guidance: s * velocity(cond) + (1 - s) * velocity(null) (Ho & Salimans, arXiv 2207.12598).

    `velocity_fn(x_t, t, processed)` gets both halves as one batch of 2 B, rows in turn. A scale of 1 needs no null pass.

    Guidance makes the data that the network predicts larger, and so sound louder. `projection` in [0, 1] is the share taken
    away of what it adds along the data that are predicted without it, in each of the `streams` of channels by itself
    (adaptive projected guidance, Sadat et al., arXiv 2410.02416; their eta is 1 - projection). `rescale` in [0, 1] is the share
    by which their deviation over tokens and channels is brought back to what it is without guidance (Lin et al., arXiv
    2305.08891, section 3.4). With a `diffusion`, the network predicts what that says in the place of a velocity.
    """
    if guidance_scale == 1:
        return lambda x_t, t: velocity_fn(x_t, t, cond)
    both = interleave(cond, null)

    def velocity(x_t, t):
        towards, away = deinterleave(velocity_fn(interleave(x_t, x_t), interleave(t, t), both))
        mixed = guidance_scale * towards + (1 - guidance_scale) * away
        if not (rescale or projection):
            return mixed
        slope = diffusion.data_per_output(t) if diffusion else 1 - t[:, None, None]
        data = diffusion.to_data(x_t, mixed, t) if diffusion else x_t + slope * mixed
        unguided = data + slope * (towards - mixed)
        change = jnp.zeros_like(data)
        if projection:
            change = -projection * _along(unguided, data - unguided, streams)
        if rescale:
            data = data + change
            ratio = jnp.std(unguided, axis=(1, 2), keepdims=True) / jnp.std(data, axis=(1, 2), keepdims=True)
            change = change + rescale * (ratio - 1) * data
        return mixed + change / slope

    return velocity


def _along(direction: Float[Array, "B T C"], x: Float[Array, "B T C"], streams: Sequence[int]) -> Float[Array, "B T C"]:
    """The part of x that is parallel to `direction`, row by row, in each of the `streams` of channels; () means one stream."""
    def part(direction, x):
        share = jnp.sum(direction * x, axis=(1, 2), keepdims=True) / jnp.sum(direction**2, axis=(1, 2), keepdims=True)
        return share * direction

    cuts = np.cumsum(streams)[:-1]
    return jnp.concatenate([part(*each) for each in zip(*(jnp.split(y, cuts, axis=-1) for y in (direction, x)))], axis=-1)


def sample(
    model: Any, variables: Params, conditions: Conditions | JointConditions, noise: Float[Array | np.ndarray, "N T C"], *,
    steps: int = 25, guidance_scale: float = 4.5, guidance_rescale: float = 0.0, guidance_projection: float = 0.0,
    solver: str = "", diffusion: Diffusion | None = None, time_shift: float = 0.0,
    negative_text: Float[Array | np.ndarray, "_ L D"] | None = None,
) -> Float[Array, "N T C"]:
    """Sample latents for a batch of B clips, N / B candidates of each.

    Rows i N / B to (i + 1) N / B - 1 are the candidates of clip i, whose conditions are processed once. `negative_text`
    (B or 1 rows) replaces the empty text in the null conditions.
    """
    batch, candidates = len(conditions.text), noise.shape[0] // len(conditions.text)
    null = model.apply(variables, batch, negative_text, method="null_conditions")

    def process(conditions):
        processed = model.apply(variables, conditions, method="preprocess")
        return jax.tree.map(lambda a: jnp.repeat(a, candidates, axis=0), processed)

    def velocity(x_t, t, processed):
        return model.apply(variables, x_t, t, processed, method="velocity")

    velocity_fn = guided(
        velocity, process(conditions), process(null), guidance_scale, guidance_rescale, diffusion,
        projection=guidance_projection, streams=model.streams,
    )
    return integrate(velocity_fn, noise, steps=steps, solver=solver, diffusion=diffusion, time_shift=time_shift)


def window_starts(length: int, window: int, hop: int) -> tuple[int, ...]:
    """Starts of windows that cover `length` >= `window` tokens, `hop` apart; the last window ends with the clip."""
    return (*range(0, length - window, hop), length - window)


class Window(NamedTuple):
    """A window of a clip, in tokens: it begins at `start`, and counts from `first` to before `end`, the span of its cue."""

    start: int
    first: int
    end: int


def cue_windows(edges: Sequence[int], window: int, hop: int, fade: int) -> list[tuple[int, Window]]:
    """Windows of a clip that is cut into spans at `edges` (the first is 0, the last its length): (number of the span, window).

    Windows lie within their span and `fade` tokens around it, as far as it has room for them.
    """
    length, found = edges[-1], []
    for number, (first, end) in enumerate(itertools.pairwise(edges)):
        low, high = max(0, first - fade), min(length, end + fade)
        if high - low >= window:
            starts = [low + start for start in window_starts(high - low, window, hop)]
        else:
            starts = [min(max(0, (first + end - window) // 2), length - window)]
        found += [(number, Window(start, first, end)) for start in starts]
    return found


def window_weights(windows: Sequence[Window], window: int, fade: int) -> Float[np.ndarray, "W T"]:
    """The weights of each window's tokens in `blend`: triangles, which rise and fall at the edges of the span.

    The rise takes 2 `fade` tokens, half of them inside the span, so that neighbouring spans are cross-faded.
    """
    at = np.arange(window)
    ramp = np.minimum(at + 1, window - at)
    weights = []
    for start, first, end in windows:
        inside = np.minimum(start + at + 0.5 - first, end - start - at - 0.5)
        weights.append(ramp * np.clip(0.5 + inside / max(2 * fade, 1), 0, 1))
    return np.array(weights, np.float32)


def blend(
    windows: Float[np.ndarray, "W T C"], starts: Sequence[int] | np.ndarray,
    weights: Float[np.ndarray, "W T"] | None = None,
) -> Float[np.ndarray, "L C"]:
    """Join overlapping windows into one sequence; `starts` has one entry per window.

    Overlaps are averaged with `weights`, by default triangles, so that no window begins or ends audibly.
    """
    window, length = windows.shape[1], max(starts) + windows.shape[1]
    if weights is None:
        weights = window_weights([Window(start, 0, length) for start in starts], window, 0)
    total, share = np.zeros((length, windows.shape[2]), np.float32), np.zeros((length, 1), np.float32)
    for start, values, weight in zip(starts, windows, weights):
        total[start : start + window] += weight[:, None] * values
        share[start : start + window] += weight[:, None]
    return total / share


def sample_windows(
    model: Any, variables: Params, conditions: Conditions | JointConditions, noise: Float[Array | np.ndarray, "1 L C"],
    starts: Sequence[int], *, steps: int = 25, guidance_scale: float = 4.5, guidance_rescale: float = 0.0,
    guidance_projection: float = 0.0, solver: str = "", diffusion: Diffusion | None = None, time_shift: float = 0.0,
    negative_text: Float[Array | np.ndarray, "_ P D"] | None = None,
    windows_at_once: int = 4, weights: Float[np.ndarray, "W T"] | None = None,
) -> Float[np.ndarray, "1 L C"]:
    """Sample one clip that is longer than the network's window.

    `conditions` has one row per window, which begin at `starts` (from `window_starts`). All windows are denoised jointly:
    their velocities are blended at every solver step, so that neighbours agree on their overlap (MultiDiffusion, Bar-Tal
    et al., arXiv 2302.08113).

    `negative_text` (1 row, or one per window) replaces the empty text in the null conditions; `weights` are those of `blend`.

    The solver's loop runs on the host and the network on `windows_at_once` windows at a time, so memory and compiled
    program do not depend on the clip's length.
    """
    def null(negative_text):
        return _process(model, variables, model.apply(variables, windows_at_once, negative_text, method="null_conditions"))

    processed = [_process(model, variables, chunk) for chunk in chunks(conditions, windows_at_once)]
    if negative_text is None or len(negative_text) == 1:
        nulls = [null(negative_text)] * len(processed)
    else:
        nulls = [null(chunk) for chunk in chunks(negative_text, windows_at_once)]
    positions = np.asarray(starts)[:, None] + np.arange(model.config.latent_tokens)

    def velocity(x, t):
        times = np.full(windows_at_once, t, np.float32)
        outputs = [
            _window_velocity(
                model, variables, x_t, times, cond, null, guidance_scale, guidance_rescale, guidance_projection, diffusion
            )
            for x_t, cond, null in zip(chunks(x[0, positions], windows_at_once), processed, nulls)
        ]
        return blend(np.concatenate(outputs)[: len(starts)], starts, weights)[None]

    x = np.asarray(noise)
    step, memory = solver_step(solver, x, diffusion)
    for done, (start, end) in enumerate(itertools.pairwise(solver_times(steps, time_shift)), 1):
        x, memory = step(velocity, x, start, end, memory)
        progress.report(done / steps)
    return np.asarray(x)


@functools.partial(jax.jit, static_argnums=0)
def _process(model: nn.Module, variables: Params, conditions: Conditions | JointConditions):
    return model.apply(variables, conditions, method="preprocess")


@functools.partial(jax.jit, static_argnames=("model", "guidance_scale", "guidance_rescale", "guidance_projection", "diffusion"))
def _window_velocity(
    model, variables, x_t, t, processed, null, guidance_scale, guidance_rescale, guidance_projection, diffusion
):
    def velocity_fn(*args):
        return model.apply(variables, *args, method="velocity")

    return guided(
        velocity_fn, processed, null, guidance_scale, guidance_rescale, diffusion, projection=guidance_projection,
        streams=model.streams,
    )(x_t, t)
