"""python benchmarks/input.py [--clips=8] [--threads=1,2] [--json=FILE]

How many clips a second the input pipeline gives: from mp4 files (decode, resize to both grids, resample) beside what PyAV needs
to decode the same pictures and drop them, and to resize them by its own means, and from extracted features. Clips are those of
MMAudio: 8 s, 25 Hz at 224 pixels and 8 Hz at 384 pixels, 44.1 kHz; the files are 640 x 360 at 25 Hz, encoded here.
"""

import argparse
import json
import os
import pathlib
import tempfile
import time

import av
from av.video.reformatter import VideoReformatter
import numpy as np

from msg_jax.clip import MMAUDIO_44K as CLIP
from msg_jax.data import media_writer, pipeline
from msg_jax.data.features import FeatureSource, FeatureWriter
from msg_jax.data.folder import FolderSource

FEATURES = {
    "latents": (CLIP.latent_tokens, CLIP.latent_channels), "clip": (CLIP.clip_video_frames, 1024),
    "sync": (CLIP.sync_tokens, 768), "text": (CLIP.text_tokens, 1024),
}
GRIDS = ((CLIP.video_px, CLIP.video_hz), (CLIP.clip_video_px, CLIP.clip_video_hz))


def write_videos(folder: pathlib.Path, count: int) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (360 // 8, 640 // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    frames = np.stack([np.roll(picture, 5 * i, axis=1) for i in range(round(25 * CLIP.duration_sec) + 5)])
    sound = rng.normal(0, 0.1, round(44_100 * (CLIP.duration_sec + 0.2)))
    data = media_writer.encode_video(frames, 25.0, sound, 44_100)
    for i in range(count):
        (folder / f"{i}.mp4").write_bytes(data)


def decode(path: pathlib.Path) -> None:
    """All pictures and sound of a file, by PyAV with its own threads, and nothing else."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for _ in container.decode(video=0):
            pass
    with av.open(str(path)) as container:
        for _ in container.decode(audio=0):
            pass


def decode_and_resize(path: pathlib.Path) -> None:
    """The same, and each picture that a record has resized as PyAV does it when asked for bicubic RGB; uncropped."""
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


def rate(function, items) -> tuple[float, float]:
    """Clips a second, and clips for each second of one core."""
    items = list(items)
    begun, worked = time.perf_counter(), time.process_time()
    for item in items:
        function(item)
    return len(items) / (time.perf_counter() - begun), len(items) / (time.process_time() - worked)


def batches_rate(source, threads: int, batch_size: int, count: int) -> tuple[float, float]:
    iterator = iter(pipeline.batches(source, batch_size=batch_size, seed=0, read_threads=threads))
    wall, work = rate(lambda _: next(iterator), range(count))
    return wall * batch_size, work * batch_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    threads = [int(each) for each in arguments.threads.split(",")]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_videos(folder, arguments.clips + 2)
        paths = sorted(folder.glob("*.mp4"))[: arguments.clips]
        rows.append(("mp4: PyAV decodes and drops", rate(decode, paths)))
        rows.append(("mp4: PyAV decodes and resizes", rate(decode_and_resize, paths)))
        source = FolderSource(folder, CLIP, "train")
        rows.append(("mp4: a record, one after the other", rate(source.__getitem__, range(len(source)))))
        for each in threads:
            rows.append((f"mp4: batches, {each} threads", batches_rate(source, each, 2, arguments.clips // 2)))
        writer = FeatureWriter(folder / "features", 256, 64)
        item = {key: np.random.default_rng(0).normal(size=shape).astype(np.float32) for key, shape in FEATURES.items()}
        for shard, indices in writer.missing:
            writer.write(shard, [str(i) for i in indices], [item] * len(indices))
        writer.finish()
        size = sum(value.nbytes for value in item.values())
        for each in threads:
            clips = batches_rate(FeatureSource(folder / "features"), each, 32, 30)
            rows.append((f"features ({size / 1e6:.2f} MB a clip): batches, {each} threads", clips))
    print(f"{os.cpu_count()} cores, of which this process may use {len(os.sched_getaffinity(0))}")
    print(f"{'clips':<50} {'a second':>10} {'a core-second':>14}")
    for what, (wall, work) in rows:
        print(f"{what:<50} {wall:>10.2f} {work:>14.2f}")
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(dict(rows), indent=1))


if __name__ == "__main__":
    main()
