"""Rule-based losers: distortions of the timing of a clip's own audio, from coarse to fine (SyncDPO, arXiv 2605.12179).

A rule is a pure function of a sequence (T, C), a random key, a strength, and the sequence's rate in Hz (static). It returns a
sequence of the same length. A rule reorders whole steps and never interpolates between them: blur would give the loser away.
So would a click, so every splice gets a crossfade of `FADE_SEC` on either side. Shifts are circular.

The three levels, their rules and the ranges of strength are the paper's. The implementations are ours.
"""

from collections.abc import Callable, Mapping
import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, PRNGKeyArray
import numpy as np

from msg_jax.types import Array

LEVELS = ("coarse", "medium", "fine")
CURRICULA = ("linear", "uniform")
FADE_SEC = 0.02  # per side of a splice, and at least one step
EVENT_SEC = 0.24  # length of an event, counted from its onset
_MAX_SEGMENTS = 4
# All orders of 2, 3 and 4 segments except the identity. Unused segments are empty and stay last.
_ORDERS = [
    np.array([(*order, *range(n, _MAX_SEGMENTS)) for order in itertools.permutations(range(n))][1:])
    for n in range(2, _MAX_SEGMENTS + 1)
]

Scalar = Float[Array, ""] | float


@dataclasses.dataclass(frozen=True)
class Rule:
    """A distortion: its level, its function, and the distribution of its strength.

    `strength` maps uniform samples in [0, 1) to strengths in `unit`. `apply` is None for the one rule that does not depend
    on the clip: it takes the audio of another clip.
    """

    level: str
    apply: Callable[[Array, Array, Array, float], Array] | None
    strength: Callable[[Array], Array] = jnp.ones_like
    unit: str = ""


def make_rules(duration_sec: float) -> dict[str, Rule]:
    """Return all rules by name, for clips of `duration_sec`.

    Strengths in seconds end at half a clip, because a longer circular shift equals a shorter one in the other direction.
    """
    def between(low: float, high: float) -> Callable[[Array], Array]:
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


def another_rule(rules: Mapping[str, Rule]) -> Int[np.ndarray, " R"]:
    """For each rule the index of the next one of its level, in a circle: two streams under both are apart from each other."""
    levels = [rule.level for rule in rules.values()]
    same = [[i for i, other in enumerate(levels) if other == level] for level in levels]
    return np.array([mates[(mates.index(i) + 1) % len(mates)] for i, mates in enumerate(same)])


def schedule(
    step: Int[Array, ""] | int, steps: int, curriculum: str, rules: Mapping[str, Rule]
) -> Float[Array, " R"]:
    """Return the probability of each rule at a training step, (R,).

    - `linear`: the coarse level alone at step 0, the medium one alone half-way, the fine one alone at the end, with linear
      interpolation between them.
    - `uniform`: all levels have the same probability at every step.

    The rules of a level share its probability. The result depends on the step alone, so a resumed run continues exactly.
    """
    progress = (len(LEVELS) - 1) * jnp.clip(step / max(steps - 1, 1), 0.0, 1.0)
    per_level = {
        "linear": jnp.maximum(0.0, 1 - jnp.abs(progress - jnp.arange(len(LEVELS)))),
        "uniform": jnp.full(len(LEVELS), 1 / len(LEVELS)),
    }[curriculum]
    level_index = np.array([LEVELS.index(rule.level) for rule in rules.values()])
    return per_level[level_index] / np.bincount(level_index)[level_index]


def strengths(key: PRNGKeyArray, index: Int[Array, " B"], rules: Mapping[str, Rule]) -> Float[Array, " B"]:
    """Sample a strength (B,) for each of the rules `index` (B,)."""
    u = jax.random.uniform(key, index.shape)
    return jnp.stack([rule.strength(u) for rule in rules.values()])[index, jnp.arange(len(index))]


