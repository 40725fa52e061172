"""python -m benchmarks.long_scenes --checkpoint=RUN/seed_0/base [--clips=8] [--minutes=3] [--ways=joint,independent]
[--steps=8] [--guidance=2] [--json=FILE]

What four ways to make sound for a video of minutes lose over time, at joins and after cuts, by event F1 of the run's second
judge, from video files of long procedural scenes (data/scenes_long.py) on:

- joint: overlapping windows are denoised together, as `generate` does it;
- joint_cuts: the same with `generate --respect_cuts`, windows that end at the cuts it finds;
- independent: windows are made apart, and their sounds cross-faded;
- continued: a window begins with the last latents of the one before, which are held while the rest is made.

All have the same network, solver and guidance. `real` is the scenes' own sound, the most that this judge can find. Intervals
are over clips; the last column is the CPU seconds that a minute of video takes, with its share of compiling.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import json
import pathlib
import tempfile
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import rows
from msg_jax.config import tree
from msg_jax.config.schema import Config
from msg_jax.data import media, media_writer, scenes, scenes_long
from msg_jax.data.frame_grid import FrameGrid
from msg_jax.evaluation import bootstrap, events
from msg_jax.inference import sampling
from msg_jax.inference.generate import Settings, Video, takes_for
from msg_jax.inference.loading import load_checkpoint
from msg_jax.inference.system import System
from msg_jax.infra.record import read_record
from msg_jax.run import build
from msg_jax.run.run import Run
from msg_jax.storage import path

HELD_SEC = 0.8  # of the window before, that `continued` begins with
FADE_SEC = 0.24  # of the cross-fade of `independent`
NEAR_SEC = 0.2  # of a join
AFTER_SEC = 0.5  # after a cut
METHODS = ("joint", "independent", "continued", "joint_cuts")


class Sound(NamedTuple):
    """A clip's sound, and the times at which one window's takes over from another's."""

    waveform: np.ndarray
    joins_sec: Sequence[float]


def _generated(system: System, files: Sequence[pathlib.Path], settings: Settings) -> Iterator[np.ndarray]:
    for file in files:
        (take,) = takes_for(system, Video(file, file.name), settings)
        yield take.waveform


def joint(system: System, files: Sequence[pathlib.Path], tokens: int, settings: Settings) -> Iterator[Sound]:
    edges = {edge for start in system.window_starts(tokens) for edge in (start, start + system.clip.latent_tokens)}
    joins = np.array(sorted(edges - {0, tokens})) / system.clip.latent_hz
    return (Sound(waveform, joins) for waveform in _generated(system, files, settings))


def joint_cuts(system: System, files: Sequence[pathlib.Path], tokens: int, settings: Settings) -> Iterator[Sound]:
    settings = dataclasses.replace(settings, respect_cuts=True)
    return (Sound(waveform, ()) for waveform in _generated(system, files, settings))


def _seen(system: System, file: pathlib.Path, starts: Sequence[int]) -> Any:
    """The conditions of the windows of a video that begin at these tokens."""
    clip, choice = system.clip, system.frame_choice
    grids = (
        FrameGrid(clip.video_hz, clip.video_px, clip.video_frames, choice=choice),
        FrameGrid(clip.clip_video_hz, clip.clip_video_px, clip.clip_video_frames, system.squashes_clip_video, choice),
    )
    return system.encode((media.read_video(file, grids, start / clip.latent_hz) for start in starts), count=len(starts))


@functools.partial(jax.jit, static_argnames=("model", "steps", "guidance_scale", "rescale"))
def _sample_held(model, variables, conditions, noise, known, held, steps, guidance_scale, rescale):
    """Latents (B, T, C) of one window each, of which the tokens `held` (T,) are those of `known` (B, T, C)."""
    def process(conditions):
        return model.apply(variables, conditions, method="preprocess")

    null = model.apply(variables, len(noise), None, method="null_conditions")
    velocity = sampling.guided(
        lambda *args: model.apply(variables, *args, method="velocity"), process(conditions), process(null), guidance_scale,
        rescale,
    )

    def towards(x, t):  # what is held goes straight from its noise to its value
        return jnp.where(held[:, None], known - noise, velocity(x, t))

    return sampling.integrate(towards, noise, steps=steps)


