"""Losers by rule: what a clip's own sound becomes when its timing is wrong, from coarse to subtle (SyncDPO, arXiv 2605.12179).

A rule is a pure function of a sequence (T, C), a random key, a strength and the sequence's rate in Hz (static); its result
is exactly as long. It reads whole steps of the sequence in another order and never interpolates them, for a blur would give
the loser away; where two steps meet that were no neighbours it crossfades over `FADE_SEC` on either side, for so would a
click. What leaves a shifted clip at one end comes in at the other.

The three levels, their rules and ranges are the paper's; how a rule does it is ours.
"""

from collections.abc import Callable, Mapping
import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from msg_jax.types import Array

LEVELS = ("coarse", "medium", "fine")
CURRICULA = ("linear", "uniform")
FADE_SEC = 0.02  # on each side of a join, and at least one step
EVENT_SEC = 0.24  # how much from its onset on is taken for one event
_MAX_SEGMENTS = 4
# Every order of 2, 3 or 4 segments but the one they had; the segments beyond are empty.
_ORDERS = [
    np.array([(*order, *range(n, _MAX_SEGMENTS)) for order in itertools.permutations(range(n))][1:])
    for n in range(2, _MAX_SEGMENTS + 1)
]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A distortion and how strong it is drawn: `strength` of u in [0, 1), in `unit`.

    `apply` is None for the one rule that is no function of the clip: the sound of another clip instead.
    """

    level: str
    apply: Callable[[Array, Array, Array, float], Array] | None
    strength: Callable[[Array], Array] = jnp.ones_like
    unit: str = ""


def make_rules(duration_sec: float) -> dict[str, Rule]:
    """The rules for clips of `duration_sec`, by name. A shift beyond half a clip would be a smaller one the other way."""
    def between(low, high):
        low, high = min(low, duration_sec / 2), min(high, duration_sec / 2)
        return lambda u: low + u * (high - low)

    return {
        "another_clip": Rule("coarse", None),
        "reversal": Rule("coarse", reverse),
        "coarse_shift": Rule("coarse", shift, between(1.0, math.inf), "s"),
        "shuffle": Rule("medium", shuffle, lambda u: 2 + jnp.floor(u * (_MAX_SEGMENTS - 1)), "segments"),
        "medium_shift": Rule("medium", shift, between(0.4, 1.0), "s"),
        "speed": Rule("medium", change_speed, lambda u: jnp.where(u < 0.5, 3 / 4, 4 / 3), "times as fast"),
        "fine_shift": Rule("fine", shift, between(0.08, 0.4), "s"),
        "time_warp": Rule("fine", warp, between(0.08, 0.3), "s"),
        "moved_event": Rule("fine", move_event, between(0.08, 0.4), "s"),
    }


def schedule(step: Array | int, steps: int, curriculum: str, rules: Mapping[str, Rule]) -> Array:
    """Probabilities of the rules, (R,), at a training step: a pure function of it, so that a resumed run goes on exactly.

    `linear`: the coarse level alone at first, the medium one alone in the middle, the fine one alone in the end, and straight
    lines between. `uniform`: every level alike, always. The rules of a level share its probability.
    """
    place = (len(LEVELS) - 1) * jnp.clip(step / max(steps - 1, 1), 0.0, 1.0)
    levels = {
        "linear": jnp.maximum(0.0, 1 - jnp.abs(place - jnp.arange(len(LEVELS)))),
        "uniform": jnp.full(len(LEVELS), 1 / len(LEVELS)),
    }[curriculum]
    index = np.array([LEVELS.index(rule.level) for rule in rules.values()])
    return levels[index] / np.bincount(index)[index]


def strengths(key: Array, index: Array, rules: Mapping[str, Rule]) -> Array:
    """A strength (B,) for each of the rules `index` (B,)."""
    u = jax.random.uniform(key, index.shape)
    return jnp.stack([rule.strength(u) for rule in rules.values()])[index, jnp.arange(len(index))]


def distort(
    key: Array, sequences: Array, index: Array, strength: Array, rules: Mapping[str, Rule], hz: float
) -> Array:
    """Losers (B, T, C) of the sequences of a batch (B, T, C) under rule `index` (B,) at `strength` (B,).

    Another clip's sound is that of the next clip of the batch.
    """
    branches = [
        (lambda sequence, other, key, strength: other) if rule.apply is None
        else (lambda sequence, other, key, strength, rule=rule: rule.apply(sequence, key, strength, hz))
        for rule in rules.values()
    ]
    return jax.vmap(lambda index, *inputs: jax.lax.switch(index, branches, *inputs))(
        index, sequences, jnp.roll(sequences, -1, axis=0), jax.random.split(key, len(sequences)), strength
    )


def read(sequence: Array, positions: Array, fade: int = 0) -> Array:
    """`sequence` (T, C) read at integer `positions` (N,), crossfaded over `fade` steps on either side of every join.

    A join is where two positions follow each other that do not in `sequence`, however fast it is read (0 to 2 steps).
    There either side goes on beyond the join while it fades.
    """
    steps = len(positions)

    def at(positions):
        return sequence[jnp.clip(positions, 0, len(sequence) - 1)]

    index = jnp.arange(steps)
    join = jnp.concatenate([jnp.zeros(1, bool), jnp.abs(jnp.diff(positions) - 1) > 1])  # before step i
    mixed, total = at(positions), jnp.ones(steps)
    for k in range(fade):
        weight = (fade - k) / (fade + 1 + k)  # of the other side, beside 1 for this one: linear when they are normalised
        before = (index >= k + 1) & join[jnp.clip(index - k, 0, steps - 1)]
        after = (index + k + 1 < steps) & join[jnp.clip(index + k + 1, 0, steps - 1)]
        for here, neighbour, ahead in ((before, index - k - 1, k + 1), (after, index + k + 1, -k - 1)):
            w = jnp.where(here, weight, 0.0)
            mixed += w[:, None] * at(positions[jnp.clip(neighbour, 0, steps - 1)] + ahead)
            total += w
    return mixed / total[:, None]


def shift(sequence: Array, key: Array, seconds: Array, hz: float) -> Array:
    """Moved by `seconds`, earlier or later; what leaves at one end comes in at the other."""
    return read(sequence, (jnp.arange(len(sequence)) - _sign(key) * _steps(seconds, hz)) % len(sequence), _fade(hz))


def reverse(sequence: Array, key: Array, strength: Array, hz: float) -> Array:
    """From end to beginning."""
    return sequence[::-1]


def shuffle(sequence: Array, key: Array, segments: Array, hz: float) -> Array:
    """2 to 4 `segments` of about equal length in another order."""
    steps = len(sequence)
    cut_key, order_key = jax.random.split(key)
    count = jnp.clip(jnp.round(segments).astype(int), 2, _MAX_SEGMENTS)
    uneven = jax.random.uniform(cut_key, (_MAX_SEGMENTS - 1,), minval=-0.25, maxval=0.25)
    cuts = jnp.round(steps * (jnp.arange(1, _MAX_SEGMENTS) + uneven) / count).astype(int)
    cuts = jnp.where(jnp.arange(1, _MAX_SEGMENTS) < count, cuts, steps)
    starts, ends = jnp.concatenate([jnp.zeros(1, int), cuts]), jnp.concatenate([cuts, jnp.full(1, steps)])
    chosen = jax.random.uniform(order_key)
    order = jnp.stack([jnp.asarray(orders)[(chosen * len(orders)).astype(int)] for orders in _ORDERS])[count - 2]
    placed = jnp.cumsum((ends - starts)[order])  # where each segment ends now
    rank = jnp.searchsorted(placed, jnp.arange(steps), side="right")
    return read(sequence, jnp.arange(steps) - placed[rank] + ends[order][rank], _fade(hz))


def change_speed(sequence: Array, key: Array, factor: Array, hz: float) -> Array:
    """Played `factor` times as fast: what ends too early begins again, what ends too late is cut."""
    steps = len(sequence)
    return read(sequence, jnp.floor(jnp.arange(steps) * factor + 1e-4).astype(int) % steps, _fade(hz))


def warp(sequence: Array, key: Array, seconds: Array, hz: float) -> Array:
    """A smooth local time-warp: a bump of `seconds` at a random place, read between half and one and a half times as fast."""
    sign_key, place_key = jax.random.split(key)
    steps = len(sequence)
    height = jnp.minimum(seconds * hz, steps / (2 * math.pi))
    width = 2 * math.pi * height  # a raised cosine's slope is at most pi * height / width
    start = jax.random.uniform(place_key) * (steps - width)
    phase = jnp.clip((jnp.arange(steps) - start) / width, 0.0, 1.0)
    bump = height * (1 - jnp.cos(2 * math.pi * phase)) / 2
    return read(sequence, jnp.round(jnp.arange(steps) + _sign(sign_key) * bump).astype(int))


def move_event(sequence: Array, key: Array, seconds: Array, hz: float) -> Array:
    """One event changes places with the `seconds` after or before it, and nothing else moves.

    An event is `EVENT_SEC` from an onset on, and an onset is a step that differs from the one before by more than its
    neighbours do, drawn in proportion to that: no event truth is needed.
    """
    onset_key, sign_key = jax.random.split(key)
    steps, length = len(sequence), round(EVENT_SEC * hz)
    change = jnp.concatenate([jnp.zeros(1), jnp.sum(jnp.square(jnp.diff(sequence, axis=0)), axis=1)])
    neighbours = jnp.pad(change, 1)
    peak = (change >= neighbours[:-2]) & (change > neighbours[2:])
    onset = jax.random.categorical(onset_key, jnp.where(peak, jnp.log(change + 1e-9), -jnp.inf))
    distance = _steps(seconds, hz)
    later = _sign(sign_key) > 0
    first = jnp.where(later, onset, onset - distance)
    first = jnp.clip(first, 0, steps - length - distance)
    ahead, behind = jnp.where(later, length, distance), jnp.where(later, distance, length)  # two stretches change places
    index = jnp.arange(steps) - first
    moved = jnp.where(index < behind, index + ahead, index - behind)
    inside = (index >= 0) & (index < length + distance)
    return read(sequence, first + jnp.where(inside, moved, index), _fade(hz))


def _steps(seconds: Array, hz: float) -> Array:
    """At least one: a loser is never its winner."""
    return jnp.maximum(1, jnp.round(seconds * hz).astype(int))


def _fade(hz: float) -> int:
    return max(1, round(FADE_SEC * hz))


def _sign(key: Array) -> Array:
    return jnp.where(jax.random.bernoulli(key), 1, -1)
