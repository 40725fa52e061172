"""python -m msg_jax.generate VIDEO_OR_FOLDER ... --checkpoint=runs/tiny/avp_rpo --out=DIR [--FLAG=VALUE ...]
python -m msg_jax.generate VIDEO_OR_FOLDER ... --weights=FOLDER_OR_FILE --out=DIR [--FLAG=VALUE ...]

For NAME.mp4 (also below a folder) writes NAME.wav, exactly as long as the video, and NAME.mp4 with that as its sound
and its pictures untouched. `--variants=N` writes NAME_0 to NAME_{N-1}: variant i is what `--seed=SEED+i` alone gives.

`DIR/generated.jsonl` has a row for each sound in DIR; `DIR/skipped.jsonl` a row for each file that this call could not
use, in which case the exit code is 2.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import dataclasses
import pathlib
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from msg_jax.data import media, media_writer
from msg_jax.errors import UserError, fail
from msg_jax.infra import logging

if TYPE_CHECKING:
    from msg_jax.system import System

_SUFFIXES = ", ".join(media.VIDEO_SUFFIXES)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is wanted of every video."""

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
    """One input; `name` is its path relative to the folder that was given, or the file's name."""

    path: pathlib.Path
    name: str

    def outputs(self, out: pathlib.Path, settings: Settings) -> list[tuple[pathlib.Path, pathlib.Path]]:
        """(sound, video with sound) of each variant."""
        stem = self.name.removesuffix(self.path.suffix)
        tags = [""] if settings.variants == 1 else [f"_{i}" for i in range(settings.variants)]
        return [(out / f"{stem}{tag}.{settings.audio_format}", out / f"{stem}{tag}{self.path.suffix}") for tag in tags]


def find_videos(inputs: Iterable[pathlib.Path], out: pathlib.Path) -> tuple[list[Video], list[dict]]:
    """The videos among files and folders, and rows {"path", "reason"} for inputs without any.

    Where `out` lies inside a given folder, earlier results in it are not taken for inputs.
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
            skipped.append({"path": str(given), "reason": f"{given} is no video ({_SUFFIXES})"})
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


def sounds_for(system: "System", video: Video, settings: Settings) -> Iterator[np.ndarray]:
    """A waveform (round(duration_sec * audio_hz),) in [-1, 1] for each variant; the video is encoded once.

    A video longer than the system's clip is seen through overlapping windows that are sampled jointly; after the end of
    a shorter one its last picture stays. Raises UserError for a file that cannot be read.
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
        tuple(media.read_video(video.path, grids, start / clip.latent_hz)) for start in system.window_starts(tokens)
    )
    conditions = system.encode(windows, settings.prompt)
    sampled = [
        system.sample(
            conditions, system.noise(settings.seed + variant, video.name, tokens), steps=settings.steps,
            guidance_scale=settings.guidance_scale, negative_prompt=settings.negative_prompt,
        )
        for variant in range(settings.variants)  # all before the first is decoded: networks may be loaded in turn
    ]
    for latents in sampled:
        yield system.decode(latents)[:samples]


def generate(
    system: "System", inputs: Iterable[pathlib.Path], out: pathlib.Path, settings: Settings, quiet: bool = True
) -> tuple[list[dict], list[dict]]:
    """Makes sound for all videos among files and folders; returns the new rows of generated.jsonl and skipped.jsonl.

    What a video gets does not depend on what else is made with it. Raises UserError, before anything is computed, if
    `out` cannot be a folder, an output is in the way (`refuse_collisions`) or the system cannot read a prompt.
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
        _complain(row, quiet)
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
            _complain(skipped[-1], quiet)
        logging.write_jsonl(out / "generated.jsonl", rows.values())
    logging.write_jsonl(out / "skipped.jsonl", skipped)
    return made, skipped


def _complain(row: dict, quiet: bool) -> None:
    with contextlib.nullcontext() if quiet else tqdm.external_write_mode(file=sys.stderr):
        print(f"skipped: {row['reason']}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one sentence."""

    def error(self, message: str):
        fail(f"{message}; --help lists all flags.")


def _whole(least: int, most: float = float("inf")) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not text.removeprefix("-").isdigit() or not least <= int(text) <= most:
            limit = f"from {least} to {most}" if most < float("inf") else f"of at least {least}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {limit}")
        return int(text)

    return whole


def parser() -> argparse.ArgumentParser:
    usage, _, details = __doc__.partition("\n\n")
    flags = _Parser(prog="python -m msg_jax.generate", usage=usage, description=details, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("inputs", nargs="+", type=pathlib.Path, metavar="VIDEO_OR_FOLDER")
    source = flags.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", help="folder of a finished stage: base or a preference arm")
    source.add_argument("--weights", help="folder of MMAudio's released files, or its MM-DiT file in such a folder")
    flags.add_argument("--variant", help="with --weights: small_16k, small_44k, medium_44k, large_44k or large_44k_v2")
    flags.add_argument("--out", required=True, type=pathlib.Path, help="folder for the results")
    flags.add_argument("--prompt", default="", help="what is to be heard")
    flags.add_argument("--negative_prompt", default="", help="what is not to be heard; needs a guidance other than 1")
    flags.add_argument("--seed", type=_whole(0, 2**31 - 1), default=0)
    flags.add_argument("--variants", type=_whole(1), default=1, help="sounds for each video")
    flags.add_argument("--steps", type=_whole(1), help="solver steps (default: as the run was evaluated, or 25)")
    flags.add_argument("--guidance", type=float, help="guidance scale, 1 for none (default: as evaluated, or 4.5)")
    flags.add_argument("--audio_format", choices=("wav", "flac"), default="wav")
    flags.add_argument("--overwrite", action="store_true", help="replace results that exist")
    flags.add_argument("--verbosity", type=int, default=0, help="-1: no progress bar, only complaints")
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0, or 2 if a file was skipped."""
    args = parser().parse_intermixed_args(argv)
    if args.variant and not args.weights:
        fail("--variant chooses among the files of --weights; leave it out.")
    from msg_jax.infra import runtime  # after the flags: a mistake in them is told before jax is loaded
    from msg_jax.system import load_checkpoint, load_weights

    logging.plain_terminal()
    runtime.use_compile_cache()
    quiet = args.verbosity < 0
    try:
        system = load_weights(args.weights, args.variant) if args.weights else load_checkpoint(args.checkpoint)
        settings = Settings(
            steps=args.steps or system.steps,
            guidance_scale=system.guidance_scale if args.guidance is None else args.guidance,
            seed=args.seed, variants=args.variants, prompt=args.prompt, negative_prompt=args.negative_prompt,
            audio_format=args.audio_format, overwrite=args.overwrite,
        )
        made, skipped = generate(system, args.inputs, args.out, settings, quiet)
    except UserError as error:
        fail(str(error))
    if not quiet:
        print(f"{len(made)} sounds in {args.out}, {len(skipped)} inputs skipped", file=sys.stderr)
    return 2 if skipped else 0


if __name__ == "__main__":
    sys.exit(main())
