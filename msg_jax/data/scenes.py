"""Procedural multi-event scenes with exact event times: the embedded default data set.

A scene is a small stage with one to three performers. Each makes sound by a visible cause: balls of four materials
strike the floor (modal synthesis, ballistic bounces with restitution), a lamp flashes as it beeps, a rotor hums at a
pitch set by its angular speed, drops splash into a basin, a walker's feet land. In some scenes one performer leaves in
mid-clip and another enters. The camera drifts, the light varies, silent shapes float by.

Both streams are sampled from the same functions of time, so picture and sound agree below the frame and the sample.
Times are seconds from the clip's start.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import re

from jaxtyping import Float, Float32, UInt8
import numpy as np

from msg_jax.clip import ClipSpec
from msg_jax.data.scene_performers import (
    FADE_SEC,
    MAX_EVENTS_EACH,
    Footsteps,
    Glass,
    Lamp,
    Metal,
    Motor,
    Performer,
    Slot,
    Splash,
    Thud,
    Wood,
)
from msg_jax.data.scene_pictures import Backdrop

CLASS_NAMES = ("wood", "metal", "glass", "thud", "lamp", "motor", "splash", "footsteps")
PERFORMERS = (Wood, Metal, Glass, Thud, Lamp, Motor, Splash, Footsteps)  # in the order of CLASS_NAMES
SPLITS = ("train", "validation", "test")
MAX_EVENTS = 4 * MAX_EVENTS_EACH  # three performers at once, one more after a transition

Cast = Callable[[np.random.Generator, float], tuple[list[Performer], list[int], list[int]]]
"""(generator, duration) -> performers, the classes of those on stage at first, and the classes of those that enter later."""

_TRANSITION_SHARE = 0.37
_LANES = (0.2, 0.5, 0.8)
_LANE_WIDTH = 0.36
_PIXELS_AT_ONCE = 2**17  # frames are drawn in chunks that fit the processor's cache


@dataclasses.dataclass(frozen=True)
class Take:
    """One event as played: its class, its time in seconds, and its sound from the onset on, before mixing."""

    kind: int
    onset: float
    offset: float
    sound: Float[np.ndarray, " S"]


@dataclasses.dataclass(frozen=True)
class Recording:
    """The sound of a scene before mixing, event by event."""

    clip: ClipSpec
    performers: dict[int, Performer]  # by class
    takes: tuple[Take, ...]
    level: float  # gain of the mix
    noise: Float32[np.ndarray, " S"]  # background noise, audio_samples

    def mixed(self, takes: Sequence[Take]) -> Float[np.ndarray, " S"]:
        """Mixes `takes` without level and noise: (audio_samples,)."""
        return _mixed(takes, self.clip)

    def waveform(self, takes: Sequence[Take]) -> Float32[np.ndarray, " S"]:
        """The scene's sound if it had exactly these events: (audio_samples,) in [-1, 1]."""
        return np.clip(self.level * self.mixed(takes) + self.noise, -1.0, 1.0).astype(np.float32)

    def events(self, takes: Sequence[Take]) -> Float32[np.ndarray, "E 3"]:
        """The event rows of `takes` (MAX_EVENTS, 3), as in a record."""
        rows = [(take.kind, take.onset, min(take.offset, self.clip.duration_sec)) for take in takes]
        events = np.full((MAX_EVENTS, 3), -1.0, np.float32)
        events[: len(rows)] = sorted(rows, key=lambda row: row[1])
        return events


def _mixed(takes: Sequence[Take], clip: ClipSpec) -> np.ndarray:
    mix = np.zeros(clip.audio_samples)
    for take in takes:
        start = round(take.onset * clip.audio_hz)
        sound = take.sound[: mix.size - start]
        mix[start : start + sound.size] += sound
    return mix


def usual_cast(rng: np.random.Generator, duration: float) -> tuple[list[Performer], list[int], list[int]]:
    """The `Cast` of the data set: one to three performers, of which one may be replaced."""
    count = rng.choice((1, 2, 3), p=(0.4, 0.4, 0.2))
    classes = rng.permutation(len(PERFORMERS))[: count + 1].tolist()
    lanes = np.array(_LANES)[rng.permutation(len(_LANES))[:count]] + rng.uniform(-0.04, 0.04, count)
    slots = [Slot(x, 0.0, duration) for x in lanes]
    entering = []
    if rng.random() < _TRANSITION_SHARE:
        change = duration * rng.uniform(0.42, 0.58)
        slots[-1] = Slot(lanes[-1], 0.0, change, leaves=True)
        slots.append(Slot(lanes[-1], change + FADE_SEC, duration, enters=True))
        entering = classes[count:]
    performers = [PERFORMERS[kind](rng, slot) for kind, slot in zip(classes, slots)]
    return performers, classes[:count], entering


def _caption(first: list[int], entering: list[int]) -> str:
    names = [CLASS_NAMES[kind] for kind in sorted(first)]
    caption = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    return ", then ".join([caption, *(CLASS_NAMES[kind] for kind in entering)])


SENTENCES: dict[str, str] = dict(zip(CLASS_NAMES, (
    "a wooden block bounces", "a metal ball bounces", "a glass ball bounces", "a heavy sack lands", "a lamp beeps",
    "a motor hums", "drops splash", "a walker steps",
)))


