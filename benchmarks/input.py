"""python benchmarks/input.py [--clips=8] [--threads=1,2] [--json=FILE]

How many clips a second the input pipeline gives: from mp4 files (decode, resize to both grids, resample) beside what PyAV needs
to decode the same pictures and do nothing with them, and from extracted features. Clips are those of MMAudio: 8 s, 25 Hz at
224 pixels and 8 Hz at 384 pixels, 44.1 kHz; the files are 640 x 360 at 25 Hz, encoded here.
"""

import argparse
import json
import os
import pathlib
import tempfile
import time

import av
import numpy as np

from msg_jax.clip import MMAUDIO_44K as CLIP
from msg_jax.data import media, pipeline
from msg_jax.data.features import FeatureSource, FeatureWriter
from msg_jax.data.folder import FolderSource

FEATURES = {
    "latents": (CLIP.latent_tokens, CLIP.latent_channels), "clip": (CLIP.clip_video_frames, 1024),
    "sync": (CLIP.sync_tokens, 768), "text": (CLIP.text_tokens, 1024),
}


def write_videos(folder: pathlib.Path, count: int) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (360 // 8, 640 // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    frames = np.stack([np.roll(picture, 5 * i, axis=1) for i in range(round(25 * CLIP.duration_sec) + 5)])
    sound = rng.normal(0, 0.1, round(44_100 * (CLIP.duration_sec + 0.2)))
    data = media.encode_video(frames, 25.0, sound, 44_100)
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
        rows.append(("mp4: PyAV decodes and drops", rate(decode, sorted(folder.glob("*.mp4"))[: arguments.clips])))
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
