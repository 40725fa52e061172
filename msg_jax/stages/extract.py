"""Extracts latents and condition features of every clip once, so that generator training never decodes a video.

Clips that cannot be read are left out. The run's `skipped.jsonl` gives the reasons, and `data.json` here their number.
"""

from collections.abc import Iterable, Iterator, Sequence
import itertools
import json
from typing import Any

import jax
import numpy as np

from msg_jax import networks
from msg_jax.data.augment import Augmented
from msg_jax.data.features import FeatureSource, FeatureWriter
from msg_jax.data.pipeline import Source, read_ahead, threads_or_cores
from msg_jax.errors import UnreadableError
from msg_jax.inference import frozen
from msg_jax.inference.batching import chunks
from msg_jax.inference.motion import motion
from msg_jax.infra import logging, preemption, runtime
from msg_jax.infra import mesh as mesh_lib
from msg_jax.run import build
from msg_jax.run.run import Run
from msg_jax.run.stage import text_digest
from msg_jax.stages.prepare import SPLITS
from msg_jax.storage import Path


class Extractor:
    """Computes latents and condition features of clips, on all devices of this process.

    Large frozen networks are loaded one at a time.
    """

    def __init__(self, run: Run):
        config = run.config
        self._run, self._variables = run, run.frozen("encoder")
        self._encode_frames, self._embed_text = frozen.encoders(
            config, run.clip, run.released, self._variables, run.local_mesh
        )
        self._encode_audio = frozen.codec_program(networks.codec(config, run.clip), "encode")
        released = config.encoders.kind == "released"
        self._pads_frames = not (released or networks.has_vision_encoder(config))  # the others cut batches of their own
        self._size = -config.extract.batch_size // run.local_mesh.size * -run.local_mesh.size  # rounded up: rows must divide
        self._null_text = None
        if released:
            assert run.released is not None
            self._null_text = np.asarray(run.released.load("mmdit", "buffers/empty_text")["buffers"]["empty_text"])[None]

    def __call__(self, clips: list[dict]) -> dict[str, np.ndarray]:
        """Features (len(clips), ...) by name, for at most `extract.batch_size` clips: what `reader` reads."""
        batch = {name: np.stack([each[name] for each in clips]) for name in ("video", "clip_video", "mel")}
        (padded,) = chunks(batch, self._size)  # one shape, one compilation
        padded = mesh_lib.spread(padded, self._run.local_mesh)
        frames = padded if self._pads_frames else batch
        text = np.concatenate([self._text(clip["caption"]) for clip in clips])
        clip, sync = self._encode_frames(self._variables["encoders"], frames["video"], frames["clip_video"])
        latents = self._encode_audio(self._variables["codec"], padded["mel"])
        found = {"latents": latents, "clip": clip, "sync": sync, "text": text}
        if self._run.config.extract.motion:
            found["motion"] = motion(padded["video"], self._run.clip.sync_tokens, self._run.config.extract.flow_grid)
        return {name: np.asarray(value)[: len(clips)] for name, value in found.items()}

    def _text(self, caption: str) -> np.ndarray:
        return self._embed_text(caption) if caption or self._null_text is None else self._null_text


def reader(run: Run, source: Source, indices: Iterable[int]) -> Iterator[tuple[int, Any]]:
    """Yield (index, clip) in order, or (index, UnreadableError). Threads read a batch ahead.

    A clip is what `Extractor` takes: `id`, `caption`, and the arrays that networks see.
    """
    def read(index: int) -> dict[str, Any]:
        record = source[index]
        return {"id": record["id"], "caption": record["caption"]} | run.arrays(record)

    threads = threads_or_cores(run.config.data.read_threads)
    return read_ahead(read, indices, threads=threads, ahead=run.config.extract.batch_size + threads)


def _readable(run: Run, read: Iterator[tuple[int, Any]], skipped: list[dict]) -> Iterator[dict]:
    """Yield the clips. Unreadable ones are reported and appended to `skipped` with their index."""
    for index, clip in read:
        if isinstance(clip, UnreadableError):
            run.report_skipped(clip.row)
            skipped.append({"index": index} | clip.row)
        else:
            yield clip


def write_shard(
    run: Run, extract: Extractor | build.JointExtractor, read: Iterator[tuple[int, Any]], writer: FeatureWriter, shard: int,
    indices: range, progress: logging.Progress | None = None,
) -> tuple[int, int]:
    """Write the features of the clips at `indices`, the next of `read`. Return how many were written and how many could not
    be read."""
    ids, items, skipped = [], [], []
    clips = _readable(run, itertools.islice(read, len(indices)), skipped)
    while batch := list(itertools.islice(clips, run.config.extract.batch_size)):
        features = extract(batch)
        items += [{name: value[i] for name, value in features.items()} for i in range(len(batch))]
        ids += [clip["id"] for clip in batch]
        if progress is not None:
            progress.update(indices.start + len(ids) + len(skipped))
    writer.write(shard, ids, items, skipped)
    return len(ids), len(skipped)


def training_source(run: Run, streams: Sequence[str] = ("video", "clip_video")) -> Source:
    """The generator's training clips: the training split, and what `config.augment` makes of it.

    Clips have the `streams` of pictures at least.
    """
    section = run.config.augment
    if not (section.concat or section.speed or section.crop):
        return run.source("train", streams=streams)
    return Augmented(
        run.source("train"), concat=section.concat, speed=section.speed, speeds=section.speeds, seed=run.config.data.seed,
        speed_range=section.speed_range, keep_pitch=section.keep_pitch, crop=section.crop, crop_shares=section.crop_shares,
    )


def extractor(run: Run) -> Extractor | build.JointExtractor:
    """What the run's generator needs to know of clips."""
    return build.JointExtractor(run) if run.config.base.network == "joint" else Extractor(run)


def source(run: Run, split: str) -> Source:
    """The clips of a split whose features are extracted."""
    if run.config.base.network == "joint":
        return build.joint_source(run, split)
    return training_source(run) if split == "train" else run.source(split)


def make(run: Run, folder: Path, seed: int | None) -> str:
    config, extract = run.config.extract, extractor(run)
    facts, digests = {"clips": {}, "skipped": {}}, []
    for split in SPLITS:
        clips = source(run, split)
        writer = FeatureWriter(folder / split, len(clips), config.shard_clips, jax.process_index(), jax.process_count())
        progress = logging.Progress(f"extract {split}", len(clips), "clip")
        missing = list(writer.missing)
        read = reader(run, clips, itertools.chain.from_iterable(indices for _, indices in missing))
        for shard, indices in missing:
            write_shard(run, extract, read, writer, shard, indices, progress)
            preemption.exit_if_requested(f"extract {split} shard {shard}")
        runtime.barrier(f"extract {split}")
        writer.finish()
        features = FeatureSource(folder / split)
        facts["clips"][split], facts["skipped"][split] = len(features), len(features.skipped)
        digests += features.digests()
    logging.write_atomically(folder / "data.json", json.dumps(facts, indent=1) + "\n")
    if skipped := sum(facts["skipped"].values()):
        logging.info("%-13s %d of %d clips could not be read: %s", "extract", skipped,
                     skipped + sum(facts["clips"].values()), run.root / "skipped.jsonl")
    return text_digest(*digests)