def distort(
    key: PRNGKeyArray,
    sequences: Float[Array, "B T C"],
    index: Int[Array, " B"],
    strength: Float[Array, " B"],
    rules: Mapping[str, Rule],
    hz: float,
) -> Float[Array, "B T C"]:
    """Return the losers of a batch: rule `index[b]` applied at `strength[b]` to `sequences[b]`.

    `hz` is the rate of the sequences. The rule `another_clip` returns the next sequence of the batch.
    """
    branches = [_branch(rule, hz) for rule in rules.values()]
    return jax.vmap(lambda index, *inputs: jax.lax.switch(index, branches, *inputs))(
        index, sequences, jnp.roll(sequences, -1, axis=0), jax.random.split(key, len(sequences)), strength
    )


def _branch(rule: Rule, hz: float) -> Callable[[Array, Array, Array, Array], Array]:
    """The rule as a `lax.switch` branch of (sequence, other sequence, key, strength)."""
    apply = rule.apply
    if apply is None:
        return lambda sequence, other, key, strength: other
    return lambda sequence, other, key, strength: apply(sequence, key, strength, hz)


def splice(sequence: Float[Array, "T C"], positions: Int[Array, " N"], fade: int = 0) -> Float[Array, "N C"]:
    """Gather `sequence` at `positions`, with a linear crossfade of `fade` steps on each side of every splice.

    A splice is where two consecutive positions are not 0 to 2 steps apart, the range of normal playback at any speed. During
    a crossfade both sides play on beyond the splice. Positions outside the sequence repeat its first or last step.
    """
    steps = len(positions)

    def at(positions: Array) -> Array:
        return sequence[jnp.clip(positions, 0, len(sequence) - 1)]

    index = jnp.arange(steps)
    spliced = jnp.concatenate([jnp.zeros(1, bool), jnp.abs(jnp.diff(positions) - 1) > 1])  # before step i
    mixed, total = at(positions), jnp.ones(steps)
    for k in range(fade):
        # Relative to a weight of 1 for this side; the normalised weights make a straight line.
        other_weight = (fade - k) / (fade + 1 + k)
        after_splice = (index >= k + 1) & spliced[jnp.clip(index - k, 0, steps - 1)]
        before_splice = (index + k + 1 < steps) & spliced[jnp.clip(index + k + 1, 0, steps - 1)]
        for fades, neighbour, ahead in (
            (after_splice, index - k - 1, k + 1), (before_splice, index + k + 1, -k - 1)
        ):
            weight = jnp.where(fades, other_weight, 0.0)
            mixed += weight[:, None] * at(positions[jnp.clip(neighbour, 0, steps - 1)] + ahead)
            total += weight
    return mixed / total[:, None]


def shift(sequence: Float[Array, "T C"], key: PRNGKeyArray, seconds: Scalar, hz: float) -> Float[Array, "T C"]:
    """Shift the sequence circularly by `seconds`, earlier or later at random."""
    return splice(sequence, (jnp.arange(len(sequence)) - _sign(key) * _steps(seconds, hz)) % len(sequence), _fade(hz))


def reverse(sequence: Float[Array, "T C"], key: PRNGKeyArray, strength: Scalar, hz: float) -> Float[Array, "T C"]:
    """Play the sequence backwards."""
    return sequence[::-1]


def shuffle(sequence: Float[Array, "T C"], key: PRNGKeyArray, segments: Scalar, hz: float) -> Float[Array, "T C"]:
    """Cut the sequence into 2 to 4 `segments` of roughly equal length and play them in another order."""
    steps = len(sequence)
    cut_key, order_key = jax.random.split(key)
    count = jnp.clip(jnp.round(segments).astype(int), 2, _MAX_SEGMENTS)
    jitter = jax.random.uniform(cut_key, (_MAX_SEGMENTS - 1,), minval=-0.25, maxval=0.25)
    cuts = jnp.round(steps * (jnp.arange(1, _MAX_SEGMENTS) + jitter) / count).astype(int)
    cuts = jnp.where(jnp.arange(1, _MAX_SEGMENTS) < count, cuts, steps)
    starts, ends = jnp.concatenate([jnp.zeros(1, int), cuts]), jnp.concatenate([cuts, jnp.full(1, steps)])
    u = jax.random.uniform(order_key)
    order = jnp.stack([jnp.asarray(orders)[(u * len(orders)).astype(int)] for orders in _ORDERS])[count - 2]
    new_ends = jnp.cumsum((ends - starts)[order])
    segment = jnp.searchsorted(new_ends, jnp.arange(steps), side="right")
    return splice(sequence, jnp.arange(steps) - new_ends[segment] + ends[order][segment], _fade(hz))


