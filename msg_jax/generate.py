"""python -m msg_jax.generate VIDEO_OR_FOLDER ... --checkpoint=runs/tiny/avp_rpo --out=DIR [--FLAG=VALUE ...]
python -m msg_jax.generate VIDEO_OR_FOLDER ... --weights=FOLDER_OR_FILE --out=DIR [--FLAG=VALUE ...]
python -m msg_jax.generate --demo --out=DIR [--FLAG=VALUE ...]
python -m msg_jax.generate --prompt=TEXT --weights=FOLDER_OR_FILE --out=DIR [--FLAG=VALUE ...]

For NAME.mp4 (also below a folder) writes NAME.wav, exactly as long as the video, and NAME.mp4, the untouched video stream
with that sound. `--variants=N` writes NAME_0 to NAME_{N-1}; variant i is what `--seed=SEED+i` gives.
With `--best_of=N` each variant is the best of N seeds in turn.

Without a video, writes the sound of the prompt alone, named after it.

`--duration=S` cuts sound and pictures to S seconds, still without encoding the pictures again. `--start=A --end=B` make sound
from A to B only: the video stays whole, and elsewhere it keeps its own sound, or is silent.

Containers that are only read, as .ts or .wmv, are copied to .mkv or .mov.

Subtitles, chapters, covers and attachments are copied too. What the container cannot hold, and further sound tracks, are left
out and named. `--container=mkv` holds most.

`DIR/generated.jsonl` has a row for each sound in DIR. `DIR/skipped.jsonl` has a row for each file that this call could not
use; the exit code is then 2.
"""

import argparse
from collections.abc import Callable, Sequence
import os
import pathlib
import sys
from typing import TYPE_CHECKING

from msg_jax.errors import UserError, fail

if TYPE_CHECKING:
    import numpy as np

