"""Rules on sequences that show where each step was read from: row i of `RAMP` is (i, i^2), which no mixture of rows equals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msg_jax.clip import TINY
from msg_jax.data import mel
from msg_jax.data.scenes import ScenesSource
from msg_jax.models.codec import PcaCodec, fit_pca
from msg_jax.preference import distortions

HZ, STEPS = TINY.latent_hz, TINY.latent_tokens  # 12.5, 40
RAMP = jnp.arange(STEPS, dtype=jnp.float32)[:, None] ** jnp.array([1, 2])
RULES = distortions.make_rules(TINY.duration_sec)
KEYS = jax.random.split(jax.random.key(0), 64)


@functools.cache
def _compiled(rule):
    return jax.jit(jax.vmap(lambda sequence, key, strength: rule(sequence, key, strength, HZ), (None, 0, None)))


def _results(rule, strength, sequence):
    """Apply the rule at one strength with 64 keys: (64, T, C)."""
    return np.asarray(_compiled(rule)(sequence, KEYS, jnp.float32(strength)))


def _read_at(rule, strength):
    """Position in `RAMP` that each step was read from, (64, STEPS); NaN inside a crossfade."""
    place, square = np.moveaxis(_results(rule, strength, RAMP), -1, 0)
    return np.where(np.abs(place**2 - square) < 0.1, np.round(place), np.nan)


# One event that starts at step 20 and decays, in faint noise.
EVENT = 0.01 * jax.random.normal(jax.random.key(1), (STEPS, 3)) + (
    jnp.where(jnp.arange(STEPS) >= 20, jnp.exp(-(jnp.arange(STEPS) - 20.0)), 0.0)[:, None] * jnp.array([1.0, -2.0, 0.5])
)


@pytest.mark.parametrize(("seconds", "steps"), [(0.08, 1), (0.4, 5), (1.0, 12), (1.6, 20)])
def test_shift_moves_every_step_by_its_length_in_either_direction(seconds, steps):
    places = _read_at(distortions.shift, seconds)
    moved = (np.arange(STEPS) - places + STEPS // 2) % STEPS - STEPS // 2
    for row in moved:
        assert len(set(np.abs(row[np.isfinite(row)]))) == 1 and np.nanmax(np.abs(row)) == steps
    assert np.isnan(places).sum(1).max() <= 2  # the two steps beside the splice
    if steps < STEPS // 2:
        assert {*np.nanmedian(moved, axis=1)} == {-steps, steps}


def test_shift_moves_an_impulse():
    impulse = jnp.zeros((STEPS, 2)).at[17].set(jnp.array([3.0, -1.0]))
    for clip in _results(distortions.shift, 0.32, impulse):
        (place,) = np.flatnonzero(clip[:, 0])
        assert abs(place - 17) == 4
        np.testing.assert_array_equal(clip[place], [3.0, -1.0])


def test_reverse_is_its_own_inverse():
    once = distortions.reverse(EVENT, KEYS[0], 1.0, HZ)
    np.testing.assert_array_equal(once[0], EVENT[-1])
    np.testing.assert_array_equal(distortions.reverse(once, KEYS[0], 1.0, HZ), EVENT)


@pytest.mark.parametrize("segments", [2, 3, 4])
def test_shuffle_keeps_every_step_but_not_the_order(segments):
    places = _read_at(distortions.shuffle, segments)
    for row in places:
        kept = row[np.isfinite(row)]
        assert len(set(kept)) == len(kept) >= STEPS - 2 * (segments - 1)
        assert (row != np.arange(STEPS)).sum() >= STEPS // segments  # at least one segment moves
        # Neighbouring steps stay neighbours, except beside the at most `segments` - 1 splices.
        assert (np.diff(row) == 1).sum() >= STEPS - 1 - 3 * (segments - 1)
    assert len({row.tobytes() for row in places}) > 8


@pytest.mark.parametrize(("factor", "expected"), [
    (3 / 4, np.arange(STEPS) * 3 // 4), (4 / 3, np.arange(STEPS) * 4 // 3 % STEPS),
])
def test_change_speed_reads_the_expected_steps(factor, expected):
    places = _read_at(distortions.change_speed, factor)[0]
    exact = np.isfinite(places)
    np.testing.assert_array_equal(places[exact], expected[exact])
    assert (~exact).sum() == (2 if factor > 1 else 0)  # the faster one starts again, with one splice


@pytest.mark.parametrize("seconds", [0.08, 0.16, 0.3])
def test_warp_is_smooth_and_local_and_has_the_given_height(seconds):
    places = _read_at(distortions.warp, seconds)
    moved = places - np.arange(STEPS)
    assert np.isfinite(places).all()  # no crossfade
    assert set(np.diff(places).ravel()) <= {0, 1, 2}
    assert (np.abs(np.abs(moved).max(1) - seconds * HZ) <= 0.6).all()
    assert (moved.min(1) * moved.max(1) == 0).all()  # a single bump in one direction
    assert {-1, 1} == {*np.sign(moved.sum(1))}
    width = 2 * np.pi * seconds * HZ
    assert ((moved != 0).sum(1) <= width + 1).all()
    assert (places[:, 0] == 0).all() and (places[:, -1] == STEPS - 1).all()


@pytest.mark.parametrize(("seconds", "steps"), [(0.08, 1), (0.24, 3), (0.4, 5)])
def test_move_event_moves_one_event_by_its_distance_and_nothing_else(seconds, steps):
    clips = _results(distortions.move_event, seconds, EVENT)
    far = [*range(20 - steps - 2), *range(20 + 3 + steps + 2, STEPS)]  # an event is three steps long
    chosen = [clip for clip in clips if np.abs(clip - EVENT).max() > 0.5]
    assert len(chosen) > 48  # an onset in the noise is rarely sampled
    for clip in chosen:
        onset = int(np.abs(np.diff(clip[:, 1])).argmax()) + 1
        # The crossfades beside the event carry a third of it, so the strongest step is the event.
        assert abs(int(np.abs(clip[:, 1]).argmax()) - 20) == steps, onset
        np.testing.assert_array_equal(clip[far], EVENT[jnp.array(far)])


def test_move_event_keeps_the_length_with_an_event_at_either_end():
    for place in (1, STEPS - 1):
        found = _results(distortions.move_event, 0.4, jnp.zeros((STEPS, 3)).at[place].set(1.0))
        assert found.shape == (64, STEPS, 3) and np.isfinite(found).all() and (found.max((1, 2)) > 0.6).all()


@pytest.mark.parametrize("fade", [1, 2, 4])
def test_splice_crossfades_linearly(fade):
    levels = jnp.repeat(jnp.array([[0.0], [9.0]]), 20, axis=0)
    positions = jnp.concatenate([jnp.arange(5, 15), jnp.arange(25, 35)])  # from the low half to the high half
    found = np.asarray(distortions.splice(levels, positions, fade))[:, 0]
    ramp = 9.0 * np.arange(1, 2 * fade + 1) / (2 * fade + 1)
    np.testing.assert_allclose(found[10 - fade : 10 + fade], ramp, rtol=1e-6)
    np.testing.assert_array_equal(found[: 10 - fade], 0.0)
    np.testing.assert_array_equal(found[10 + fade :], 9.0)


def test_splice_does_not_crossfade_a_change_of_speed():
    positions = jnp.array([0, 1, 3, 3, 4, 6, 7, 7, 8, 9])  # faster and slower, but no splice
    np.testing.assert_array_equal(distortions.splice(RAMP, positions, 2)[:, 0], positions)


def test_strengths_cover_their_ranges():
    for number, (name, (low, high)) in enumerate({
        "another_clip": (1, 1), "reversal": (1, 1), "coarse_shift": (1, 1.6), "shuffle": (2, 4), "medium_shift": (0.4, 1),
        "speed": (3 / 4, 4 / 3), "fine_shift": (0.08, 0.4), "time_warp": (0.08, 0.3), "moved_event": (0.08, 0.4),
    }.items()):
        assert list(RULES)[number] == name
        drawn = np.asarray(distortions.strengths(jax.random.key(2), jnp.full(512, number), RULES))
        assert low == pytest.approx(drawn.min(), abs=0.01) and high == pytest.approx(drawn.max(), abs=0.01), name
    shuffles = distortions.strengths(jax.random.key(2), jnp.full(512, list(RULES).index("shuffle")), RULES)
    assert set(np.asarray(shuffles)) == {2, 3, 4}


def test_shifts_are_at_most_half_a_clip():
    rules = distortions.make_rules(1.0)
    drawn = distortions.strengths(jax.random.key(0), jnp.full(64, list(rules).index("coarse_shift")), rules)
    np.testing.assert_allclose(drawn, 0.5)


def _levels(step, steps=101, curriculum="linear", rules=RULES):
    probabilities = np.asarray(distortions.schedule(step, steps, curriculum, rules))
    return [probabilities[[rule.level == level for rule in rules.values()]].sum() for level in distortions.LEVELS]


@pytest.mark.parametrize(("step", "levels"), [
    (0, (1, 0, 0)), (25, (0.5, 0.5, 0)), (50, (0, 1, 0)), (75, (0, 0.5, 0.5)), (100, (0, 0, 1)), (400, (0, 0, 1)),
])
def test_schedule_goes_from_coarse_to_fine(step, levels):
    np.testing.assert_allclose(_levels(step), levels, atol=1e-6)
    np.testing.assert_allclose(_levels(step, curriculum="uniform"), [1 / 3] * 3, rtol=1e-6)


def test_schedule_is_smooth_and_a_function_of_the_step_alone():
    each = jax.jit(jax.vmap(lambda step: distortions.schedule(step, 200, "linear", RULES)))(jnp.arange(200))
    np.testing.assert_allclose(each.sum(1), 1.0, rtol=1e-5)
    assert float(jnp.abs(jnp.diff(each, axis=0)).max()) < 0.011 / 3 * 1.01
    np.testing.assert_allclose(each[123], distortions.schedule(123, 200, "linear", RULES), rtol=1e-5)
    subset = {name: RULES[name] for name in ("reversal", "shuffle", "fine_shift", "time_warp")}
    np.testing.assert_allclose(distortions.schedule(100, 101, "linear", subset), [0, 0, 0.5, 0.5])


@pytest.fixture(scope="module")
def latents():
    """Codec latents (32, 40, 32) of procedural scenes."""
    source = ScenesSource(TINY, "train", 32, 0)
    log_mels = mel.log_mel(np.stack([source[i]["waveform"] for i in range(32)]), TINY.mel)
    params, _ = fit_pca(log_mels, np.zeros((TINY.mel.bands, TINY.mel.n_fft // 2 + 1), np.float32), TINY)
    return PcaCodec(TINY).apply({"params": params}, log_mels, method="encode")


def _distort(latents, index, key=KEYS[3]):
    index = jnp.asarray(index)
    strength = distortions.strengths(KEYS[4], index, RULES)
    return np.asarray(jax.jit(lambda *inputs: distortions.distort(*inputs, RULES, HZ))(key, latents, index, strength))


def test_distort_applies_to_each_item_its_own_rule(latents):
    names = list(RULES)
    index = np.arange(len(latents)) % len(RULES)
    losers = _distort(latents, index)
    assert losers.shape == latents.shape
    for item, clip in enumerate(losers):
        rule = names[index[item]]
        if rule == "another_clip":
            np.testing.assert_array_equal(clip, latents[(item + 1) % len(latents)])
        elif rule == "reversal":
            np.testing.assert_array_equal(clip, latents[item][::-1])
        else:
            assert np.abs(clip - latents[item]).max() > 0.1, rule
    np.testing.assert_array_equal(losers, _distort(latents, index))
    assert not np.array_equal(losers, _distort(latents, index, KEYS[5]))


@pytest.mark.parametrize("rule", list(RULES))
def test_losers_keep_the_roughness_and_the_level_of_their_winners(latents, rule):
    losers = _distort(latents, np.full(len(latents), list(RULES).index(rule)))
    for statistic in (lambda x: np.square(np.diff(x, axis=1)).mean(), lambda x: np.square(x).mean()):
        assert statistic(losers) == pytest.approx(statistic(np.asarray(latents)), rel=0.1)
