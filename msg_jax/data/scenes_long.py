"""Procedural scenes of minutes with exact events, to measure what sound of long videos loses over time.

A long scene is a series of acts with hard cuts between them. An act is a scene (data/scenes.py) of two to five seconds, or a
silent one: an empty stage. Some acts go back to the stage of an earlier one, where the same sources play again. What sounds
at a cut rings on.
"""

from collections.abc import Iterator
import dataclasses

from jaxtyping import Float, Float32, UInt8
import numpy as np

from msg_jax.clip import ClipSpec
from msg_jax.data import scenes
from msg_jax.data.scene_performers import Performer, Slot
from msg_jax.data.scene_pictures import Backdrop

ACT_SEC = (2.0, 5.0)
RETURN_SHARE, SILENT_SHARE = 0.3, 0.12
_SEED = 6_842_741  # sets these scenes apart from the usual ones of the same seed


@dataclasses.dataclass(frozen=True)
class Act:
    """One act: its time in seconds, its stage, and its performers by class, whose times count from the act's start."""

    start_sec: float
    end_sec: float
    stage: int  # acts with the same number have the same backdrop and the same classes
    backdrop: Backdrop
    performers: dict[int, Performer]


@dataclasses.dataclass(frozen=True)
class LongScene:
    """A scene of minutes. Its pictures are drawn act by act."""

    clip: ClipSpec
    acts: tuple[Act, ...]
    waveform: Float32[np.ndarray, " S"]
    events: Float[np.ndarray, "E 2"]  # (class index, onset_sec), ordered by onset

    @property
    def cuts_sec(self) -> list[float]:
        """The starts of all acts but the first."""
        return [act.start_sec for act in self.acts[1:]]

    def frames(self) -> Iterator[UInt8[np.ndarray, "T H W 3"]]:
        """The pictures of each act, at `clip.video_hz` and `clip.video_px`."""
        times = np.arange(self.clip.video_frames) / self.clip.video_hz
        for act in self.acts:
            shown = times[(times >= act.start_sec) & (times < act.end_sec)] - act.start_sec
            performers, duration = list(act.performers.values()), act.end_sec - act.start_sec
            yield scenes.film(act.backdrop, performers, shown, self.clip.video_px, duration)


def _spans(rng: np.random.Generator, duration: float) -> list[tuple[float, float]]:
    """Times of acts that fill the duration; the last is no shorter than the others."""
    edges = [0.0]
    while duration - edges[-1] > sum(ACT_SEC):
        edges.append(edges[-1] + rng.uniform(*ACT_SEC))
    left = duration - edges[-1]
    if left > ACT_SEC[1]:
        edges.append(edges[-1] + left / 2)
    return list(zip(edges, [*edges[1:], duration]))


def make_long_scene(seed: int, split: str, index: int, clip: ClipSpec) -> LongScene:
    """Makes one long scene of `clip.duration_sec`, seven seconds or more.

    The same arguments give the same scene; another seed, split or index gives an independent one.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((_SEED, seed, scenes.SPLITS.index(split), index))))
    stages: list[tuple[Backdrop, list[tuple[int, float]]]] = []  # (backdrop, class and place of each source)
    acts, takes = [], []
    for start, end in _spans(rng, clip.duration_sec):
        draw = rng.random()
        if stages and draw < RETURN_SHARE:
            stage = int(rng.integers(len(stages)))
        else:
            silent = acts and draw < RETURN_SHARE + SILENT_SHARE
            cast, classes, _ = ([], [], []) if silent else scenes.usual_cast(rng, end - start)
            stages.append((Backdrop(rng), [(kind, each.slot.x) for kind, each in zip(classes, cast)]))
            stage = len(stages) - 1
        backdrop, sources = stages[stage]
        performers: dict[int, Performer] = {
            kind: scenes.PERFORMERS[kind](rng, Slot(x, 0.0, end - start)) for kind, x in sources
        }
        acts.append(Act(start, end, stage, backdrop, performers))
        takes += scenes.takes(performers, clip.audio_hz, start)
    recording = scenes.record(rng, {}, takes, clip)
    events = np.array(sorted(((take.kind, take.onset) for take in takes), key=lambda event: event[1]), np.float64)
    return LongScene(clip, tuple(acts), recording.waveform(recording.takes), events)
