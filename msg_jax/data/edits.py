"""Controlled mistakes: render a scene's sound again with one event wrong, together with its new list of events.

    swap        one event has another class
    drop        one event is missing
    add         there is one more event
    shift_Nms   one event is N milliseconds earlier or later
    reversed    all events are in reversed order, each played forwards

Only the edited event differs: all other events and the noise stay the same, sample by sample. A moved event keeps its sound.
A new event is played by a performer of its class, the scene's own if it has one, and ends before the clip does. Moved and
new events are attenuated if the mix would be louder than any scene.
"""

from collections.abc import Iterator, Sequence
import copy
import dataclasses
import re

from jaxtyping import Float32
import numpy as np

from msg_jax.data.scene_performers import Slot
from msg_jax.data.scenes import CLASS_NAMES, MAX_EVENTS, PERFORMERS, Recording, Take

KINDS = ("swap", "drop", "add", "shift_40ms", "shift_80ms", "shift_160ms", "shift_320ms", "reversed")
_SHIFT = re.compile(r"shift_([1-9]\d*)ms")

_FIRST_ONSET_SEC = 0.1  # the earliest onset, as in the scenes
_LAST_ONSET_SEC = 0.1  # the latest onset, before the end of the clip
_APART_SEC = 0.16  # least distance between onsets of one class; closer ones could be confused
_PEAK = 0.95  # the loudest scenes
_LEAST_GAIN = 0.5  # an event that needs a lower gain is rejected
_TRIES = 50


def is_kind(kind: str) -> bool:
    """Whether `kind` is one of `KINDS` or a shift by another number of milliseconds."""
    return kind in KINDS or _SHIFT.fullmatch(kind) is not None


def edit(
    recording: Recording, kind: str, rng: np.random.Generator
) -> tuple[Float32[np.ndarray, " S"], Float32[np.ndarray, "E 3"]] | None:
    """Renders the scene with one mistake: the waveform (audio_samples,) and its event rows (MAX_EVENTS, 3).

    `rng` chooses the event and its change. Returns None if no such edit is possible: the only event cannot be dropped, and
    an event without room cannot be moved or added. Raises ValueError for an unknown kind.
    """
    if not is_kind(kind):
        raise ValueError(f"no edit {kind!r}: choose from {', '.join(KINDS)}")
    takes = _reversed(recording) if kind == "reversed" else _with_one_mistake(recording, kind, rng)
    return None if takes is None else (recording.waveform(takes), recording.events(takes))


def _with_one_mistake(recording: Recording, kind: str, rng: np.random.Generator) -> list[Take] | None:
    """The takes after the first proposed change that is possible; None if none is."""
    for old, new in _proposals(recording, kind, rng):
        rest = [take for take in recording.takes if take is not old]
        if new is None:
            return rest or None
        if len(rest) < MAX_EVENTS and _has_room(recording, rest, old, new):
            gain = _largest_gain(recording, rest, [new])
            if gain >= _LEAST_GAIN:
                return [*rest, _attenuated(new, gain)]
    return None


def _proposals(recording: Recording, kind: str, rng: np.random.Generator) -> Iterator[tuple[Take | None, Take | None]]:
    """Yields (event to remove or None, event to add or None) in random order."""
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
                yield take, _moved(take, take.onset + sign * _shift_ms(kind) / 1000)


def _shift_ms(kind: str) -> int:
    return int(kind.removeprefix("shift_").removesuffix("ms"))


def _has_room(recording: Recording, rest: Sequence[Take], old: Take | None, new: Take) -> bool:
    """Whether an event ends in time and neither overlaps nor could be confused with another of its class."""
    end = max(_duration(recording), old.offset if old is not None else 0.0)  # an event that the clip cuts off may stay so
    if not _FIRST_ONSET_SEC <= new.onset <= _duration(recording) - _LAST_ONSET_SEC or new.offset > end:
        return False
    alike = [take for take in rest if take.kind == new.kind]
    if PERFORMERS[new.kind].sustained and any(t.onset < new.offset and new.onset < t.offset for t in alike):
        return False
    return all(abs(take.onset - new.onset) > _APART_SEC for take in alike)


def _reversed(recording: Recording) -> list[Take] | None:
    """All events mirrored in time; None if every one would land on an event of its own class."""
    takes = []
    for take in recording.takes:
        # a sustained event is mirrored as a whole; of a struck one only the onset is
        body = take.offset - take.onset if PERFORMERS[take.kind].sustained else 0.0
        takes.append(_moved(take, max(_duration(recording) - take.onset - body, _FIRST_ONSET_SEC)))
    unchanged = [any(abs(b.onset - a.onset) <= _APART_SEC for b in recording.takes if b.kind == a.kind) for a in takes]
    gain = _largest_gain(recording, [], takes)
    return None if all(unchanged) else [_attenuated(take, gain) for take in takes]


def _played(recording: Recording, label: int, onset: float, rng: np.random.Generator) -> Take:
    """Plays one event of a class at `onset`."""
    known = recording.performers.get(label)
    performer = copy.copy(known) if known else PERFORMERS[label](rng, Slot(0.5, 0.0, _duration(recording)))
    performer.rng = rng
    index = int(rng.integers(len(performer.events)))
    begin, end = performer.events[index]
    return Take(label, onset, onset + end - begin, performer.gain * performer.sound(index, recording.clip.audio_hz))


def _moved(take: Take, onset: float) -> Take:
    return dataclasses.replace(take, onset=onset, offset=onset + take.offset - take.onset)


def _largest_gain(recording: Recording, rest: Sequence[Take], new: Sequence[Take]) -> float:
    """The largest gain of `new`, at most 1, that keeps its mix with `rest` within `_PEAK`."""
    around, part = (recording.level * recording.mixed(takes) for takes in (rest, new))
    sounding = part != 0
    return float(((_PEAK - np.sign(part) * around)[sounding] / np.abs(part[sounding])).min(initial=1.0))


def _attenuated(take: Take, gain: float) -> Take:
    return dataclasses.replace(take, sound=gain * take.sound)


def _duration(recording: Recording) -> float:
    return recording.clip.duration_sec
