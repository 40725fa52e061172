"""Extracts latents and condition features of every clip once, so that generator training never decodes a video.

Clips that cannot be read are left out. The run's `skipped.jsonl` gives the reasons, and `data.json` here their number.
"""

from collections.abc import Iterator
import functools
import itertools
import json

import jax
import numpy as np

from msg_jax import networks
from msg_jax.data.augment import Augmented
from msg_jax.data.features import FeatureSource, FeatureWriter
from msg_jax.data.pipeline import Source
from msg_jax.errors import UnreadableError
from msg_jax.inference import frozen
from msg_jax.inference.batching import chunks
from msg_jax.infra import logging, preemption, runtime
from msg_jax.infra import mesh as mesh_lib
from msg_jax.models.motion import motion_energy
from msg_jax.run.run import Run
from msg_jax.run.stage import text_digest
from msg_jax.stages.prepare import SPLITS
from msg_jax.storage import Path


class Extractor:
    """Computes latents and condition features of records. Large frozen networks are loaded one at a time."""

    def __init__(self, run: Run):
        config = run.config
        self._run, self._variables = run, run.frozen("encoder")
        self._encode_frames, self._embed_text = frozen.encoders(config, run.clip, run.released, self._variables)
        self._encode_audio = jax.jit(functools.partial(networks.codec(config, run.clip).apply, method="encode"))
        self._motion = jax.jit(functools.partial(motion_energy, steps=run.clip.sync_tokens))
        self._released = config.encoders.kind == "released"
        self._null_text = None
        if self._released:
            assert run.released is not None
            self._null_text = np.asarray(run.released.load("mmdit", "buffers/empty_text")["buffers"]["empty_text"])[None]

    def __call__(self, records: list[dict]) -> dict[str, np.ndarray]:
        """Features (len(records), ...) by name, for at most `extract.batch_size` records."""
        arrays = [self._run.arrays(record) for record in records]
        batch = {name: np.stack([each[name] for each in arrays]) for name in arrays[0]}
        (padded,) = chunks(batch, self._run.config.extract.batch_size)  # one shape, one compilation
        padded = mesh_lib.spread(padded, self._run.local_mesh)
        frames = batch if self._released else padded  # the released encoders cut their own batches, without padding
        text = np.concatenate([self._text(record["caption"]) for record in records])
        clip, sync = self._encode_frames(self._variables["encoders"], frames["video"], frames["clip_video"])
        latents = self._encode_audio(self._variables["codec"], padded["mel"])
        found = {"latents": latents, "clip": clip, "sync": sync, "text": text}
        if self._run.config.extract.motion:
            found["motion"] = self._motion(batch["video"])
        return {name: np.asarray(value)[: len(records)] for name, value in found.items()}

    def _text(self, caption: str) -> np.ndarray:
        return self._embed_text(caption) if caption or self._null_text is None else self._null_text


def _readable(run: Run, source: Source, indices: range, skipped: list[dict]) -> Iterator[dict]:
    """Yield the records at these indices. Unreadable ones are reported and appended to `skipped` with their index."""
    for i in indices:
        try:
            yield source[i]
        except UnreadableError as error:
            run.report_skipped(error.row)
            skipped.append({"index": i} | error.row)


def write_shard(
    run: Run, extract: Extractor, source: Source, writer: FeatureWriter, shard: int, indices: range,
    progress: logging.Progress | None = None,
) -> tuple[int, int]:
    """Write the features of the clips at `indices`. Return how many were written and how many could not be read."""
    ids, items, skipped = [], [], []
    records = _readable(run, source, indices, skipped)
    while batch := list(itertools.islice(records, run.config.extract.batch_size)):
        features = extract(batch)
        items += [{name: value[i] for name, value in features.items()} for i in range(len(batch))]
        ids += [record["id"] for record in batch]
        if progress is not None:
            progress.update(indices.start + len(ids) + len(skipped))
    writer.write(shard, ids, items, skipped)
    return len(ids), len(skipped)


def training_source(run: Run) -> Source:
    """The generator's training clips: the training split, and what `config.augment` makes of it."""
    source, section = run.source("train"), run.config.augment
    if not (section.concat or section.speed):
        return source
    return Augmented(
        source, concat=section.concat, speed=section.speed, speeds=section.speeds, seed=run.config.data.seed,
    )


def make(run: Run, folder: Path, seed: int | None) -> str:
    config, extract = run.config.extract, Extractor(run)
    facts, digests = {"clips": {}, "skipped": {}}, []
    for split in SPLITS:
        source = training_source(run) if split == "train" else run.source(split)
        writer = FeatureWriter(folder / split, len(source), config.shard_clips, jax.process_index(), jax.process_count())
        progress = logging.Progress(f"extract {split}", len(source), "clip")
        for shard, indices in writer.missing:
            write_shard(run, extract, source, writer, shard, indices, progress)
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
