"""python -m benchmarks.long_video --checkpoint=FOLDER [--minutes=1,10] [--steps=2]

Peak memory and CPU seconds of `generate` for videos of some minutes, 320 x 180 at 25 pictures a second.

Each length is measured in its own process, after a video of half a minute for which everything is compiled. The last columns
compare with the first length: memory as it is, seconds per minute of video.
"""

import argparse
import json
import pathlib
import tempfile
import time

import av
import numpy as np

from benchmarks import rows
from msg_jax.inference import generate
from msg_jax.inference.loading import load_checkpoint
from msg_jax.infra import runtime


def write_video(path: pathlib.Path, minutes: float) -> None:
    """A gradient that moves, H.264 in MP4, one picture at a time."""
    gradient = np.add.outer(np.arange(180), np.arange(320)).astype(np.uint8)
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=25, options={"preset": "ultrafast", "crf": "30"})
        video.height, video.width, video.pix_fmt = 180, 320, "yuv420p"
        for i in range(round(minutes * 60 * 25)):
            picture = np.repeat(np.roll(gradient, 3 * i, axis=1)[..., None], 3, -1)
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(video.encode(None))


def measure(checkpoint: str, minutes: float, steps: int) -> dict[str, float]:
    runtime.share_heap()
    system, settings = load_checkpoint(checkpoint), generate.Settings(steps, 1.0)
    with tempfile.TemporaryDirectory() as name:
        folder, begun = pathlib.Path(name), 0.0
        for kind, length in (("warm", 0.5), ("timed", minutes)):
            write_video(folder / f"{kind}.mp4", length)
            begun = time.process_time()
            made, skipped = generate.generate(system, [folder / f"{kind}.mp4"], folder / "out", settings)
            assert len(made) == 1 and not skipped
        return {"minutes": minutes, "cpu_sec": time.process_time() - begun, "peak_gb": rows.peak_gb()}


def main(argv: list[str] | None = None) -> None:
    flags = argparse.ArgumentParser(usage=__doc__.partition("\n")[0], allow_abbrev=False)
    flags.add_argument("--checkpoint", required=True)
    flags.add_argument("--minutes", default="1,10")
    flags.add_argument("--steps", type=int, default=2)
    flags.add_argument("--here", type=float, help=argparse.SUPPRESS)  # internal: print the row of this length
    args = flags.parse_args(argv)
    if args.here:
        print(json.dumps(measure(args.checkpoint, args.here, args.steps)))
        return
    print(f"{'minutes':>8} {'CPU s':>8} {'peak GB':>8} {'memory':>7} {'time':>6}")
    first = None
    for minutes in args.minutes.split(","):
        flags_of_row = (f"--checkpoint={args.checkpoint}", f"--here={minutes}", f"--steps={args.steps}")
        row = rows.measure_in_subprocess("benchmarks.long_video", *flags_of_row)
        first = first or row
        memory, per_minute = row["peak_gb"] / first["peak_gb"], row["cpu_sec"] / row["minutes"]
        time_ratio = per_minute * first["minutes"] / first["cpu_sec"]
        cells = f"{row['minutes']:>8g} {row['cpu_sec']:>8.1f} {row['peak_gb']:>8.3f} {memory:>7.3f} {time_ratio:>6.3f}"
        print(cells, flush=True)


if __name__ == "__main__":
    main()