def change_speed(sequence: Float[Array, "T C"], key: PRNGKeyArray, factor: Scalar, hz: float) -> Float[Array, "T C"]:
    """Play the sequence `factor` times as fast. A faster one starts again at its end, a slower one is cut."""
    steps = len(sequence)
    return splice(sequence, jnp.floor(jnp.arange(steps) * factor + 1e-4).astype(int) % steps, _fade(hz))


def warp(sequence: Float[Array, "T C"], key: PRNGKeyArray, seconds: Scalar, hz: float) -> Float[Array, "T C"]:
    """Warp time smoothly and locally, by a raised cosine of height `seconds` at a random place.

    The local speed stays between half and one and a half times the original one.
    """
    sign_key, place_key = jax.random.split(key)
    steps = len(sequence)
    height = jnp.minimum(seconds * hz, steps / (2 * math.pi))
    width = 2 * math.pi * height  # a raised cosine's slope is at most pi * height / width
    start = jax.random.uniform(place_key) * (steps - width)
    phase = jnp.clip((jnp.arange(steps) - start) / width, 0.0, 1.0)
    bump = height * (1 - jnp.cos(2 * math.pi * phase)) / 2
    return splice(sequence, jnp.round(jnp.arange(steps) + _sign(sign_key) * bump).astype(int))


def move_event(sequence: Float[Array, "T C"], key: PRNGKeyArray, seconds: Scalar, hz: float) -> Float[Array, "T C"]:
    """Swap one event with the `seconds` before or after it; everything else stays in place.

    An event is the `EVENT_SEC` that follow an onset. Onsets are the local maxima of the squared difference between
    consecutive steps; one is sampled in proportion to that difference. This needs no event annotations.
    """
    onset_key, sign_key = jax.random.split(key)
    steps, length = len(sequence), round(EVENT_SEC * hz)
    change = jnp.concatenate([jnp.zeros(1), jnp.sum(jnp.square(jnp.diff(sequence, axis=0)), axis=1)])
    neighbours = jnp.pad(change, 1)
    is_peak = (change >= neighbours[:-2]) & (change > neighbours[2:])
    onset = jax.random.categorical(onset_key, jnp.where(is_peak, jnp.log(change + 1e-9), -jnp.inf))
    distance = _steps(seconds, hz)
    later = _sign(sign_key) > 0
    first = jnp.where(later, onset, onset - distance)
    first = jnp.clip(first, 0, steps - length - distance)
    # The two neighbouring segments that swap places.
    left, right = jnp.where(later, length, distance), jnp.where(later, distance, length)
    index = jnp.arange(steps) - first
    swapped = jnp.where(index < right, index + left, index - right)
    inside = (index >= 0) & (index < length + distance)
    return splice(sequence, first + jnp.where(inside, swapped, index), _fade(hz))


def _steps(seconds: Scalar, hz: float) -> Array:
    """`seconds` in steps, at least one: a loser must differ from its winner."""
    return jnp.maximum(1, jnp.round(seconds * hz).astype(int))


def _fade(hz: float) -> int:
    return max(1, round(FADE_SEC * hz))


def _sign(key: PRNGKeyArray) -> Array:
    """-1 or 1 at random."""
    return jnp.where(jax.random.bernoulli(key), 1, -1)
