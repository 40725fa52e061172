"""python benchmarks/input.py [--clips=8] [--threads=1,2] [--json=FILE]

Time the input pipeline, in clips per second: from mp4 files (decode, resize to both grids, resample), and from extracted
features. For comparison, PyAV decodes the same files and drops the frames, or resizes them itself.

Clips are those of MMAudio: 8 s, 25 Hz at 224 pixels and 8 Hz at 384 pixels, 44.1 kHz. The files are 640 x 360 at 25 Hz,
encoded here.
"""

import argparse
from collections.abc import Callable, Iterable
import json
import os
import pathlib
import tempfile
import time
from typing import Any

import av
from av.video.reformatter import VideoReformatter
import numpy as np

from msg_jax.clip import MMAUDIO_44K as CLIP
from msg_jax.data import media, media_writer, pipeline
from msg_jax.data.features import FeatureSource, FeatureWriter
from msg_jax.data.folder import FolderSource

FEATURES = {
    "latents": (CLIP.latent_tokens, CLIP.latent_channels), "clip": (CLIP.clip_video_frames, 1024),
    "sync": (CLIP.sync_tokens, 768), "text": (CLIP.text_tokens, 1024),
}
GRIDS = ((CLIP.video_px, CLIP.video_hz), (CLIP.clip_video_px, CLIP.clip_video_hz))


def write_videos(folder: pathlib.Path, count: int) -> None:
    """Write `count` copies of a video of moving noise with sound."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (360 // 8, 640 // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    frames = np.stack([np.roll(image, 5 * i, axis=1) for i in range(round(25 * CLIP.duration_sec) + 5)])
    sound = rng.normal(0, 0.1, round(44_100 * (CLIP.duration_sec + 0.2)))
    data = media_writer.encode_video(frames, 25.0, sound, 44_100)
    for i in range(count):
        (folder / f"{i}.mp4").write_bytes(data)


def decode(path: pathlib.Path) -> None:
    """Decode all frames and the sound of a file with PyAV and its threads; drop them."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for _ in container.decode(video=0):
            pass
    with av.open(str(path)) as container:
        for _ in container.decode(audio=0):
            pass


def decode_and_resize(path: pathlib.Path) -> None:
    """Decode a file, resize the frames of a record to bicubic RGB with PyAV, without a crop, and resample the sound."""
    scalers = {grid: VideoReformatter() for grid in GRIDS}
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for i, frame in enumerate(container.decode(video=0)):
            for (px, hz), scaler in scalers.items():
                if i < 25 * CLIP.duration_sec and i * hz // 25 != (i - 1) * hz // 25:
                    width = round(frame.width * px / frame.height)
                    scaler.reformat(frame, width, px, "rgb24", interpolation="BICUBIC").to_ndarray()
    with av.open(str(path)) as container:
        resampler = av.AudioResampler("fltp", "mono", CLIP.audio_hz)
        for frame in container.decode(audio=0):
            resampler.resample(frame)


def read_frames(path: pathlib.Path) -> None:
    """Read the frames of a record, the semantic stream squashed as for released encoders."""
    media.read_video(path, [
        media.FrameGrid(CLIP.video_hz, CLIP.video_px, CLIP.video_frames),
        media.FrameGrid(CLIP.clip_video_hz, CLIP.clip_video_px, CLIP.clip_video_frames, squash=True),
    ])


def rate(function: Callable[[Any], Any], items: Iterable[Any]) -> tuple[float, float]:
    """Items per second of wall time, and per second of CPU time."""
    items = list(items)
    wall_begun, cpu_begun = time.perf_counter(), time.process_time()
    for item in items:
        function(item)
    return len(items) / (time.perf_counter() - wall_begun), len(items) / (time.process_time() - cpu_begun)


def batches_rate(source: Any, threads: int, batch_size: int, count: int) -> tuple[float, float]:
    """Clips per second of wall time, and per second of CPU time, in `count` batches of a source."""
    iterator = iter(pipeline.batches(source, batch_size=batch_size, seed=0, read_threads=threads))
    wall, cpu = rate(lambda _: next(iterator), range(count))
    return wall * batch_size, cpu * batch_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    threads = [int(count) for count in arguments.threads.split(",")]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_videos(folder, arguments.clips + 2)
        paths = sorted(folder.glob("*.mp4"))[: arguments.clips]
        rows.append(("mp4: PyAV decodes and drops", rate(decode, paths)))
        rows.append(("mp4: PyAV decodes and resizes", rate(decode_and_resize, paths)))
        rows.append(("mp4: frames of both grids, without sound", rate(read_frames, paths)))
        source = FolderSource(folder, CLIP, "train")
        rows.append(("mp4: a record, one after the other", rate(source.__getitem__, range(len(source)))))
        for count in threads:
            rows.append((f"mp4: batches, {count} threads", batches_rate(source, count, 2, arguments.clips // 2)))
        writer = FeatureWriter(folder / "features", 256, 64)
        item = {key: np.random.default_rng(0).normal(size=shape).astype(np.float32) for key, shape in FEATURES.items()}
        for shard, indices in writer.missing:
            writer.write(shard, [str(i) for i in indices], [item] * len(indices))
        writer.finish()
        size = sum(value.nbytes for value in item.values())
        for count in threads:
            rates = batches_rate(FeatureSource(folder / "features"), count, 32, 30)
            rows.append((f"features ({size / 1e6:.2f} MB a clip): batches, {count} threads", rates))
    print(f"{os.cpu_count()} cores, {len(os.sched_getaffinity(0))} available to this process")
    print(f"{'clips':<50} {'per second':>10} {'per CPU second':>14}")
    for name, (wall, cpu) in rows:
        print(f"{name:<50} {wall:>10.2f} {cpu:>14.2f}")
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(dict(rows), indent=1))


if __name__ == "__main__":
    main()
