"""Solvers, guidance and window blending against closed forms."""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msg_jax.inference import sampling
from msg_jax.losses.diffusion import Diffusion
from msg_jax.types import Conditions

WINDOW = 40


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    latent_tokens: int = WINDOW


class Toy(nn.Module):
    """A network of three lines: its velocity depends on the conditions, on t and on all tokens of the clip."""

    config: ToyConfig = ToyConfig()
    streams = ()

    def preprocess(self, conditions):
        return conditions.clip.mean(axis=1, keepdims=True) + 10 * conditions.text.mean(axis=1, keepdims=True)

    def velocity(self, x_t, t, processed):
        return processed * (1 + jnp.tanh(x_t + x_t.mean(axis=1, keepdims=True))) + t[:, None, None]

    def null_conditions(self, batch, text=None):
        zeros = jnp.zeros((batch, 4, 3))
        return Conditions(zeros, zeros, zeros if text is None else jnp.broadcast_to(text, (batch, 4, 3)))


MODEL = Toy()


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def random_conditions(batch):
    return Conditions(*(normal(batch, 4, 3, seed=seed) for seed in (1, 2, 3)))


def test_euler_on_a_linear_field():
    """For dx/dt = a x one Euler step multiplies by 1 + a h."""
    a, steps = -1.5, 6
    noise = jnp.array([[[1.0]], [[2.0]]])
    euler = sampling.integrate(lambda x, t: a * x, noise, steps=steps)
    np.testing.assert_allclose(euler, noise * (1 + a / steps) ** steps, rtol=1e-6)


def test_euler_evaluates_the_field_at_the_left_ends():
    """For dx/dt = 2 t Euler sums 2 t h over the left ends of the steps: (steps - 1) / steps."""
    def field(x, t):
        return jnp.broadcast_to(2 * t[:, None, None], x.shape)

    np.testing.assert_allclose(sampling.integrate(field, jnp.zeros((2, 1, 1)), steps=4), 0.75, rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 7, 25])
def test_solver_times(steps):
    times = sampling.solver_times(steps)
    assert times.dtype == np.float32 and times[0] == 0 and times[-1] == 1
    np.testing.assert_allclose(times, np.linspace(0, 1, steps + 1), atol=1e-7)


def test_shifted_solver_times():
    """A shift of -log 3 puts the middle at 1 / (1 + 3)."""
    times = sampling.solver_times(4, -np.log(3))
    np.testing.assert_allclose(times, [0, 0.1, 0.25, 0.5, 1], rtol=1e-6)
    assert times.dtype == np.float32

    def field(x, t):
        return jnp.broadcast_to(2 * t[:, None, None], x.shape)

    sums = np.sum(2 * times[:-1] * np.diff(times))  # over the left ends of the steps
    shift = dict(steps=4, time_shift=-np.log(3))
    np.testing.assert_allclose(sampling.integrate(field, jnp.zeros((2, 1, 1)), **shift), sums, rtol=1e-6)
    np.testing.assert_allclose(sampling.euler_path(field, jnp.zeros((2, 1, 1)), 4, shift["time_shift"])[:, -1], sums, rtol=1e-6)


def test_guidance_formula_and_no_null_pass_at_one():
    calls = []

    def velocity_fn(x_t, t, processed):
        calls.append(x_t.shape[0])
        return processed * x_t

    x_t, t = jnp.ones((2, 3, 1)), jnp.zeros(2)
    cond, null = jnp.full((2, 1, 1), 2.0), jnp.full((2, 1, 1), 5.0)
    np.testing.assert_allclose(sampling.guided(velocity_fn, cond, null, 4.5)(x_t, t), 4.5 * 2 - 3.5 * 5)
    np.testing.assert_allclose(sampling.guided(velocity_fn, cond, null, 1.0)(x_t, t), 2.0)
    assert calls == [4, 2]


