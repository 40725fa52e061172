"""python -m benchmarks.evaluation [--pairs=250,500,1000] [--seconds=8] [--video] [--to=15000] [--json=FILE]

Time and peak memory of the evaluation of a folder of clips, over the number of pairs, with the backbones that need no weights.

The clips are pairs of sounds: bursts at random times, as 16 kHz .wav. With --video the references are videos of 256 px at
25 fps. Each number of pairs is evaluated in its own process, and then once more, when all features are in the cache. Making the
clips is not timed. The last line continues the growth from the smallest to the largest number of pairs to --to pairs.
"""

import argparse
import json
import pathlib
import tempfile
import time

import numpy as np

from benchmarks import rows
from msg_jax import programs
from msg_jax.config import tree
from msg_jax.data import media_writer
from msg_jax.infra import runtime
from msg_jax.recipes import runs

HZ, BURST_SEC = 16_000, 0.5


def bursts(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """A waveform (S,) with three decaying bursts of noise in two seconds."""
    waveform = 1e-3 * rng.normal(size=round(seconds * HZ))
    decay = np.exp(-np.arange(round(BURST_SEC * HZ)) / (0.08 * HZ))
    for start in rng.integers(0, len(waveform) - len(decay) + 1, max(1, round(1.5 * seconds))):
        waveform[start : start + len(decay)] += 0.3 * decay * rng.normal(size=len(decay))
    return np.clip(waveform, -1, 1)


def make_pairs(root: pathlib.Path, count: int, seconds: float, video: bool) -> None:
    """Write `count` clips to root/generated and their references to root/reference."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (round(seconds * 25), 32, 32, 3), np.uint8)
    for index in range(count):
        sounds = [bursts(rng, seconds) for _ in range(2)]
        media_writer.write_audio(root / "generated" / f"{index:05d}.wav", sounds[0], HZ)
        if video:
            (root / "reference").mkdir(exist_ok=True)
            moved = np.roll(frames, index, axis=0).repeat(8, 1).repeat(8, 2)
            (root / "reference" / f"{index:05d}.mp4").write_bytes(media_writer.encode_video(moved, 25.0, sounds[1], HZ))
        else:
            media_writer.write_audio(root / "reference" / f"{index:05d}.wav", sounds[1], HZ)


def measure(root: pathlib.Path, seconds: float) -> dict[str, float]:
    """Seconds and peak memory of the first and of the second evaluation of the pairs below `root`."""
    runtime.share_heap()
    folders = {side: str(root / side) for side in ("generated", "reference")}
    config = tree.replace(runs.evaluate(), **folders, duration_sec=seconds, examples=4)
    row = {}
    for name in ("first", "again"):
        begun = time.perf_counter()
        programs.run(config, root / "out")
        row |= {f"{name}_sec": time.perf_counter() - begun, f"{name}_peak_gb": rows.peak_gb()}
    return row


def continued(small: dict, large: dict, pairs: int) -> dict[str, float]:
    """The row of so many pairs, if everything grows as from the row `small` to the row `large`."""
    share = (pairs - large["pairs"]) / (large["pairs"] - small["pairs"])
    return {name: value + share * (value - small[name]) for name, value in large.items()}


def _show(row: dict) -> str:
    cells = f"{row['pairs']:>8g} {row['first_sec']:>8.1f} {row['again_sec']:>8.1f} {row['first_peak_gb']:>8.3f}"
    return f"{cells} {row['again_peak_gb']:>8.3f} {1000 * row['first_sec'] / row['pairs']:>12.1f}"


def main(argv: list[str] | None = None) -> None:
    flags = argparse.ArgumentParser(usage=__doc__.partition("\n")[0], allow_abbrev=False)
    flags.add_argument("--pairs", default="250,500,1000")
    flags.add_argument("--seconds", type=float, default=8.0, help="of each clip; at least one")
    flags.add_argument("--video", action="store_true", help="make the references videos")
    flags.add_argument("--to", type=int, default=15_000)
    flags.add_argument("--json", type=pathlib.Path, help="also write the rows to this file")
    flags.add_argument("--here", type=pathlib.Path, help=argparse.SUPPRESS)  # internal: print the row of the pairs here
    args = flags.parse_args(argv)
    if args.here:
        print(json.dumps(measure(args.here, args.seconds)))
        return
    print(f"{'pairs':>8} {'first s':>8} {'again s':>8} {'peak GB':>8} {'again GB':>8} {'s per 1,000':>12}")
    table = []
    for count in map(int, args.pairs.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            make_pairs(pathlib.Path(folder), count, args.seconds, args.video)
            row = rows.measure_in_subprocess("benchmarks.evaluation", f"--here={folder}", f"--seconds={args.seconds}")
        table.append({"pairs": count, **row})
        print(_show(table[-1]), flush=True)
    if len(table) > 1:
        print(f"{_show(continued(table[0], table[-1], args.to))}  extrapolated")
    rows.save(args.json, f"{args.seconds:g} s, {'video' if args.video else 'sound'}", table)


if __name__ == "__main__":
    main()
