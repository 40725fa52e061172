"""The model that comes with the package, and a scene for it."""

import dataclasses
import pathlib

from msg_jax.clip import TINY
from msg_jax.data import media_writer, scenes
from msg_jax.inference.packed import load_packed
from msg_jax.inference.system import System

CHECKPOINT = pathlib.Path(__file__).parent / "demo.safetensors"
"""docs/USING.md says how it was made."""

_INDEX = 2**31  # of a scene that no data set has


def load_demo(precision: str | None = None) -> System:
    """The system of `CHECKPOINT`; `precision` is that of `load_checkpoint`."""
    return load_packed(CHECKPOINT, precision)


def draw_scene(path: pathlib.Path, seed: int, overwrite: bool = False) -> pathlib.Path:
    """Draw a scene as a silent video for eyes, 240 pixels high, and return its path; no data set has it.

    Raises UserError if the file exists, unless `overwrite`, or if it cannot be written.
    """
    clip = dataclasses.replace(TINY, video_px=240)
    frames = scenes.make_scene(seed, "test", _INDEX, clip)["video"]
    media_writer.write_clip(path, frames, clip.video_hz, overwrite=overwrite)
    return path