CONTAINERS = ("mp4", "m4v", "mov", "mkv", "webm", "avi")


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one sentence."""

    def error(self, message: str):
        fail(f"{message}; --help lists all flags.")


def _whole(least: int, most: float = float("inf")) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not text.removeprefix("-").isdigit() or not least <= int(text) <= most:
            limit = f"from {least} to {most}" if most < float("inf") else f"of at least {least}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {limit}")
        return int(text)

    return whole


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _start(text: str) -> float:
    return 0.0 if text in ("0", "0.0") else _seconds(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return share


def _lufs(text: str) -> float:
    try:
        level = float(text)
    except ValueError:
        level = float("nan")
    if not -100 <= level <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a loudness from -100 to 0 LUFS")
    return level


def _read_noise(path: pathlib.Path) -> "np.ndarray":
    """The array (variants, tokens, channels) of a .npy file; the first axis may be missing for one variant."""
    import numpy as np

    try:
        noise = np.load(path, allow_pickle=False)
        noise = np.asarray(noise, np.float32)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"--noise={path} is not a .npy file of numbers ({error}); save the array with numpy.save") from error
    return noise[None] if noise.ndim == 2 else noise


def parser() -> argparse.ArgumentParser:
    usage, _, details = (__doc__ or "").partition("\n\n")
    flags = _Parser(prog="msg-jax generate", usage=usage, description=details, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("inputs", nargs="*", type=pathlib.Path, metavar="VIDEO_OR_FOLDER")
    source = flags.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", help="folder of a finished stage: base or a preference arm")
    source.add_argument("--demo", action="store_true", help="a small model that comes with the package; without a "
                        "video, it gets a scene that it draws")
    source.add_argument("--weights", help="folder of MMAudio's released files, or its MM-DiT file in such a folder")
    flags.add_argument("--variant", help="with --weights: small_16k, small_44k, medium_44k, large_44k or large_44k_v2")
    flags.add_argument("--out", required=True, type=pathlib.Path, help="folder for the results")
    flags.add_argument("--prompt", default="", help="text that describes the sound")
    flags.add_argument("--negative_prompt", default="", help="text that describes unwanted sound; needs guidance other than 1")
    flags.add_argument("--duration", type=_seconds, help="cut the videos to their first seconds; with "
                       "--weights their sound is one sequence, as MMAudio makes it (default: the whole video, or 8 s for a "
                       "prompt alone)")
    flags.add_argument("--start", type=_start, default=0.0, help="make sound from this second on")
    flags.add_argument("--end", type=_seconds, help="make sound up to this second")
    flags.add_argument("--respect_cuts", action="store_true", help="find hard cuts, and let no sound depend on pictures from "
                       "beyond one")
    flags.add_argument("--frame_choice", choices=("training", "mmaudio_inference"), help="rule that takes the frames: as "
                       "MMAudio was trained, or as its demo.py does (default: training, or that of the run)")
    flags.add_argument("--noise", type=pathlib.Path, metavar="FILE.npy", help="initial noise instead of the seed's: (tokens, "
                       "channels), or (variants, tokens, channels)")
    flags.add_argument("--script", type=pathlib.Path, metavar="CUES.csv", help="timed prompts: a table with the columns start, "
                       "end, prompt and negative_prompt; --prompt holds where there is no cue")
    flags.add_argument("--mix", type=_share, default=0.0, help="add this share of the video's own sound")
    flags.add_argument("--loudness", type=_lufs, metavar="LUFS", help="integrated loudness, for example -23, with a true peak "
                       "below -1 dBTP (default: as the model makes it)")
    flags.add_argument("--seed", type=_whole(0, 2**31 - 1), default=0)
    flags.add_argument("--variants", type=_whole(1), default=1, help="sounds for each video")
    flags.add_argument("--best_of", type=_whole(1), default=1, help="make so many sounds for each, and keep the one with the "
                       "highest reward; needs a --checkpoint whose run has a reward")
    flags.add_argument("--steps", type=_whole(1), help="solver steps (default: as the run was evaluated, or 25)")
    flags.add_argument("--guidance", type=float, help="guidance scale, 1 for none (default: as evaluated, or 4.5)")
    flags.add_argument("--guidance_rescale", type=_share, help="share by which the level that guidance adds is taken back; 0 "
                       "is MMAudio's way (default: as evaluated, or 0)")
    flags.add_argument("--cache", type=pathlib.Path, metavar="FOLDER", help="keep the features of videos here, so that another "
                       "prompt or seed for the same video need not encode it again")
    flags.add_argument("--precision", choices=("float32", "bfloat16"), help="what the encoders and the generator compute in "
                       "(default: float32 on a CPU, bfloat16 on accelerators); bfloat16 takes about half the encoders' time on "
                       "CPUs with instructions for it")
    flags.add_argument("--audio_format", choices=("wav", "flac"), default="wav")
    flags.add_argument("--container", choices=CONTAINERS, default="", help="of the videos with sound (default: as the input)")
    flags.add_argument("--overwrite", action="store_true", help="replace results that exist")
    flags.add_argument("--verbosity", type=int, default=0, help="-1: no progress bar, only what is skipped or left out")
    return flags


def _files_with_a_dash(argv: Sequence[str]) -> list[str]:
    """The arguments, with "./" before each that begins with a dash and is a file, as names of VGGSound may."""

    def is_file(text: str) -> bool:
        return os.path.exists(text) or ("=" not in text and text.lower().endswith(tuple(f".{each}" for each in CONTAINERS)))

    return [f"./{each}" if each.startswith("-") and is_file(each) else each for each in argv]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0, or 2 if a file was skipped."""
    args = parser().parse_intermixed_args(_files_with_a_dash(sys.argv[1:] if argv is None else argv))
    if args.variant and not args.weights:
        fail("--variant chooses among the files of --weights; leave it out.")
    if args.end is not None and args.end <= args.start:
        fail(f"--end={args.end:g} is not after --start={args.start:g}; give a later end.")
    if args.duration and (args.start or args.end):
        fail("--duration cuts the video, and --start and --end keep it whole: give one or the other.")
    if not args.inputs and not args.prompt and not args.demo:
        fail("give a video or a folder of videos, or a --prompt for sound without a video; --help lists all flags.")
    from msg_jax.inference.cues import read_cues
    from msg_jax.inference.demo import draw_scene, load_demo
    from msg_jax.inference.generate import Settings, generate  # after the flags, whose mistakes need not wait for jax
    from msg_jax.inference.loading import load_checkpoint, load_weights
    from msg_jax.infra import logging, runtime

    logging.plain_terminal()
    runtime.use_compile_cache()
    runtime.share_heap()
    quiet = args.verbosity < 0
    try:
        noise = None if args.noise is None else _read_noise(args.noise)
        script = () if args.script is None else read_cues(args.script)
        if args.weights:
            system = load_weights(args.weights, args.variant, args.precision)
        else:
            system = load_demo(args.precision) if args.demo else load_checkpoint(args.checkpoint, args.precision)
        if args.demo and not args.inputs and not args.prompt:
            args.inputs = [draw_scene(args.out / "silent" / "scene.mp4", args.seed, args.overwrite)]
        settings = Settings(
            steps=args.steps or system.steps,
            guidance_scale=system.guidance_scale if args.guidance is None else args.guidance,
            guidance_rescale=args.guidance_rescale,
            seed=args.seed, variants=args.variants, prompt=args.prompt, negative_prompt=args.negative_prompt,
            audio_format=args.audio_format, container=args.container, overwrite=args.overwrite,
            duration_sec=args.duration, start_sec=args.start, end_sec=args.end, respect_cuts=args.respect_cuts,
            frame_choice=args.frame_choice,
            noise=noise, script=script, mix=args.mix, loudness_lufs=args.loudness, best_of=args.best_of,
            cache=args.cache,
        )
        made, skipped = generate(system, args.inputs, args.out, settings, quiet)
    except UserError as error:
        fail(str(error))
    if not quiet:
        print(f"{len(made)} sounds in {args.out}, {len(skipped)} inputs skipped", file=sys.stderr)
    return 2 if skipped else 0


if __name__ == "__main__":
    sys.exit(main())
