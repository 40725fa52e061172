"""Sound for video files: find them, sample, write sounds and videos, and record what was made and what was skipped."""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import dataclasses
import os
import pathlib
import sys
import time

import numpy as np
from tqdm import tqdm

from msg_jax.data import containers, files, media, media_writer
from msg_jax.errors import UserError
from msg_jax.inference.system import System
from msg_jax.infra import logging

_SUFFIXES = ", ".join(media.VIDEO_SUFFIXES)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings for all videos of a call."""

    steps: int
    guidance_scale: float
    seed: int = 0
    variants: int = 1
    prompt: str = ""
    negative_prompt: str = ""
    audio_format: str = "wav"
    container: str = ""  # of the videos with sound, for example "mkv"; "" for each video's own
    overwrite: bool = False


@dataclasses.dataclass(frozen=True)
class Video:
    """One input; `name` is its path relative to the given folder, or the file's name."""

    path: pathlib.Path
    name: str

    def outputs(self, out: pathlib.Path, settings: Settings) -> list[tuple[pathlib.Path, pathlib.Path]]:
        """Paths of (sound, video with sound) of each variant."""
        stem = self.name.removesuffix(self.path.suffix)
        suffix = f".{settings.container}" if settings.container else self.path.suffix
        tags = [""] if settings.variants == 1 else [f"_{i}" for i in range(settings.variants)]
        return [(out / f"{stem}{tag}.{settings.audio_format}", out / f"{stem}{tag}{suffix}") for tag in tags]


def find_videos(inputs: Iterable[pathlib.Path], out: pathlib.Path) -> tuple[list[Video], list[dict]]:
    """Find the videos among files and folders (`files.find_files`); return also rows {"path", "reason"} for inputs without any.

    Earlier results are not taken as inputs if `out` lies inside a given folder.
    """
    videos, skipped, real_out = {}, [], os.path.realpath(out)
    for given in inputs:
        if os.path.isdir(given):
            paths, unlisted = files.find_files(given, media.VIDEO_SUFFIXES)
            skipped += unlisted
            if _is_below(real_out, os.path.realpath(given)):
                paths = [path for path in paths if not _is_below(os.path.realpath(path), real_out)]
            inside = [Video(path, path.relative_to(given).as_posix()) for path in paths]
            if not inside:
                skipped.append({"path": str(given), "reason": f"{given} holds no video ({_SUFFIXES})"})
        elif os.path.exists(given) and given.suffix.lower() not in media.VIDEO_SUFFIXES:
            inside = []
            skipped.append({"path": str(given), "reason": f"{given} is not a video ({_SUFFIXES})"})
        else:
            inside = [Video(given, given.name)]
        videos |= {(os.path.realpath(video.path), video.name): video for video in inside}
    return list(videos.values()), skipped


def _is_below(path: str, folder: str) -> bool:
    return path != folder and os.path.commonpath([path, folder]) == folder


def refuse_collisions(videos: Sequence[Video], out: pathlib.Path, settings: Settings) -> None:
    """Raises UserError if an output exists (unless `overwrite`), is an input, or belongs to two inputs."""
    sources, owners = {os.path.realpath(video.path) for video in videos}, {}
    for video in videos:
        for path in (path for pair in video.outputs(out, settings) for path in pair):
            if os.path.realpath(path) in sources:
                raise UserError(f"{path} is itself an input and would be replaced; choose another --out")
            if path in owners:
                raise UserError(
                    f"{owners[path]} and {video.path} would both be written to {path}; give their common folder, or "
                    "each its own --out"
                )
            if os.path.exists(path) and not settings.overwrite:
                raise UserError(f"{path} exists already; pass --overwrite to replace it, or choose another --out")
            owners[path] = video.path


def sounds_for(system: System, video: Video, settings: Settings) -> Iterator[np.ndarray]:
    """Yield a waveform (round(duration_sec * audio_hz),) in [-1, 1] per variant; the video is encoded once.

    A video longer than the system's clip is sampled jointly over overlapping windows. A shorter one keeps its last frame.
    Raises UserError if the file cannot be read.
    """
    clip = system.clip
    samples = round(media.probe(video.path).duration_sec * clip.audio_hz)
    tokens = system.tokens(samples)
    grids = (
        media.FrameGrid(clip.video_hz, clip.video_px, clip.video_frames),
        media.FrameGrid(
            clip.clip_video_hz, clip.clip_video_px, clip.clip_video_frames, squash=system.squashes_clip_video
        ),
    )
    windows = (
        media.read_video(video.path, grids, start / clip.latent_hz) for start in system.window_starts(tokens)
    )
    conditions = system.encode(windows, settings.prompt)
    sampled = [
        system.sample(
            conditions, system.noise(settings.seed + variant, video.name, tokens), steps=settings.steps,
            guidance_scale=settings.guidance_scale, negative_prompt=settings.negative_prompt,
        )
        for variant in range(settings.variants)  # all before the first is decoded, because weights may be loaded lazily
    ]
    for latents in sampled:
        yield system.decode(latents)[:samples]