@pytest.mark.parametrize(("rescale", "diffusion"), [
    (0.7, None), (1.0, None), (0.7, Diffusion("noise", "cosine")), (0.7, Diffusion("v", "scaled_linear")),
])
def test_rescaled_guidance_keeps_the_deviation_of_the_predicted_data(rescale, diffusion):
    """The data are those of plain guidance times 1 + rescale * (ratio of the deviations - 1), row by row."""
    x_t, cond, null, t = normal(2, 5, 3), normal(2, 5, 3, seed=1), normal(2, 5, 3, seed=2), jnp.array([0.0, 0.75])

    def velocity_fn(x_t, t, processed):
        return processed + jnp.sin(x_t)

    def data(scale, rescale):
        output = sampling.guided(velocity_fn, cond, null, scale, rescale, diffusion)(x_t, t)
        return diffusion.to_data(x_t, output, t) if diffusion else x_t + (1 - t[:, None, None]) * output

    plain, unguided = data(4.0, 0.0), data(1.0, 0.0)
    ratio = np.std(unguided, axis=(1, 2)) / np.std(plain, axis=(1, 2))
    assert (np.abs(ratio - 1) > 0.1).all()
    np.testing.assert_allclose(data(4.0, rescale), (1 + rescale * (ratio - 1))[:, None, None] * plain, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize(("projection", "rescale", "diffusion"), [
    (1.0, 0.0, None), (0.6, 0.0, None), (1.0, 0.5, None), (1.0, 0.0, Diffusion("v", "cosine")),
])
def test_projected_guidance_adds_nothing_along_the_predicted_data(projection, rescale, diffusion):
    """In each of two streams, of 1 and 2 channels, what guidance adds loses its part along the unguided data."""
    x_t, cond, null, t = normal(2, 5, 3), normal(2, 5, 3, seed=1), normal(2, 5, 3, seed=2), jnp.array([0.0, 0.75])

    def data(scale, **how):
        output = sampling.guided(lambda x, t, processed: processed + jnp.sin(x), cond, null, scale, how.pop("rescale", 0.0),
                                 diffusion, **how)(x_t, t)
        return np.asarray(diffusion.to_data(x_t, output, t) if diffusion else x_t + (1 - t[:, None, None]) * output)

    plain, unguided = data(4.0), data(1.0)
    wanted = plain.copy()
    for row in range(2):
        for channels in (slice(0, 1), slice(1, 3)):
            along = unguided[row, :, channels]
            share = np.sum((plain[row, :, channels] - along) * along) / np.sum(along**2)
            assert abs(share) > 0.05
            wanted[row, :, channels] -= projection * share * along
    if rescale:
        ratio = np.std(unguided, axis=(1, 2)) / np.std(wanted, axis=(1, 2))
        wanted *= (1 + rescale * (ratio - 1))[:, None, None]
    found = data(4.0, projection=projection, streams=(1, 2), rescale=rescale)
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-5)


def test_sample_is_the_guided_integral_of_the_network():
    conditions, noise, negative = random_conditions(2), normal(2, WINDOW, 3), normal(1, 4, 3, seed=9)
    cond, null = (
        MODEL.apply({}, c, method="preprocess")
        for c in (conditions, MODEL.apply({}, 2, negative, method="null_conditions"))
    )
    x = noise
    for step in range(2):
        towards, away = (MODEL.velocity(x, jnp.full(2, step / 2), processed) for processed in (cond, null))
        x = x + (3 * towards - 2 * away) / 2
    ours = sampling.sample(MODEL, {}, conditions, noise, steps=2, guidance_scale=3.0, negative_text=negative)
    np.testing.assert_allclose(ours, x, rtol=1e-4, atol=1e-4)


def test_candidates_of_a_clip_share_its_conditions():
    conditions, noise = random_conditions(2), normal(6, WINDOW, 3)
    together = sampling.sample(MODEL, {}, conditions, noise, steps=2, guidance_scale=2.0)
    for row, clip in ((2, 0), (3, 1)):
        own = jax.tree.map(lambda a, clip=clip: a[clip : clip + 1], conditions)
        alone = sampling.sample(MODEL, {}, own, noise[row : row + 1], steps=2, guidance_scale=2.0)
        np.testing.assert_allclose(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)


def test_window_starts_cover_the_clip_and_end_with_it():
    assert sampling.window_starts(40, 40, 20) == (0,)
    assert sampling.window_starts(100, 40, 20) == (0, 20, 40, 60)
    assert sampling.window_starts(95, 40, 20) == (0, 20, 40, 55)


def test_blend_by_hand():
    """Two windows of 4, two tokens shared: triangular weights 1 2 2 1 give the first window 2/3, then 1/3."""
    windows = np.broadcast_to(np.array([0.0, 3.0])[:, None, None], (2, 4, 1))
    np.testing.assert_allclose(sampling.blend(windows, (0, 2))[:, 0], [0, 0, 1, 2, 3, 3], rtol=1e-6)


class Local(Toy):
    """A velocity that is the same function of every token, whatever its neighbours."""

    def velocity(self, x_t, t, processed):
        return jnp.sin(3 * x_t) + t[:, None, None]


