"""Frames at a fixed rate: which picture of a video stands for which time."""

import dataclasses
import math
from typing import Literal

from jaxtyping import Float64
import numpy as np

FrameChoice = Literal["training", "mmaudio_inference"]
"""Which picture frame i of a stream at `hz` is, i / hz seconds into the window.

`training`: the last picture that appears before the middle between this frame and the next, (i + 1/2) / hz. This is the rule
of FFmpeg's `fps` filter, through which MMAudio's training data went, both streams.

`mmaudio_inference`: the first picture that appears at i / hz or later, as MMAudio's `load_video` chooses. It adds up
1 / hz in float64, and the rounding often moves a frame to the next picture, so the sums are part of the rule.
"""

_EQUAL = 1e-6  # frames; times that differ by less are equal, whatever their rounding


def added_times(hz: float, count: int) -> Float64[np.ndarray, " {count}"]:
    """The times 0, 1 / hz, 1 / hz + 1 / hz, ... in seconds, with the rounding of repeated addition."""
    return np.cumsum(np.concatenate([np.zeros(1), np.full(count, 1 / hz)]))[:count]


@dataclasses.dataclass(frozen=True)
class FrameGrid:
    """A stream of `count` square frames at `hz`, `px` x `px`, to sample from a video.

    Pictures are cropped to a square, or with `squash` resized to one. Frames outside of `kept` (default: all) are not made, and
    are black.
    """

    hz: float
    px: int
    count: int
    squash: bool = False
    choice: FrameChoice = "training"
    kept: range | None = None

    def decided(self, shown_sec: float, until_sec: float) -> int:
        """How many frames are known once the picture shown from `shown_sec` to `until_sec` is; the window starts at 0 s."""
        if self.choice == "mmaudio_inference":
            return int(np.searchsorted(added_times(self.hz, self.count), shown_sec, side="right"))
        return min(self.count, max(0, math.floor(until_sec * self.hz + 0.5 + _EQUAL)))


def mmaudio_duration_sec(last_sec: float, rates_hz: tuple[float, ...], most_sec: float) -> float:
    """How much of a video MMAudio uses, at most `most_sec`, if its last picture up to there appears at `last_sec`.

    MMAudio counts the frames that `mmaudio_inference` finds a picture for, and takes the shortest of its streams.
    """
    frames = [np.searchsorted(added_times(hz, math.ceil(most_sec * hz) + 2), last_sec, side="right") for hz in rates_hz]
    return min(most_sec, *(int(count) / hz for count, hz in zip(frames, rates_hz)))
