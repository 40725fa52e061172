"""A folder of videos, with or without captions, as a random-access source of fixed windows."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
import contextlib
import csv
import dataclasses
import functools
import hashlib
import json
import logging
import math
import os
import unicodedata

import numpy as np

from msg_jax import storage
from msg_jax.clip import ClipSpec
from msg_jax.data import files, media
from msg_jax.data.frame_grid import FrameChoice, FrameGrid
from msg_jax.data.scenes import MAX_EVENTS, SPLITS
from msg_jax.errors import UnreadableError, UserError
from msg_jax.storage import Path


class FolderSource:
    """Windows of `clip.duration_sec` from all videos under `root`, recursively, also behind links to folders.

    Windows begin every `stride_sec` (default: one window), at most `windows_per_video` per file (default: all that fit).

    Each file belongs to one split. Files are ordered by a hash of (seed, relative path): the first `test_share` of them are
    for testing, the next `validation_share` for validation, the rest for training. Every split gets at least one file.

    Captions come from `root/captions.csv`, if it exists, with the columns `file` (relative to `root`) and `caption`. A file
    without a row has the caption "". A warning counts the rows without a file. Names match in any Unicode normal form.

    `skipped` lists unusable videos as {"path", "reason"}: unreadable, without sound, with samples that are NaN, or more than
    one frame shorter than a window. Names that begin with a dot are ignored.

    `index_path`, if given, is a JSON file that caches probing, by size and modification time of each file. With
    `index_is_final` the index alone decides which files exist, whatever was added or changed since, so that windows keep
    their indices.

    A record has id "relative/path.mp4@start_sec" (three decimals), video uint8 (video_frames, video_px, video_px, 3),
    clip_video uint8 (clip_video_frames, clip_video_px, clip_video_px, 3), waveform float32 (audio_samples,) in [-1, 1],
    caption str, events float32 (MAX_EVENTS, 3) of unused rows, and has_events False. Frames of `clip_video` are cropped,
    or with `squash_clip_video` resized; `frame_choice` names the rule that takes them (data/frame_grid.py). A record has only
    the `streams` of pictures that are asked for; no other is decoded. `read` decodes a part of `video`.

    Raises UserError if `root` is not a folder, if fewer than three files are usable, or if captions.csv or the index is
    malformed. Indexing raises UnreadableError if a file turns out to be broken.
    """

    class_names: tuple[str, ...] = ()

    def __init__(
        self,
        root: str | os.PathLike,
        clip: ClipSpec,
        split: str,
        *,
        seed: int = 0,
        stride_sec: float | None = None,
        windows_per_video: int | None = None,
        validation_share: float = 0.1,
        test_share: float = 0.1,
        index_path: str | os.PathLike | None = None,
        index_is_final: bool = False,
        squash_clip_video: bool = False,
        frame_choice: FrameChoice = "training",
        streams: Sequence[str] = ("video", "clip_video"),
    ):
        if split not in SPLITS:
            raise UserError(f"split is {split!r}; choose one of {', '.join(SPLITS)}")
        self.spec, self.split = clip, split
        grids = {
            "video": FrameGrid(clip.video_hz, clip.video_px, clip.video_frames, choice=frame_choice),
            "clip_video": FrameGrid(
                clip.clip_video_hz, clip.clip_video_px, clip.clip_video_frames, squash_clip_video, frame_choice
            ),
        }
        self._grids = {name: grids[name] for name in streams}
        self._root = storage.path(root)
        if index_is_final:
            if index_path is None:
                raise ValueError("index_is_final needs an index_path")
            found = {name: info for name, (_, info) in _load_index(storage.path(index_path)).items()}
            self.skipped: list[dict] = []
        else:
            names, self.skipped = _video_names(self._root)
            found = _probe_all(self._root, names, index_path)
        self._captions = _read_captions(self._root, found)
        usable: dict[str, media.MediaInfo] = {}
        for name, info in found.items():
            reason = info if isinstance(info, str) else _unusable_because(info, clip)
            if isinstance(info, str) or reason is not None:
                self.skipped.append({"path": str(self._root / name), "reason": reason})
            else:
                usable[name] = info
        ours = _split_files(usable, self._root, split, seed, validation_share, test_share)
        self._windows = [
            (name, start_sec)
            for name in ours
            for start_sec in _starts(
                usable[name].duration_sec, clip, stride_sec or clip.duration_sec, windows_per_video
            )
        ]

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> dict:
        return self.read(index)

    def read(self, index: int, frames: range | None = None) -> dict:
        """The record. Given `frames`, the others of `video` are not decoded, and are black."""
        name, start_sec = self._windows[index]
        path, clip = self._root / name, self.spec
        grids = self._grids
        if frames is not None:
            grids = grids | {"video": dataclasses.replace(grids["video"], kept=frames)}
        try:
            with storage.on_disk(path) as file, _named(path, file):
                pictures = media.read_video(file, list(grids.values()), start_sec)
                waveform = media.read_audio(file, start_sec, clip.audio_samples, clip.audio_hz)
            if not waveform.any():
                window = f"from {start_sec:.2f} s to {start_sec + clip.duration_sec:.2f} s"
                raise UserError(f"{path} has no sound {window}; replace the file or leave it out")
        except UserError as error:
            raise UnreadableError(str(path), str(error)) from error
        return {
            "id": f"{name}@{start_sec:.3f}",
            **dict(zip(self._grids, pictures)),
            "waveform": waveform,
            "caption": self._captions.get(name, ""),
            "events": np.full((MAX_EVENTS, 3), -1, np.float32),
            "has_events": False,
        }


@contextlib.contextmanager
def _named(path: Path, file: Path) -> Iterator[None]:
    """Makes a UserError in the block name `path` instead of its copy on disk."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(file), str(path))) from error


