"""Controlled mistakes: the sound of a scene played again with one event wrong, and the list of events that it then has.

    swap        one event is of another class
    drop        one event is not heard
    add         one event more is heard
    shift_Nms   one event is heard N milliseconds earlier or later
    reversed    all events are heard in reversed order, each of them forwards

Nothing but the event gives an edit away: all other events and the noise are the scene's own, sample by sample. A moved event
is the same sound. A new one is played by a performer of its class, the scene's own where it has one, and is heard out before
the clip ends. Whatever is moved or new is made quieter where it would make the mix louder than any scene.
"""

from collections.abc import Iterator, Sequence
import copy
import dataclasses
import re

import numpy as np

from msg_jax.data.scene_performers import Slot
from msg_jax.data.scenes import CLASS_NAMES, MAX_EVENTS, PERFORMERS, Recording, Take

KINDS = ("swap", "drop", "add", "shift_40ms", "shift_80ms", "shift_160ms", "shift_320ms", "reversed")
_SHIFT = re.compile(r"shift_([1-9]\d*)ms")

_FIRST_ONSET_SEC = 0.1  # as in the scenes, nothing begins earlier
_LAST_ONSET_SEC = 0.1  # nor later than this before the clip ends
_APART_SEC = 0.16  # onsets of one class: nearer ones could be taken for each other
_PEAK = 0.95  # of the loudest scenes
_LEAST_SHARE = 0.5  # of its loudness: an event that must be quieter than that has no room
_TRIES = 50


def is_kind(kind: str) -> bool:
    """Whether there is such an edit: one of `KINDS`, or a shift by another number of milliseconds."""
    return kind in KINDS or _SHIFT.fullmatch(kind) is not None


def edit(recording: Recording, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    """The scene's sound with one mistake of this kind, and its events: waveform (audio_samples,), events (MAX_EVENTS, 3).

    `rng` chooses the event, and then what becomes of it. None if nothing is possible: the only event cannot be dropped, and
    one that has no room cannot be moved or added. Raises ValueError on an unknown kind.
    """
    if not is_kind(kind):
        raise ValueError(f"there is no edit {kind!r}: choose from {', '.join(KINDS)}")
    takes = _reversed(recording) if kind == "reversed" else _with_one_mistake(recording, kind, rng)
    return None if takes is None else (recording.waveform(takes), recording.events(takes))


def _with_one_mistake(recording: Recording, kind: str, rng: np.random.Generator) -> list[Take] | None:
    """The takes with the first change that can be made of those proposed."""
    for old, new in _proposals(recording, kind, rng):
        rest = [take for take in recording.takes if take is not old]
        if new is None:
            return rest or None
        if len(rest) < MAX_EVENTS and _has_room(recording, rest, old, new):
            share = _loudness(recording, rest, [new])
            if share >= _LEAST_SHARE:
                return [*rest, _quieter(new, share)]
    return None


def _proposals(recording: Recording, kind: str, rng: np.random.Generator) -> Iterator[tuple[Take | None, Take | None]]:
    """(event to leave out or None, event to play or None) in random order."""
    if kind == "add":
        for _ in range(_TRIES):
            label = int(rng.integers(len(CLASS_NAMES)))
            new = _played(recording, label, 0.0, rng)
            yield None, _moved(new, rng.uniform(_FIRST_ONSET_SEC, max(_FIRST_ONSET_SEC, _duration(recording) - new.offset)))
        return
    for take in (recording.takes[i] for i in rng.permutation(len(recording.takes))):
        if kind == "drop":
            yield take, None
        elif kind == "swap":
            for label in rng.permutation([label for label in range(len(CLASS_NAMES)) if label != take.kind]):
                yield take, _played(recording, int(label), take.onset, rng)
        else:
            for sign in rng.permutation((-1, 1)):
                yield take, _moved(take, take.onset + sign * int(_SHIFT.fullmatch(kind)[1]) / 1000)


def _has_room(recording: Recording, rest: Sequence[Take], old: Take | None, new: Take) -> bool:
    """Whether an event can be heard out, and is neither taken for another one of its class nor runs into it."""
    end = max(_duration(recording), old.offset if old is not None else 0.0)  # one that the clip cut off already may stay so
    if not _FIRST_ONSET_SEC <= new.onset <= _duration(recording) - _LAST_ONSET_SEC or new.offset > end:
        return False
    alike = [take for take in rest if take.kind == new.kind]
    if PERFORMERS[new.kind].sustained and any(t.onset < new.offset and new.onset < t.offset for t in alike):
        return False
    return all(abs(take.onset - new.onset) > _APART_SEC for take in alike)


def _reversed(recording: Recording) -> list[Take] | None:
    """All events mirrored in time; None if they would be much where they were."""
    takes = []
    for take in recording.takes:
        # A run is mirrored as a whole, of a blow only the moment it falls.
        body = take.offset - take.onset if PERFORMERS[take.kind].sustained else 0.0
        takes.append(_moved(take, max(_duration(recording) - take.onset - body, _FIRST_ONSET_SEC)))
    still = [any(abs(b.onset - a.onset) <= _APART_SEC for b in recording.takes if b.kind == a.kind) for a in takes]
    share = _loudness(recording, [], takes)
    return None if all(still) else [_quieter(take, share) for take in takes]


def _played(recording: Recording, label: int, onset: float, rng: np.random.Generator) -> Take:
    """One event of a class at `onset`."""
    known = recording.performers.get(label)
    performer = copy.copy(known) if known else PERFORMERS[label](rng, Slot(0.5, 0.0, _duration(recording)))
    performer.rng = rng
    index = int(rng.integers(len(performer.events)))
    begin, end = performer.events[index]
    return Take(label, onset, onset + end - begin, performer.gain * performer.sound(index, recording.clip.audio_hz))


def _moved(take: Take, onset: float) -> Take:
    return dataclasses.replace(take, onset=onset, offset=onset + take.offset - take.onset)


def _loudness(recording: Recording, rest: Sequence[Take], new: Sequence[Take]) -> float:
    """The share, at most 1, of their loudness with which the takes `new` and `rest` together stay within `_PEAK`."""
    around, part = (recording.level * recording.mixed(takes) for takes in (rest, new))
    heard = part != 0
    return float(((_PEAK - np.sign(part) * around)[heard] / np.abs(part[heard])).min(initial=1.0))


def _quieter(take: Take, share: float) -> Take:
    return dataclasses.replace(take, sound=share * take.sound)


def _duration(recording: Recording) -> float:
    return recording.clip.duration_sec
