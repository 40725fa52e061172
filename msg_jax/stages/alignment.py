"""Scores how well each training clip's sound fits its video, by SF-CAVP's reward, to filter the training set."""

from collections.abc import Sequence
import functools
import itertools
import json
import math
from typing import Any

import jax
import numpy as np

from msg_jax import networks
from msg_jax.data.features import FeatureSource
from msg_jax.data.pipeline import read_ahead, threads_or_cores
from msg_jax.errors import UnreadableError, UserError
from msg_jax.inference.batching import map_batches
from msg_jax.infra import logging, preemption, runtime
from msg_jax.models import sf_cavp
from msg_jax.run.run import Run
from msg_jax.run.stage import text_digest
from msg_jax.stages.extract import training_source
from msg_jax.storage import Path
from msg_jax.types import AVBatch

_FILE = "scores.json"
_SHARD_BATCHES = 16


def make(run: Run, folder: Path, seed: int | None) -> str:
    """Write `scores.json`: the sum of SF-CAVP's cosines, weighted as in `config.reward`, for each extracted clip.

    Shards of clips are split over the processes; `shards/` keeps the finished ones.
    """
    model, params = networks.reward_model(run.config, run.clip), run.load("sf_cavp")
    weights = networks.reward_weights(run.config)
    features = FeatureSource(run.folder("extract") / "train")
    source, size = training_source(run, ("video",)), run.config.evaluate.batch_size

    @jax.jit
    def score(params, video, log_mel):
        output = model.apply({"params": params}, AVBatch(networks.to_unit(video), log_mel))
        return sf_cavp.score(output.video, output.audio, weights)["reward"]

    def read(index: int) -> tuple[np.ndarray, np.ndarray]:
        arrays = run.arrays(source[index])
        return arrays["video"], arrays["mel"]

    def scores_of(indices: Sequence[int]) -> list[float]:
        threads, found = threads_or_cores(run.config.data.read_threads), []
        clips = read_ahead(read, indices, threads=threads, ahead=size + threads)
        for _ in range(0, len(indices), size):
            batch = [_readable(clip) for _, clip in itertools.islice(clips, size)]
            columns = map(np.stack, zip(*batch))
            found += map_batches(functools.partial(score, params), size, *columns, mesh=run.local_mesh).tolist()
        return found

    shard_clips, progress = _SHARD_BATCHES * size, logging.Progress("alignment", len(features), "clip")
    shards = [folder / "shards" / f"{shard:05d}.json" for shard in range(math.ceil(len(features) / shard_clips))]
    for shard in range(jax.process_index(), len(shards), jax.process_count()):
        start = shard * shard_clips
        if not shards[shard].exists():
            logging.write_atomically(shards[shard], json.dumps(scores_of(features.kept[start : start + shard_clips])))
            preemption.exit_if_requested(f"alignment clip {start + shard_clips}")
        progress.update(min(start + shard_clips, len(features)))
    runtime.barrier(f"alignment {folder}")
    text = json.dumps([score for shard in shards for score in json.loads(shard.read_text())])
    if jax.process_index() == 0:
        logging.write_atomically(folder / _FILE, text + "\n")
    return text_digest(text)


def _readable(clip: Any) -> Any:
    """The clip; raises UnreadableError if reading it gave one, because it could be read when its features were extracted."""
    if isinstance(clip, UnreadableError):
        raise clip
    return clip


def best(run: Run, source: FeatureSource) -> list[int]:
    """Indices of the clips that `config.base` trains on: the share `keep_share` with the best scores, or as many at random."""
    section = run.config.base
    count = round(section.keep_share * len(source))
    if count < section.batch_size:
        raise UserError(f"config.base.keep_share={section.keep_share} leaves {count} clips, fewer than a batch of "
                        f"{section.batch_size}: keep more.")
    if section.keep_by == "random":
        return sorted(np.random.default_rng(run.config.seed).permutation(len(source))[:count].tolist())
    scores = np.array(json.loads((run.folder("alignment") / _FILE).read_text()))
    return sorted(np.argsort(-scores, kind="stable")[:count].tolist())
