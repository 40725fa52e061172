"""The model that comes with the package, and a scene for it."""

import dataclasses
import pathlib

from msg_jax.clip import TINY
from msg_jax.data import media_writer, scenes
from msg_jax.data.files import new_file
from msg_jax.inference.packed import load_packed
from msg_jax.inference.system import System

CHECKPOINT = pathlib.Path(__file__).parent / "demo.safetensors"
"""docs/DEMO.md says how it was made."""

_INDEX = 2**31  # of a scene that no data set has


def load_demo() -> System:
    """The system of `CHECKPOINT`."""
    return load_packed(CHECKPOINT)


def draw_scene(path: pathlib.Path, seed: int, overwrite: bool = False) -> pathlib.Path:
    """Draw a scene as a silent video for eyes, 240 pixels high, and return its path; no data set has it.

    Raises UserError if the file exists, unless `overwrite`, or if it cannot be written.
    """
    clip = dataclasses.replace(TINY, video_px=240)
    frames = scenes.make_scene(seed, "test", _INDEX, clip)["video"]
    with new_file(path, overwrite) as unfinished:
        unfinished.write_bytes(media_writer.encode_video(frames, clip.video_hz))
    return path
