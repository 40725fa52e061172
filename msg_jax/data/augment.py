"""Data augmentation (VTA-LDM, arXiv 2407.07464): join two records at a cut, play one at another speed, or keep a part of one.

It works on records, before feature extraction, so that cuts are exact and the encoders see the video that belongs to the
sound.

concatenate  One record until a cut, then another from the same instant on. Video, sound, events and caption change together.
             The cut is hard, as in an edited video, and falls on a frame of the coarser video stream.
speed        One record, faster or slower. The sound is resampled like a tape: its pitch shifts by 12 log2(speed) semitones.
             Or it is stretched and keeps its pitch, but its onsets are less exact (data/stretch.py). If a faster record ends
             early, the beginning of another record at the same speed fills the clip.
crop         A part of one record at the clip's beginning. Then comes silence, and the part's last picture stays.
"""

from collections.abc import Sequence
import math

import numpy as np
import soxr

from msg_jax.clip import ClipSpec
from msg_jax.data.pipeline import Element, Source
from msg_jax.data.stretch import stretch
from msg_jax.errors import UserError

CROP_SHARES = (0.25, 0.5, 0.75)
_LEAST_SHARE = 0.25  # either of two joined records gets at least this share of the clip


def splice(first: Element, second: Element, cut_sec: float, start_sec: float, clip: ClipSpec) -> Element:
    """Joins `first` until `cut_sec` and `second` from its own `start_sec` on, in the lengths of `clip`.

    `second` must reach the end of the clip. Frames before the cut come from `first`, and so do events that begin before it.
    Events beyond the number of rows are dropped.
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
    """Joins two records at a random cut; each gets at least a quarter of the clip."""
    frames = clip.clip_video_frames
    least = max(1, math.ceil(_LEAST_SHARE * frames))
    cut_sec = rng.integers(least, frames - least + 1) / clip.clip_video_hz
    return splice(first, second, cut_sec, cut_sec, clip)


def at_speed(record: Element, speed: float, clip: ClipSpec, keep_pitch: bool = False) -> Element:
    """Plays a record `speed` times as fast; the result is longer or shorter than the clip."""
    played = dict(record)
    for name, hz in (("video", clip.video_hz), ("clip_video", clip.clip_video_hz)):
        seconds = np.arange(math.ceil(len(record[name]) / speed)) / hz
        played[name] = record[name][np.minimum(np.round(seconds * speed * hz).astype(int), len(record[name]) - 1)]
    if keep_pitch:
        sound = stretch(record["waveform"], speed, clip.audio_hz)
    else:
        sound = soxr.resample(record["waveform"], speed, 1.0, quality="HQ")
    played["waveform"] = np.clip(sound, -1, 1).astype(np.float32)
    used = record["events"][:, :1] >= 0
    played["events"] = np.where(used, record["events"] / np.array([1, speed, speed], np.float32), record["events"])
    return played


def change_speed(record: Element, filler: Element, speed: float, clip: ClipSpec, keep_pitch: bool = False) -> Element:
    """Plays a record at another speed in the lengths of `clip`; if it ends early, `filler` at the same speed follows."""
    played = at_speed(record, speed, clip, keep_pitch)
    end_sec = clip.duration_sec
    if speed > 1:
        end_sec = math.floor(round(clip.duration_sec / speed * clip.clip_video_hz, 6)) / clip.clip_video_hz
        rest = at_speed(filler, speed, clip, keep_pitch)
        return splice(played, rest, end_sec, 0.0, clip) | {"id": f"{record['id']}@{speed:g}"}
    return splice(played, played, end_sec, end_sec, clip) | {"id": f"{record['id']}@{speed:g}", "caption": record["caption"]}


def crop(record: Element, share: float, rng: np.random.Generator, clip: ClipSpec) -> Element:
    """Keeps a random part of a record, `share` of the clip, and moves it to the clip's beginning.

    It begins and ends with a frame of the coarser video stream.
    """
    kept = max(1, round(share * clip.clip_video_frames))
    start_sec = rng.integers(clip.clip_video_frames - kept + 1) / clip.clip_video_hz
    kept_sec = kept / clip.clip_video_hz
    cropped = dict(record)
    for name, hz in (("video", clip.video_hz), ("clip_video", clip.clip_video_hz), ("waveform", clip.audio_hz)):
        first, end = (math.ceil(round(sec * hz, 6)) for sec in (start_sec, start_sec + kept_sec))
        part, missing = record[name][first:end], len(record[name]) - len(record[name][first:end])
        rest = np.zeros(missing, part.dtype) if name == "waveform" else part[-1:].repeat(missing, axis=0)
        cropped[name] = np.concatenate([part, rest])
    inside = record["events"][(record["events"][:, 0] >= 0) & (record["events"][:, 1] >= start_sec)]
    moved = inside - np.array([0, start_sec, start_sec], np.float32)
    moved = moved[moved[:, 1] < kept_sec]
    moved[:, 2] = np.minimum(moved[:, 2], kept_sec)
    cropped["events"] = np.full_like(record["events"], -1.0)
    cropped["events"][: len(moved)] = moved
    return cropped | {"id": f"{record['id']}[{start_sec:g}:{start_sec + kept_sec:g}]"}


class Augmented:
    """A source followed by augmented records: first concatenations, then changes of speed, then crops.

    `concat`, `speed` and `crop` are the numbers of each as shares of the source's length. Each change of speed draws one of
    `speeds`, or with a `speed_range` of (lowest, highest) any speed between them, uniform in its logarithm. Each crop draws
    one of `crop_shares`, by default of CROP_SHARES. Record i is a function of the source, `seed` and i alone.

    Raises UserError if a speed is outside (0.5, 2), or a share outside (0, 1).
    """

    def __init__(
        self, source: Source, *, concat: float, speed: float, speeds: Sequence[float], seed: int,
        speed_range: Sequence[float] = (), keep_pitch: bool = False, crop: float = 0.0, crop_shares: Sequence[float] = (),
    ):
        for name, values in (("speeds", speeds), ("speed_range", speed_range)):
            if any(not 0.5 < value < 2 for value in values):
                raise UserError(f"config.augment.{name}={tuple(values)}: use speeds between 0.5 and 2, so that two clips fill "
                                "one.")
        if speed_range and (len(speed_range) != 2 or speed_range[0] > speed_range[1]):
            raise UserError(f"config.augment.speed_range={tuple(speed_range)}: give the lowest and the highest speed, or ().")
        if any(not 0 < value < 1 for value in crop_shares):
            raise UserError(f"config.augment.crop_shares={tuple(crop_shares)}: give shares of the clip between 0 and 1.")
        self.spec, self.split, self.class_names, self.skipped = source.spec, source.split, source.class_names, source.skipped
        self._source, self._seed, self._speeds = source, seed, tuple(speeds)
        self._range, self._keep_pitch, self._crop_shares = tuple(speed_range), keep_pitch, tuple(crop_shares) or CROP_SHARES
        self._concat, self._speed, self._crop = (round(share * len(source)) for share in (concat, speed, crop))

    def __len__(self) -> int:
        return len(self._source) + self._concat + self._speed + self._crop

    def __getitem__(self, index: int) -> Element:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} is out of range: the source has {len(self)} records")
        own = len(self._source)
        if index < own:
            return self._source[index]
        rng = np.random.default_rng((self._seed, index))
        first, second = (self._source[int(i)] for i in rng.choice(own, 2, replace=False))
        if index < own + self._concat:
            return concatenate(first, second, rng, self.spec)
        if index >= own + self._concat + self._speed:
            return crop(first, float(rng.choice(self._crop_shares)), rng, self.spec)
        speed = np.exp(rng.uniform(*np.log(self._range))) if self._range else rng.choice(self._speeds)
        return change_speed(first, second, float(speed), self.spec, self._keep_pitch)