def _one_by_one(
    system: System, files: Sequence[pathlib.Path], tokens: int, overlap: int, settings: Settings, hold: bool
) -> tuple[Sequence[int], list[np.ndarray]]:
    """The starts of windows that overlap by `overlap` tokens, and the normalised latents (B, T, C) of each, of all files.

    With `hold`, the overlap is that of the window before.
    """
    length = system.clip.latent_tokens
    starts = sampling.window_starts(tokens, length, length - overlap)
    conditions = jax.tree.map(lambda *each: np.stack(each), *(_seen(system, file, starts) for file in files))
    noise = np.stack([system.noise(0, file.name, len(starts) * length)[0] for file in files])
    known, windows, before = np.zeros((len(files), length, noise.shape[-1]), np.float32), [], None
    for i, start in enumerate(starts):
        shared = before + length - start if hold and before is not None else 0
        if shared:
            known[:, :shared] = windows[-1][:, -shared:]
        windows.append(np.asarray(_sample_held(
            system.generator, system.variables["generator"], jax.tree.map(lambda each, i=i: each[:, i], conditions),
            noise[:, i * length : (i + 1) * length], known, np.arange(length) < shared, settings.steps,
            settings.guidance_scale, system.rescale,
        )))
        before = start
    return starts, windows


def _unnormalized(system: System, latents: np.ndarray) -> np.ndarray:
    return np.asarray(system.generator.apply(system.variables["generator"], latents, method="unnormalize"))


def independent(system: System, files: Sequence[pathlib.Path], tokens: int, settings: Settings) -> Iterator[Sound]:
    clip = system.clip
    fade = round(FADE_SEC * clip.latent_hz)
    starts, windows = _one_by_one(system, files, tokens, fade, settings, hold=False)
    ramp = (np.arange(fade * clip.latent_samples) + 0.5) / (fade * clip.latent_samples)
    for row in range(len(files)):
        whole = np.zeros(tokens * clip.latent_samples, np.float32)
        for start, window in zip(starts, windows):
            sound, first = system.decode(_unnormalized(system, window[row])), start * clip.latent_samples
            if start:
                faded = slice(first, first + len(ramp))
                sound[: len(ramp)] = ramp * sound[: len(ramp)] + (1 - ramp) * whole[faded]
            whole[first : first + len(sound)] = sound
        yield Sound(whole, (np.array(starts[1:]) + fade / 2) / clip.latent_hz)


def continued(system: System, files: Sequence[pathlib.Path], tokens: int, settings: Settings) -> Iterator[Sound]:
    clip = system.clip
    starts, windows = _one_by_one(system, files, tokens, round(HELD_SEC * clip.latent_hz), settings, hold=True)
    for row in range(len(files)):
        latents = np.zeros((tokens, windows[0].shape[-1]), np.float32)
        for start, window in zip(starts, windows):
            latents[start : start + clip.latent_tokens] = window[row]
        joins = [start + clip.latent_tokens for start in starts[:-1]]
        yield Sound(system.decode(_unnormalized(system, latents)), np.array(joins) / clip.latent_hz)