def sentence(caption: str) -> str:
    """A scene's caption as a sentence that says what is seen and heard.

    >>> sentence("metal and lamp, then motor")
    'a metal ball bounces while a lamp beeps, then a motor hums'
    """
    first, *entering = caption.split(", then ")
    names = re.split(", | and ", first)
    told = [SENTENCES[name] for name in names]
    together = " while ".join([told[0], *([" and ".join(told[1:])] if told[1:] else [])])
    return ", then ".join([together, *(SENTENCES[name] for name in entering)])


def film(
    backdrop: Backdrop, performers: Sequence[Performer], times: Float[np.ndarray, " T"], px: int, duration: float
) -> UInt8[np.ndarray, "T {px} {px} 3"]:
    """Draws the frames at `times`, in `px` x `px` pixels; `duration` is the scene's length."""
    chunks = []
    for some in np.array_split(times, max(1, times.size * px * px // _PIXELS_AT_ONCE)):
        canvas = backdrop.canvas(some, px, duration)
        for performer in performers:
            x, presence = performer.slot.x, performer.slot.presence(some)
            performer.draw(canvas.part(x - _LANE_WIDTH / 2, x + _LANE_WIDTH / 2, presence))
            performer.draw_light(canvas)
        chunks.append(backdrop.expose(canvas))
    return np.concatenate(chunks)


def _sample_scene(
    seed: int, split: str, index: int, duration: float, cast: Cast = usual_cast
) -> tuple[np.random.Generator, list[Performer], list[int], list[int], Backdrop]:
    """The scene's generator, its performers, their classes (at first, entering later), and its backdrop."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, SPLITS.index(split), index))))
    return rng, *cast(rng, duration), Backdrop(rng)


def takes(performers: Mapping[int, Performer], hz: int, start_sec: float = 0.0) -> list[Take]:
    """The events of performers by class, `start_sec` later than they are in their scene."""
    return [
        Take(kind, start_sec + onset, start_sec + offset, performer.gain * performer.sound(index, hz))
        for kind, performer in performers.items() for index, (onset, offset) in enumerate(performer.events)
    ]


def record(
    rng: np.random.Generator, performers: dict[int, Performer], takes: Sequence[Take], clip: ClipSpec
) -> Recording:
    """The recording of a scene's takes at a level and with noise of its own."""
    takes = tuple(takes)
    level = rng.uniform(0.5, 0.95) / np.abs(_mixed(takes, clip)).max()
    noise = 10.0 ** (rng.uniform(-62.0, -52.0) / 20.0) * rng.standard_normal(clip.audio_samples, np.float32)
    return Recording(clip, performers, takes, level, noise)


def record_sound(seed: int, split: str, index: int, clip: ClipSpec) -> Recording:
    """The sound of the scene `make_scene(seed, split, index, clip)`, event by event."""
    rng, performers, first, entering, _ = _sample_scene(seed, split, index, clip.duration_sec)
    return _record(rng, dict(zip(first + entering, performers)), clip)


def _record(rng: np.random.Generator, performers: dict[int, Performer], clip: ClipSpec) -> Recording:
    return record(rng, performers, takes(performers, clip.audio_hz), clip)


def usual_classes(seed: int, split: str, index: int, duration_sec: float) -> list[int]:
    """The classes of `make_scene(seed, split, index, ...)`."""
    _, _, first, entering, _ = _sample_scene(seed, split, index, duration_sec)
    return first + entering


def make_scene(seed: int, split: str, index: int, clip: ClipSpec, cast: Cast = usual_cast) -> dict:
    """Makes one scene as a record.

    The same arguments give the same scene; another seed, split or index gives an independent one.

    Returns `id`, `video` and `clip_video` (frames, px, px, 3) uint8, `waveform` (audio_samples,) float32 in [-1, 1],
    `caption`, `events` (MAX_EVENTS, 3) float32 and `has_events`. Rows of `events` are (class index, onset_sec,
    offset_sec), ordered by onset; class -1 marks an unused row.
    """
    duration = clip.duration_sec
    rng, performers, first, entering, backdrop = _sample_scene(seed, split, index, duration, cast)
    recording = _record(rng, dict(zip(first + entering, performers)), clip)
    return {
        "id": f"scenes-{seed}-{split}-{index:06d}",
        "video": film(backdrop, performers, np.arange(clip.video_frames) / clip.video_hz, clip.video_px, duration),
        "clip_video": film(
            backdrop, performers, np.arange(clip.clip_video_frames) / clip.clip_video_hz, clip.clip_video_px, duration
        ),
        "waveform": recording.waveform(recording.takes),
        "caption": _caption(first, entering),
        "events": recording.events(recording.takes),
        "has_events": True,
    }


@dataclasses.dataclass(frozen=True)
class ScenesSource:
    """Random access to `size` scenes that are made on demand; nothing is stored on disk."""

    spec: ClipSpec
    split: str
    size: int
    seed: int = 0
    cast: Cast = usual_cast
    class_names: tuple[str, ...] = CLASS_NAMES
    skipped: list[dict] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.size:
            raise IndexError(f"scene {index} is out of range: the source has {self.size} scenes")
        return make_scene(self.seed, self.split, index, self.spec, self.cast)
