"""More training records made of those that there are (VTA-LDM, arXiv 2407.07464): two joined at a cut, or one at another speed.

They are made of records, before anything is extracted, so that cuts are exact and encoders see the film that is heard.

concatenate  one record until a cut, from then on another as it is at that instant. Picture, sound, events and captions change
             together; the cut falls on a frame of the coarser film, hard, as in an edited video.
speed        a record played faster or slower. Sound is resampled, as if a tape ran at another speed: its pitch goes with the
             speed, by 12 log2(speed) semitones. (A time stretch would keep it, and blur the onsets that timing is about.)
             What a faster record leaves of the clip is filled with the beginning of another at the same speed.
"""

from collections.abc import Sequence
import math

import numpy as np
import soxr

from msg_jax.clip import ClipSpec
from msg_jax.data.pipeline import Element, Source
from msg_jax.errors import UserError

_LEAST_SHARE = 0.25  # of the clip that either of two joined records has


def splice(first: Element, second: Element, cut_sec: float, start_sec: float, clip: ClipSpec) -> Element:
    """`first` until `cut_sec`, then `second` from its own `start_sec` on, in the lengths of `clip`.

    `second` must last from there to the clip's end. A frame belongs to the first if it is seen before the cut, an event if it
    begins before; no more events are kept than there were rows.
    """
    rates = {"video": clip.video_hz, "clip_video": clip.clip_video_hz, "waveform": clip.audio_hz}
    lengths = {"video": clip.video_frames, "clip_video": clip.clip_video_frames, "waveform": clip.audio_samples}
    joined = {}
    for name, hz in rates.items():
        cut, start = (math.ceil(round(sec * hz, 6)) for sec in (cut_sec, start_sec))
        joined[name] = np.concatenate([first[name][:cut], second[name][start : start + lengths[name] - cut]])
    return joined | {
        "id": f"{first['id']}+{second['id']}",
        "caption": ", then ".join(filter(None, (first["caption"], second["caption"]))),
        "events": _spliced_events(first["events"], second["events"], cut_sec, start_sec, clip.duration_sec),
        "has_events": bool(first["has_events"] and second["has_events"]),
    }


def _spliced_events(first: np.ndarray, second: np.ndarray, cut_sec: float, start_sec: float, end_sec: float) -> np.ndarray:
    before = first[(first[:, 0] >= 0) & (first[:, 1] < cut_sec)].copy()
    before[:, 2] = np.minimum(before[:, 2], cut_sec)
    after = second[(second[:, 0] >= 0) & (second[:, 1] >= start_sec)] + np.array([0, 1, 1], np.float32) * (cut_sec - start_sec)
    after = after[after[:, 1] < end_sec]
    after[:, 2] = np.minimum(after[:, 2], end_sec)
    rows = np.full_like(first, -1.0)
    kept = np.concatenate([before, after])[: len(rows)]
    rows[: len(kept)] = kept
    return rows


def concatenate(first: Element, second: Element, rng: np.random.Generator, clip: ClipSpec) -> Element:
    """Two records joined at a random cut, each with a quarter of the clip or more."""
    frames = clip.clip_video_frames
    least = max(1, math.ceil(_LEAST_SHARE * frames))
    cut_sec = rng.integers(least, frames - least + 1) / clip.clip_video_hz
    return splice(first, second, cut_sec, cut_sec, clip)


def at_speed(record: Element, speed: float, clip: ClipSpec) -> Element:
    """A record played `speed` times as fast: longer or shorter than the clip."""
    played = dict(record)
    for name, hz in (("video", clip.video_hz), ("clip_video", clip.clip_video_hz)):
        seconds = np.arange(math.ceil(len(record[name]) / speed)) / hz
        played[name] = record[name][np.minimum(np.round(seconds * speed * hz).astype(int), len(record[name]) - 1)]
    played["waveform"] = np.clip(soxr.resample(record["waveform"], speed, 1.0, quality="HQ"), -1, 1).astype(np.float32)
    used = record["events"][:, :1] >= 0
    played["events"] = np.where(used, record["events"] / np.array([1, speed, speed], np.float32), record["events"])
    return played


def change_speed(record: Element, filler: Element, speed: float, clip: ClipSpec) -> Element:
    """A record at another speed in the lengths of `clip`; where it ends early, `filler` at the same speed follows."""
    played = at_speed(record, speed, clip)
    end_sec = clip.duration_sec
    if speed > 1:
        end_sec = math.floor(round(clip.duration_sec / speed * clip.clip_video_hz, 6)) / clip.clip_video_hz
        return splice(played, at_speed(filler, speed, clip), end_sec, 0.0, clip) | {"id": f"{record['id']}@{speed:g}"}
    return splice(played, played, end_sec, end_sec, clip) | {"id": f"{record['id']}@{speed:g}", "caption": record["caption"]}


class Augmented:
    """A source, and after its own records more that are made of them: `concat` and `speed` are shares of its length.

    Record i is a function of the source, `seed` and i alone. Raises UserError on a speed that leaves too little of a clip.
    """

    def __init__(self, source: Source, *, concat: float, speed: float, speeds: Sequence[float], seed: int):
        if any(not 0.5 < value < 2 for value in speeds):
            raise UserError(f"config.augment.speeds={tuple(speeds)}: give speeds between 0.5 and 2, for two clips to fill one.")
        self.spec, self.split, self.class_names, self.skipped = source.spec, source.split, source.class_names, source.skipped
        self._source, self._seed, self._speeds = source, seed, tuple(speeds)
        self._concat, self._speed = round(concat * len(source)), round(speed * len(source))

    def __len__(self) -> int:
        return len(self._source) + self._concat + self._speed

    def __getitem__(self, index: int) -> Element:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        own = len(self._source)
        if index < own:
            return self._source[index]
        rng = np.random.default_rng((self._seed, index))
        first, second = (self._source[int(i)] for i in rng.choice(own, 2, replace=False))
        if index < own + self._concat:
            return concatenate(first, second, rng, self.spec)
        return change_speed(first, second, float(rng.choice(self._speeds)), self.spec)
