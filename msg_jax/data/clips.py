"""Folders of clips to be compared: which files belong together, and what is in them."""

from collections.abc import Mapping
import dataclasses
import pathlib

import numpy as np

from msg_jax.data import media
from msg_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ClipFiles:
    """The files of one clip: of NAME.wav and NAME.mp4 side by side the first is heard and the second is seen."""

    sound: pathlib.Path
    pictures: pathlib.Path | None


def find_clips(folder: pathlib.Path) -> dict[str, ClipFiles]:
    """All clips below a folder, by their path in it without the suffix, sorted; names that begin with a dot are not seen.

    Raises UserError if it is no folder or holds nothing, or where two files of one kind have one stem.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder that holds the clips")
    found: dict[str, dict[str, pathlib.Path]] = {}
    for path in sorted(folder.rglob("*")):
        kind = {**dict.fromkeys(media.SOUND_SUFFIXES, "sound"), **dict.fromkeys(media.VIDEO_SUFFIXES, "video")}.get(
            path.suffix.lower())
        relative = path.relative_to(folder)
        if kind is None or any(part.startswith(".") for part in relative.parts) or not path.is_file():
            continue
        mine = found.setdefault(relative.with_suffix("").as_posix(), {})
        if kind in mine:
            raise UserError(f"{mine[kind]} and {path} have one stem, by which clips are paired; remove or rename one")
        mine[kind] = path
    if not found:
        suffixes = ", ".join((*media.SOUND_SUFFIXES, *media.VIDEO_SUFFIXES))
        raise UserError(f"{folder} holds no clip ({suffixes})")
    return {name: ClipFiles(mine.get("sound", mine.get("video")), mine.get("video")) for name, mine in found.items()}


@dataclasses.dataclass(frozen=True)
class Reader:
    """Sound and pictures of the first `duration_sec` of a clip; after the end of a shorter one silence, its last picture."""

    sound: pathlib.Path | None
    pictures: pathlib.Path | None
    duration_sec: float

    @property
    def paths(self) -> tuple[pathlib.Path, ...]:
        return tuple(dict.fromkeys(path for path in (self.sound, self.pictures) if path is not None))

    def waveform(self, hz: int) -> np.ndarray:
        """(S,) float32 in [-1, 1]; raises UserError if there is no sound to be read."""
        return media.read_audio(self.sound, 0.0, round(self.duration_sec * hz), hz)

    def frames(self, hz: float, px: int, *, squash: bool = False) -> np.ndarray:
        """uint8 (T, px, px, 3), cropped or, with `squash`, whole; raises UserError if there is no picture to be read."""
        grid = media.FrameGrid(hz, px, round(self.duration_sec * hz), squash)
        return media.read_video(self.pictures, [grid])[0]


def longest_sec(clips: Mapping[str, ClipFiles]) -> float:
    """The longest sound among the clips, as their headers claim; files that cannot be opened are passed over."""
    lengths = [0.0]
    for files in clips.values():
        try:
            lengths.append(media.declared_sec(files.sound))
        except UserError:
            continue
    return max(lengths)


def stamp(path: pathlib.Path) -> str:
    """Place, size and time of change: as long as they stay, so does what was made from the file."""
    stat = path.stat()
    return f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