def heard(judge: Any, waveform: np.ndarray, size: int, hz: int) -> np.ndarray:
    """The events (n, 2) of a waveform, from windows of `size` samples of which the middle halves count."""
    starts = range(0, max(1, len(waveform) - size // 2), size // 2)
    padded = np.pad(waveform, (0, starts[-1] + size - len(waveform)))
    found = judge.detect(np.stack([padded[start : start + size] for start in starts]))
    kept = []
    for start, each in zip(starts, found):
        low, high = 0.25 * size / hz if start else 0.0, 0.75 * size / hz if start != starts[-1] else np.inf
        kept.append(each[(each[:, 1] >= low) & (each[:, 1] < high)] + np.array([0.0, start / hz]))
    return np.concatenate(kept)


def counts(true: np.ndarray, found: np.ndarray, keep: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """(tp, fp, fn) of the events of one clip whose times are kept; a hit has the time of its true event."""
    hits = events.assign(true, found)
    extra, missed = np.delete(found[:, 1], hits[:, 1]), np.delete(true[:, 1], hits[:, 0])
    return np.array([keep(true[hits[:, 0], 1]).sum(), keep(extra).sum(), keep(missed).sum()])


def near(times: np.ndarray, places: Sequence[float], before: float, after: float) -> np.ndarray:
    """Whether each time is at most so long before or after one of the places."""
    gap = np.asarray(times)[:, None] - np.asarray(places)[None, :]
    return ((gap >= -before) & (gap <= after)).any(axis=1)


def measures(minutes: int) -> dict[str, Callable]:
    """Name -> (times, joins, cuts) -> which times count."""
    found: dict[str, Callable] = {"all": lambda times, joins, cuts: np.ones(len(times), bool)}
    for minute in range(minutes):
        found[f"minute {minute + 1}"] = lambda times, joins, cuts, minute=minute: times // 60 == minute
    return found | {
        "joins": lambda times, joins, cuts: near(times, joins, NEAR_SEC, NEAR_SEC),
        "elsewhere": lambda times, joins, cuts: ~near(times, joins, NEAR_SEC, NEAR_SEC),
        "after cuts": lambda times, joins, cuts: near(times, cuts, 0.0, AFTER_SEC),
        "not after": lambda times, joins, cuts: ~near(times, cuts, 0.0, AFTER_SEC),
    }


def _interval(value: dict) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _gap(counts: np.ndarray, others: np.ndarray) -> str:
    """The difference of two F1 of the same clips, with its interval."""
    value = bootstrap.f1_difference_interval(counts, others, seed=0)
    return f"{value['value']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"


def _row(method: str, row: dict[str, Any]) -> str:
    """A line of the table: F1 with its interval of everything that the method has, and its seconds."""
    cells = [f"{name} {_interval(bootstrap.f1_interval(each, seed=0))}" for name, each in row.items()
             if name != "seconds" and each.any()]
    return "  ".join([f"{method:>12}", *cells, f"{row['seconds']:.2f} s"])


def measure(args: argparse.Namespace) -> dict[str, Any]:
    folder = path(args.checkpoint)
    record = read_record(folder)
    assert record is not None, f"{folder} is no finished stage"
    root = next(each for each in folder.parents if (each / "second_judge").exists())
    judge = build.second_judge(Run.create(tree.from_dict(Config, record["config"]), root), scenes.CLASS_NAMES)
    system = load_checkpoint(args.checkpoint)
    clip, settings = system.clip, Settings(steps=args.steps, guidance_scale=args.guidance)
    long = dataclasses.replace(clip, duration_sec=60.0 * args.minutes)
    shown = [scenes_long.make_long_scene(2**31, "test", i, long) for i in range(args.clips)]
    table: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        files = [pathlib.Path(name) / f"{i:03d}.mp4" for i in range(len(shown))]
        for file, scene in zip(files, shown):
            file.write_bytes(media_writer.encode_video(np.concatenate(list(scene.frames())), clip.video_hz))
        tokens = system.tokens(round(long.duration_sec * clip.audio_hz))
        for method in ("real", *args.ways):
            if method == "real":
                sounds, seconds = (Sound(scene.waveform, []) for scene in shown), 0.0
            else:
                make = globals()[method]
                begun = time.process_time()
                sounds = list(make(system, files, tokens, settings))
                seconds = (time.process_time() - begun) / args.minutes / args.clips
            by_measure: dict[str, list] = {measured: [] for measured in measures(args.minutes)}
            for scene, sound in zip(shown, sounds):
                found = heard(judge, sound.waveform[: long.audio_samples], clip.audio_samples, clip.audio_hz)
                for measured, keep in measures(args.minutes).items():
                    kept = functools.partial(keep, joins=sound.joins_sec, cuts=scene.cuts_sec)
                    by_measure[measured].append(counts(scene.events, found, kept))
            table[method] = {measured: np.array(each) for measured, each in by_measure.items()} | {"seconds": seconds}
            print(_row(method, table[method]), flush=True)
    return table


def main(argv: list[str] | None = None) -> None:
    flags = argparse.ArgumentParser(usage=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    flags.add_argument("--checkpoint", required=True)
    flags.add_argument("--clips", type=int, default=8)
    flags.add_argument("--minutes", type=int, default=3)
    flags.add_argument("--ways", type=lambda names: names.split(","), default=list(METHODS), help="by default all four")
    flags.add_argument("--steps", type=int, default=8)
    flags.add_argument("--guidance", type=float, default=2.0)
    flags.add_argument("--json", type=pathlib.Path, help="also write the counts to this file")
    args = flags.parse_args(argv)
    if unknown := set(args.ways) - set(METHODS):
        flags.error(f"--ways has {', '.join(sorted(unknown))}: choose from {', '.join(METHODS)}")
    table = measure(args)
    for method in args.ways[1:]:
        print(f"{method} - {args.ways[0]}: {_gap(table[method]['all'], table[args.ways[0]]['all'])}")
    for method in args.ways:
        each = table[method]
        pairs = [("joins", "elsewhere"), ("after cuts", "not after"), (f"minute {args.minutes}", "minute 1")]
        for ours, theirs in pairs:
            if ours != theirs and each[ours].any():
                print(f"{method}, {ours} - {theirs}: {_gap(each[ours], each[theirs])}")
    print(f"peak memory {rows.peak_gb():.2f} GB")
    if args.json:
        args.json.write_text(json.dumps({
            method: {name: each.tolist() if isinstance(each, np.ndarray) else each for name, each in row.items()}
            for method, row in table.items()
        }))


if __name__ == "__main__":
    main()
