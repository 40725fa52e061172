"""python benchmarks/evaluation.py [--pairs=1000] [--video] [--json=FILE]

Time the evaluation of a folder of clips, with the backbones that need no weights.

The clips are pairs of eight-second sounds: bursts at random times, as 16 kHz .wav. With --video the references are videos of
256 px at 25 fps. They are evaluated twice; the second evaluation finds all features in the cache. Making the clips is not
timed.
"""

import argparse
import json
import pathlib
import tempfile
import time

import numpy as np

from msg_jax import programs
from msg_jax.config import tree
from msg_jax.data import media_writer
from msg_jax.recipes import runs

SECONDS, HZ = 8, 16_000


def bursts(rng: np.random.Generator) -> np.ndarray:
    """A waveform (S,) of a dozen decaying bursts of noise."""
    waveform = 1e-3 * rng.normal(size=SECONDS * HZ)
    decay = np.exp(-np.arange(HZ // 2) / (0.08 * HZ))
    for start in rng.integers(0, SECONDS * HZ - len(decay), 12):
        waveform[start : start + len(decay)] += 0.3 * decay * rng.normal(size=len(decay))
    return np.clip(waveform, -1, 1)


def make_pairs(root: pathlib.Path, count: int, video: bool) -> None:
    """Write `count` clips to root/generated and their references to root/reference."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (SECONDS * 25, 32, 32, 3), np.uint8)
    for index in range(count):
        sounds = [bursts(rng) for _ in range(2)]
        media_writer.write_audio(root / "generated" / f"{index:05d}.wav", sounds[0], HZ)
        if video:
            (root / "reference").mkdir(exist_ok=True)
            moved = np.roll(frames, index, axis=0).repeat(8, 1).repeat(8, 2)
            (root / "reference" / f"{index:05d}.mp4").write_bytes(media_writer.encode_video(moved, 25.0, sounds[1], HZ))
        else:
            media_writer.write_audio(root / "reference" / f"{index:05d}.wav", sounds[1], HZ)


def measure(count: int, video: bool) -> dict[str, float]:
    """Seconds that the first and the second evaluation of `count` pairs take."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        make_pairs(root, count, video)
        config = tree.replace(
            runs.evaluate(), generated=str(root / "generated"), reference=str(root / "reference"), examples=4
        )
        seconds = []
        for _ in range(2):
            begun = time.perf_counter()
            programs.run(config, root / "out")
            seconds.append(time.perf_counter() - begun)
    return {"pairs": count, "first_sec": seconds[0], "again_sec": seconds[1], "sec_per_1000_pairs": 1000 * seconds[0] / count}


def main(argv: list[str] | None = None) -> None:
    flags = argparse.ArgumentParser(usage=__doc__.partition("\n")[0], allow_abbrev=False)
    flags.add_argument("--pairs", type=int, default=1000)
    flags.add_argument("--video", action="store_true", help="make the references videos")
    flags.add_argument("--json", type=pathlib.Path, help="also write the row to this file")
    args = flags.parse_args(argv)
    row = measure(args.pairs, args.video)
    print("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
    if args.json:
        args.json.write_text(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
