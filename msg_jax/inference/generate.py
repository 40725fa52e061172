"""Sound for video files: find them, sample, write sounds and videos, and record what was made and what was skipped."""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import dataclasses
import pathlib
import sys
import time

import numpy as np
from tqdm import tqdm

from msg_jax.data import media, media_writer
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
    overwrite: bool = False


@dataclasses.dataclass(frozen=True)
class Video:
    """One input; `name` is its path relative to the given folder, or the file's name."""

    path: pathlib.Path
    name: str

    def outputs(self, out: pathlib.Path, settings: Settings) -> list[tuple[pathlib.Path, pathlib.Path]]:
        """Paths of (sound, video with sound) of each variant."""
        stem = self.name.removesuffix(self.path.suffix)
        tags = [""] if settings.variants == 1 else [f"_{i}" for i in range(settings.variants)]
        return [(out / f"{stem}{tag}.{settings.audio_format}", out / f"{stem}{tag}{self.path.suffix}") for tag in tags]


def find_videos(inputs: Iterable[pathlib.Path], out: pathlib.Path) -> tuple[list[Video], list[dict]]:
    """Find the videos among files and folders; return also rows {"path", "reason"} for inputs without any.

    Earlier results are not taken as inputs if `out` lies inside a given folder.
    """
    videos, skipped = {}, []
    for given in inputs:
        if given.is_dir():
            inside = [
                Video(path, path.relative_to(given).as_posix()) for path in sorted(given.rglob("*"))
                if path.suffix.lower() in media.VIDEO_SUFFIXES and not path.name.startswith(".") and path.is_file()
                and not (given.resolve() in out.resolve().parents and out.resolve() in path.resolve().parents)
            ]
            if not inside:
                skipped.append({"path": str(given), "reason": f"{given} holds no video ({_SUFFIXES})"})
        elif given.exists() and given.suffix.lower() not in media.VIDEO_SUFFIXES:
            inside = []
            skipped.append({"path": str(given), "reason": f"{given} is not a video ({_SUFFIXES})"})
        else:
            inside = [Video(given, given.name)]
        videos |= {(video.path.resolve(), video.name): video for video in inside}
    return list(videos.values()), skipped


def refuse_collisions(videos: Sequence[Video], out: pathlib.Path, settings: Settings) -> None:
    """Raises UserError if an output exists (unless `overwrite`), is an input, or belongs to two inputs."""
    sources, owners = {video.path.resolve() for video in videos}, {}
    for video in videos:
        for path in (path for pair in video.outputs(out, settings) for path in pair):
            if path.resolve() in sources:
                raise UserError(f"{path} is itself an input and would be replaced; choose another --out")
            if path in owners:
                raise UserError(
                    f"{owners[path]} and {video.path} would both be written to {path}; give their common folder, or "
                    "each its own --out"
                )
            if path.exists() and not settings.overwrite:
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

    A video's sound does not depend on the other videos. Raises UserError, before anything is computed, if `out` cannot be a
    folder, if an output would overwrite a file (`refuse_collisions`), or if the system cannot read a prompt.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out} cannot be made a folder ({error.strerror}); choose another place") from error
    videos, skipped = find_videos(inputs, out)
    refuse_collisions(videos, out, settings)
    for prompt in filter(None, (settings.prompt, settings.negative_prompt)):
        system.embed_text(prompt)
    rows = {row["outputs"][0]: row for row in logging.read_metrics(out / "generated.jsonl")}
    made = []
    for row in skipped:
        _report(row, quiet)
    for video in tqdm(videos, unit="video", disable=quiet):
        begun = time.monotonic()
        try:
            for variant, waveform in enumerate(sounds_for(system, video, settings)):
                sound, picture = video.outputs(out, settings)[variant]
                media_writer.mux(video.path, waveform, system.clip.audio_hz, picture, overwrite=settings.overwrite)
                media_writer.write_audio(sound, waveform, system.clip.audio_hz, overwrite=settings.overwrite)
                made.append({
                    "input": str(video.path),
                    "outputs": [path.relative_to(out).as_posix() for path in (sound, picture)],
                    "seed": settings.seed + variant,
                    "steps": settings.steps,
                    "guidance": settings.guidance_scale,
                    "prompt": settings.prompt,
                    "negative_prompt": settings.negative_prompt,
                    "checkpoint": system.digest,
                    "seconds": round(time.monotonic() - begun, 3),
                })
                begun = time.monotonic()
                rows[made[-1]["outputs"][0]] = made[-1]
        except UserError as error:
            skipped.append({"path": str(video.path), "reason": str(error)})
            _report(skipped[-1], quiet)
        logging.write_jsonl(out / "generated.jsonl", rows.values())
    logging.write_jsonl(out / "skipped.jsonl", skipped)
    return made, skipped


def _report(row: dict, quiet: bool) -> None:
    with contextlib.nullcontext() if quiet else tqdm.external_write_mode(file=sys.stderr):
        print(f"skipped: {row['reason']}", file=sys.stderr)
