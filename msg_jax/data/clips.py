"""Folders of clips to compare: find the files of each clip and read them."""

from collections.abc import Mapping
import dataclasses
import logging

import av
from jaxtyping import Float32, UInt8
import numpy as np
import soxr

from msg_jax import storage
from msg_jax.data import files, media, scaling
from msg_jax.errors import UserError
from msg_jax.storage import Path


@dataclasses.dataclass(frozen=True)
class ClipFiles:
    """The files of one clip. With NAME.wav beside NAME.mp4, the first gives the sound and the second the pictures."""

    sound: Path  # may be a video file
    pictures: Path | None


def find_clips(folder: Path) -> dict[str, ClipFiles]:
    """Finds all clips below a folder, keyed by relative path without suffix and sorted (`files.find_files`).

    Raises UserError if `folder` is not a folder or holds no clip, or if two files of one kind have the same stem.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder that holds the clips")
    kinds = dict.fromkeys(media.SOUND_SUFFIXES, "sound") | dict.fromkeys(media.VIDEO_SUFFIXES, "video")
    found: dict[str, dict[str, Path]] = {}
    paths, unlisted = files.find_files(folder, kinds)
    for row in unlisted:
        logging.getLogger("msg_jax").warning("skipped: %s", row["reason"])
    for path in paths:
        kind, relative = kinds[path.suffix.lower()], path.relative_to(folder)
        mine = found.setdefault(relative.with_suffix("").as_posix(), {})
        if kind in mine:
            raise UserError(f"{mine[kind]} and {path} have the same stem, by which clips are paired; remove or rename one")
        mine[kind] = path
    if not found:
        suffixes = ", ".join((*media.SOUND_SUFFIXES, *media.VIDEO_SUFFIXES))
        raise UserError(f"{folder} holds no clip ({suffixes}); give another folder")
    return {name: ClipFiles(mine.get("sound") or mine["video"], mine.get("video")) for name, mine in found.items()}


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads sound and pictures of the first `duration_sec` of a clip.

    A shorter clip continues with silence and its last picture.
    """

    sound: Path | None
    pictures: Path | None
    duration_sec: float

    @property
    def paths(self) -> tuple[Path, ...]:
        """The distinct files of the clip."""
        return tuple(dict.fromkeys(path for path in (self.sound, self.pictures) if path is not None))

    def waveform(self, hz: int) -> Float32[np.ndarray, " S"]:
        """The sound in [-1, 1] at `hz`. Raises UserError if the file has no readable sound."""
        assert self.sound is not None
        with storage.on_disk(self.sound) as sound:
            return media.read_audio(sound, 0.0, round(self.duration_sec * hz), hz)

    def frames(self, hz: float, px: int, *, squash: bool = False) -> UInt8[np.ndarray, "T {px} {px} 3"]:
        """Frames at `hz`, cropped or, with `squash`, resized. Raises UserError if the file has no readable picture."""
        assert self.pictures is not None
        grid = media.FrameGrid(hz, px, round(self.duration_sec * hz), squash)
        with storage.on_disk(self.pictures) as pictures:
            return media.read_video(pictures, [grid])[0]


@dataclasses.dataclass(frozen=True)
class Held:
    """Sound and pictures of a clip that are in memory, read as with a `Reader`."""

    sound: Float32[np.ndarray, " S"]
    audio_hz: int
    pictures: UInt8[np.ndarray, "T H W 3"] | None = None
    video_hz: float = 25.0

    @property
    def paths(self) -> tuple[Path, ...]:
        return ()

    @property
    def duration_sec(self) -> float:
        return len(self.sound) / self.audio_hz

    def waveform(self, hz: int) -> Float32[np.ndarray, " _"]:
        """The sound at `hz`."""
        return soxr.resample(self.sound, self.audio_hz, hz)

    def frames(self, hz: float, px: int, *, squash: bool = False) -> UInt8[np.ndarray, "T {px} {px} 3"]:
        """Frames at `hz`, the last one shown before each moment, cropped or, with `squash`, resized."""
        assert self.pictures is not None
        count = round(len(self.pictures) / self.video_hz * hz)
        chosen = self.pictures[np.minimum(np.arange(count) * self.video_hz / hz + 1e-6, len(self.pictures) - 1).astype(int)]
        if chosen.shape[1:3] == (px, px):
            return chosen
        to_rgb, resize, shown = scaling.ToRgb(), scaling.Resizer(), (chosen.shape[2], chosen.shape[1])
        pictures = (av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24") for frame in chosen)
        return np.stack([scaling.square(to_rgb(picture), shown, px, squash, resize) for picture in pictures])


@dataclasses.dataclass(frozen=True)
class Pair:
    """Reads the generated and the real sound of one clip, both of one length."""

    generated: Reader | Held
    reference: Reader | Held

    @property
    def paths(self) -> tuple[Path, ...]:
        """The distinct files of both sides."""
        return tuple(dict.fromkeys((*self.generated.paths, *self.reference.paths)))

    @property
    def duration_sec(self) -> float:
        return self.generated.duration_sec

    def waveforms(self, hz: int) -> tuple[Float32[np.ndarray, " S"], Float32[np.ndarray, " S"]]:
        """Generated and real sound in [-1, 1] at `hz`. Raises UserError if one has no readable sound."""
        return self.generated.waveform(hz), self.reference.waveform(hz)


def longest_sec(clips: Mapping[str, ClipFiles]) -> float:
    """The longest sound among the clips, as declared in their headers. Ignores files that cannot be opened."""
    lengths = [0.0]
    for each in clips.values():
        try:
            with storage.on_disk(each.sound) as sound:
                lengths.append(media.declared_sec(sound))
        except UserError:
            continue
    return max(lengths)


def stamp(path: Path) -> str:
    """Path, size and modification time: a cache key for results that depend on the file. Raises UserError if it is gone."""
    try:
        size, changed = storage.version_of(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path") from error
    return f"{storage.absolute(path)} {size} {changed}"
