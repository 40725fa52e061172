"""Sets of procedural scenes beside the usual one, to measure how far a generator of sound and pictures generalises.

  ood      four sources at once, at tempi and in pairs of classes (`HELD_OUT`) that training does not have
  ambient  sustained sources alone: lamps and motors with short pauses
  fast     one source whose events follow each other like syllables
"""

from collections.abc import Mapping, Sequence

import numpy as np

from msg_jax.data.scene_performers import Performer, Slot
from msg_jax.data.scenes import CLASS_NAMES, PERFORMERS, Cast, usual_classes

HELD_OUT = (("glass", "footsteps"), ("metal", "motor"), ("lamp", "splash"))
"""Pairs of classes that `trained` leaves out of the usual scenes."""

_INDEX: dict[str, int] = {name: index for index, name in enumerate(CLASS_NAMES)}
_PAIRS = [frozenset(_INDEX[name] for name in pair) for pair in HELD_OUT]
_LANES = (0.14, 0.38, 0.62, 0.86)


def trained(seed: int, split: str, size: int, duration_sec: float) -> list[int]:
    """Indices of the usual scenes of a split without a pair of classes that is held out."""
    return [index for index in range(size) if not _has_held_out(usual_classes(seed, split, index, duration_sec))]


def _has_held_out(classes: Sequence[int]) -> bool:
    return any(pair <= set(classes) for pair in _PAIRS)


def _stage(
    rng: np.random.Generator, duration: float, classes: Sequence[int], pauses: np.ndarray, lanes: Sequence[float]
) -> tuple[list[Performer], list[int], list[int]]:
    slots = [Slot(x, 0.0, duration, pause=pause) for x, pause in zip(rng.permutation(lanes), pauses)]
    return [PERFORMERS[kind](rng, slot) for kind, slot in zip(classes, slots)], list(classes), []


def _ood(rng: np.random.Generator, duration: float) -> tuple[list[Performer], list[int], list[int]]:
    pair = sorted(_PAIRS[rng.integers(len(_PAIRS))])
    others = [kind for kind in rng.permutation(len(PERFORMERS)).tolist() if kind not in pair][:2]
    pauses = np.where(rng.random(4) < 0.5, rng.uniform(0.55, 0.75, 4), rng.uniform(1.4, 1.8, 4))
    return _stage(rng, duration, [*pair, *others], pauses, _LANES)


def _ambient(rng: np.random.Generator, duration: float) -> tuple[list[Performer], list[int], list[int]]:
    sustained = [kind for kind, performer in enumerate(PERFORMERS) if performer.sustained]
    classes = rng.permutation(sustained)[: rng.integers(1, len(sustained) + 1)].tolist()
    return _stage(rng, duration, classes, rng.uniform(0.6, 0.8, len(classes)), (0.3, 0.7))


def _fast(rng: np.random.Generator, duration: float) -> tuple[list[Performer], list[int], list[int]]:
    kind = int(rng.choice([_INDEX[name] for name in ("lamp", "splash", "footsteps")]))
    return _stage(rng, duration, [kind], rng.uniform(0.4, 0.6, 1), (0.3, 0.5, 0.7))


SETS: Mapping[str, Cast] = {"ood": _ood, "ambient": _ambient, "fast": _fast}