def _video_names(root: Path) -> tuple[list[str], list[dict]]:
    """The videos below `root` by relative path, sorted, and rows for folders that cannot be listed."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give the folder that holds the videos")
    paths, unlisted = files.find_files(root, media.VIDEO_SUFFIXES)
    return sorted(path.relative_to(root).as_posix() for path in paths), unlisted


def _read_captions(root: Path, names: Iterable[str]) -> dict[str, str]:
    """The caption of each file that has one. Raises UserError, naming the line, for a row that is not a file and a caption."""
    path = root / "captions.csv"
    if not path.exists():
        return {}
    names = list(names)
    known = {_nfc(name): name for name in names} | {name: name for name in names}
    captions, seen, absent, line = {}, set(), 0, 1
    try:
        with storage.on_disk(path) as copy, copy.open(newline="", encoding="utf-8-sig") as file:
            lines = list(file)
            reader = csv.DictReader(lines, strict=True, skipinitialspace=True)
            missing = {"file", "caption"} - set(reader.fieldnames or ())
            if missing:
                raise UserError(
                    f"{path} lacks the column {' and '.join(sorted(missing))}; its first line must name both"
                )
            line = _next_line(lines, reader.line_num)
            for row in reader:
                more, name, caption = row.pop(None, ()), row["file"], row["caption"]
                spans_lines = any(end in (value or "") for value in row.values() for end in "\r\n")
                if any(more):
                    raise UserError(f'{path} line {line} has more than {len(row)} columns; put a caption with commas in "..."')
                if spans_lines:
                    raise UserError(f"{path} line {line} has a quote that is not closed on that line; close it")
                video = known.get(name, known.get(_nfc(name)))
                if (video or name) in seen or caption is None:
                    fault = "has no caption" if caption is None else "appears twice"
                    raise UserError(f"{path} line {line}: {name} {fault}; give each file one caption")
                seen.add(video or name)
                if video is None:
                    absent += 1
                else:
                    captions[video] = caption.strip()
                line = _next_line(lines, reader.line_num)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read ({error}); save it as comma-separated UTF-8 text") from error
    except csv.Error as error:
        raise UserError(f"{path} line {line} cannot be read ({error}); close every quote, and double those inside") from error
    if absent:
        _warn_once(f"{path}: {absent} of {len(seen)} rows name videos that are not under {root}; they are not used")
    return captions


def _next_line(lines: Sequence[str], read: int) -> int:
    """The number of the first line that is not blank after the first `read` lines."""
    return next((i + 1 for i in range(read, len(lines)) if lines[i].strip("\r\n")), len(lines))


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)  # macOS writes names in NFD


@functools.cache
def _warn_once(message: str) -> None:
    logging.getLogger("msg_jax").warning(message)  # each split reads the captions


def _probe_all(
    root: Path, names: list[str], index_path: str | os.PathLike | None
) -> dict[str, media.MediaInfo | str]:
    """Probes each file, in the order of `names`; an unreadable file gets the reason instead."""
    index = {} if index_path is None else _load_index(storage.path(index_path))

    def probe(name: str) -> tuple[list[int], media.MediaInfo | str]:
        path, stamp = root / name, [0, 0]
        with contextlib.suppress(OSError):  # `media.probe` says what is wrong
            stamp = storage.version_of(path)
        if name in index and index[name][0] == stamp:
            return index[name]
        try:
            with storage.on_disk(path) as file, _named(path, file):
                info = media.probe(file)
                if info.has_audio:
                    media.check_sound(file)
            return stamp, info
        except UserError as error:
            return stamp, str(error)

    with ThreadPoolExecutor() as pool:
        found = dict(zip(names, pool.map(probe, names)))
    if index_path is not None and found != index:
        _save_index(storage.path(index_path), found)
    return {name: info for name, (_, info) in found.items()}


def _load_index(path: Path) -> dict[str, tuple[list[int], media.MediaInfo | str]]:
    if not path.exists():
        return {}
    try:
        return {
            name: (stamp, info if isinstance(info, str) else media.MediaInfo(**info))
            for name, (stamp, info) in json.loads(path.read_text()).items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no index of videos ({error}); delete it to make it again") from error


def _save_index(path: Path, found: dict[str, tuple[list[int], media.MediaInfo | str]]) -> None:
    plain = {
        name: [stamp, info if isinstance(info, str) else dataclasses.asdict(info)]
        for name, (stamp, info) in found.items()
    }
    storage.write_atomically(path, json.dumps(plain, indent=1))


def _unusable_because(info: media.MediaInfo, clip: ClipSpec) -> str | None:
    if not info.has_audio:
        return "it has no audio stream"
    if info.duration_sec + 1 / info.video_hz < clip.duration_sec:
        return f"it lasts {info.duration_sec:.2f} s, shorter than one window of {clip.duration_sec:g} s"
    return None


def _split_files(
    names: Collection[str], root: Path, split: str, seed: int, validation_share: float, test_share: float
) -> list[str]:
    """The files of one split, sorted by name. Raises UserError for fewer than three files."""
    if len(names) < len(SPLITS):
        raise UserError(
            f"{root} has {len(names)} usable videos, and at least {len(SPLITS)} are needed, one for each of "
            f"{', '.join(SPLITS)}; add videos with sound that last at least one window"
        )
    shuffled = sorted(names, key=lambda name: hashlib.sha256(os.fsencode(f"{seed}:{name}")).digest())
    test = min(max(1, round(len(names) * test_share)), len(names) - 2)
    validation = min(max(1, round(len(names) * validation_share)), len(names) - test - 1)
    parts = {
        "test": shuffled[:test],
        "validation": shuffled[test : test + validation],
        "train": shuffled[test + validation :],
    }
    return sorted(parts[split])


def _starts(duration_sec: float, clip: ClipSpec, stride_sec: float, most: int | None) -> list[float]:
    fitting = math.floor((duration_sec - clip.duration_sec) / stride_sec + 1e-6) + 1
    count = max(1, fitting)  # a file that lacks at most its last frame still gives one window
    return [i * stride_sec for i in range(count if most is None else min(count, most))]