@pytest.mark.parametrize("hop", [5, 13, 20])
def test_windows_do_not_change_a_field_that_ignores_position(hop):
    starts = sampling.window_starts(107, WINDOW, hop)
    noise = normal(1, 107, 2)
    settings = dict(steps=5, time_shift=-1.0)
    whole = sampling.integrate(lambda x, t: Local().velocity(x, t, None), noise, **settings)
    blended = sampling.sample_windows(Local(), {}, random_conditions(len(starts)), noise, starts, **settings)
    np.testing.assert_allclose(blended, whole, atol=1e-4)


def test_one_window_is_the_plain_sample():
    conditions, noise = random_conditions(1), normal(1, WINDOW, 3)
    settings = dict(steps=3, guidance_scale=2.0, time_shift=-1.0)
    plain = sampling.sample(MODEL, {}, conditions, noise, **settings)
    windows = sampling.sample_windows(MODEL, {}, conditions, noise, (0,), **settings)
    np.testing.assert_allclose(windows, plain, rtol=1e-4, atol=1e-4)


def test_windows_are_denoised_together_however_many_run_at_once():
    """Three windows in chunks of two or all at once: one result, and in the overlap not the first window's own."""
    starts = sampling.window_starts(70, WINDOW, 15)
    conditions, noise = random_conditions(len(starts)), normal(1, 70, 3)
    settings = dict(steps=3, guidance_scale=2.0)
    chunked, whole = (
        sampling.sample_windows(MODEL, {}, conditions, noise, starts, windows_at_once=at_once, **settings)
        for at_once in (2, 3)
    )
    assert len(starts) == 3 and chunked.shape == (1, 70, 3)
    np.testing.assert_allclose(chunked, whole, rtol=1e-4, atol=1e-4)
    first = jax.tree.map(lambda a: a[:1], conditions)
    alone = sampling.sample(MODEL, {}, first, noise[:, :WINDOW], **settings)
    np.testing.assert_raises(AssertionError, np.testing.assert_allclose, whole[:, 20:40], alone[:, 20:], atol=0.1)


def test_windows_of_cues_lie_within_them_and_a_short_cue_has_one_around_it():
    found = sampling.cue_windows([0, 60, 70, 150], window=20, hop=10, fade=2)
    starts = {number: [window.start for each, window in found if each == number] for number in range(3)}
    assert starts == {0: [0, 10, 20, 30, 40, 42], 1: [55], 2: [68, 78, 88, 98, 108, 118, 128, 130]}
    assert {(window.first, window.end) for number, window in found if number == 1} == {(60, 70)}
    # One span is the clip without cues.
    assert [window.start for _, window in sampling.cue_windows([0, 95], 40, 20, 2)] == [*sampling.window_starts(95, 40, 20)]


def test_cues_are_heard_in_their_span_and_cross_faded_at_its_edges():
    """Windows that hold the number of their cue: the blend is that number, but for the fade, where it is between."""
    edges, fade = [0, 60, 70, 150], 2
    found = sampling.cue_windows(edges, 20, 10, fade)
    windows = [window for _, window in found]
    values = np.broadcast_to(np.array([float(number) for number, _ in found])[:, None, None], (len(found), 20, 1))
    joined = sampling.blend(values, [w.start for w in windows], sampling.window_weights(windows, 20, fade))[:, 0]
    assert joined.shape == (150,) and (np.diff(joined) >= -1e-6).all()
    np.testing.assert_allclose(joined[:58], 0)
    np.testing.assert_allclose(joined[62:68], 1)
    np.testing.assert_allclose(joined[72:], 2)
    assert 0 < joined[58] < joined[61] < 1 and 1 < joined[68] < joined[71] < 2


class Constant(Toy):
    """A velocity that depends on the conditions alone."""

    def velocity(self, x_t, t, processed):
        return processed + 0 * x_t


def test_each_window_has_its_own_negative_text():
    starts, noise = (0, 20), normal(1, 60, 3)
    conditions, texts = random_conditions(2), normal(2, *random_conditions(1).text.shape[1:])
    settings = dict(steps=2, guidance_scale=2.0, windows_at_once=1)

    def sample(texts):
        return sampling.sample_windows(Constant(), {}, conditions, noise, starts, negative_text=texts, **settings)

    both, first, second = sample(texts), sample(texts[:1]), sample(texts[1:])
    np.testing.assert_allclose(both[:, :20], first[:, :20], rtol=1e-5)  # the first window's tokens alone
    np.testing.assert_allclose(both[:, 40:], second[:, 40:], rtol=1e-5)
    assert np.abs(first - second).min() > 1e-3