def generate(
    system: System, inputs: Iterable[pathlib.Path], out: pathlib.Path, settings: Settings, quiet: bool = True
) -> tuple[list[dict], list[dict]]:
    """Make sound for all videos among files and folders; return the new rows of generated.jsonl and skipped.jsonl.

    A video's sound does not depend on the other videos, and whatever goes wrong with one video, the others get theirs. A
    variant has both its files and its row, or none. Raises UserError, before anything is computed, if `out` cannot be a
    folder, if an output would overwrite a file (`refuse_collisions`), or if the system cannot read a prompt; and at the end
    if skipped.jsonl cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out} cannot be made a folder ({error.strerror}); choose another place") from error
    videos, skipped = find_videos(inputs, out)
    refuse_collisions(videos, out, settings)
    for prompt in filter(None, (settings.prompt, settings.negative_prompt)):
        system.embed_text(prompt)
    record = _Record(out)
    for row in skipped:
        _report(f"skipped: {row['reason']}", quiet)
    for video in tqdm(videos, unit="video", disable=quiet):
        begun = time.monotonic()
        try:
            media_writer.check_mux(video.path, video.outputs(out, settings)[0][1])
            for variant, waveform in enumerate(sounds_for(system, video, settings)):
                with record.adding(video.outputs(out, settings)[variant]) as row:
                    left_out = _write(video, waveform, system.clip.audio_hz, video.outputs(out, settings)[variant], settings)
                    row |= {
                        "input": str(video.path),
                        "outputs": [path.relative_to(out).as_posix() for path in video.outputs(out, settings)[variant]],
                        "seed": settings.seed + variant,
                        "steps": settings.steps,
                        "guidance": settings.guidance_scale,
                        "prompt": settings.prompt,
                        "negative_prompt": settings.negative_prompt,
                        "checkpoint": system.digest,
                        "seconds": round(time.monotonic() - begun, 3),
                    } | ({"left_out": left_out} if left_out else {})
                if left_out and variant == 0:
                    _report(f"left out of the copy of {video.path}: {', '.join(left_out)}", quiet)
                begun = time.monotonic()
        except Exception as error:
            reason = str(error) if isinstance(error, UserError) else f"{video.path} gets no sound ({containers.what(error)})"
            skipped.append({"path": str(video.path), "reason": reason})
            _report(f"skipped: {reason}", quiet)
    try:
        logging.write_jsonl(out / "skipped.jsonl", skipped)
    except OSError as error:
        raise UserError(
            f"{out / 'skipped.jsonl'} cannot be written ({containers.what(error)}); make room, then run the command again"
        ) from error
    return record.made, skipped


def _write(
    video: Video, waveform: np.ndarray, hz: int, paths: tuple[pathlib.Path, pathlib.Path], settings: Settings
) -> list[str]:
    """Writes the sound and the video with it; returns what the copy of the video lacks."""
    sound, picture = paths
    left_out = media_writer.mux(video.path, waveform, hz, picture, overwrite=settings.overwrite)
    media_writer.write_audio(sound, waveform, hz, overwrite=settings.overwrite)
    return left_out


class _Record:
    """generated.jsonl of an output folder; `made` are the rows of this call."""

    def __init__(self, out: pathlib.Path):
        self._path, self.made = out / "generated.jsonl", []
        self._rows = {row["outputs"][0]: row for row in logging.read_metrics(self._path)}

    @contextlib.contextmanager
    def adding(self, paths: tuple[pathlib.Path, pathlib.Path]) -> Iterator[dict]:
        """Records the row that the block fills. If that fails, deletes the block's files, unless it has not touched them."""
        before, row, key = [_stamp(path) for path in paths], {}, paths[0].relative_to(self._path.parent).as_posix()
        try:
            yield row
            try:
                logging.write_jsonl(self._path, (self._rows | {key: row}).values())
            except OSError as error:
                raise UserError(f"{paths[0]} is not kept: {self._path} cannot be written ({containers.what(error)})") from error
        except BaseException:
            if [_stamp(path) for path in paths] != before:
                for path in paths:
                    path.unlink(missing_ok=True)
                if self._rows.pop(key, None):
                    with contextlib.suppress(OSError):
                        logging.write_jsonl(self._path, self._rows.values())
            raise
        self._rows[key] = row
        self.made.append(row)


def _stamp(path: pathlib.Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _report(sentence: str, quiet: bool) -> None:
    with contextlib.nullcontext() if quiet else tqdm.external_write_mode(file=sys.stderr):
        print(sentence, file=sys.stderr)
