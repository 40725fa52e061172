"""Scores how well each training clip's sound fits its video, by SF-CAVP's reward, to filter the training set."""

import functools
import json

import jax
import numpy as np

from msg_jax import networks
from msg_jax.data.features import FeatureSource
from msg_jax.errors import UserError
from msg_jax.inference.batching import map_batches
from msg_jax.infra import logging
from msg_jax.models import sf_cavp
from msg_jax.run.run import Run
from msg_jax.run.stage import text_digest
from msg_jax.stages.extract import training_source
from msg_jax.storage import Path
from msg_jax.types import AVBatch

_FILE = "scores.json"


def make(run: Run, folder: Path, seed: int | None) -> str:
    """Write `scores.json`: the sum of SF-CAVP's cosines, weighted as in `config.reward`, for each extracted clip."""
    model, params = networks.reward_model(run.config, run.clip), run.load("sf_cavp")
    weights = networks.reward_weights(run.config)
    features = FeatureSource(run.folder("extract") / "train")
    source, size = training_source(run), run.config.evaluate.batch_size

    @jax.jit
    def score(params, video, log_mel):
        output = model.apply({"params": params}, AVBatch(networks.to_unit(video), log_mel))
        return sf_cavp.score(output.video, output.audio, weights)["reward"]

    scores, progress = [], logging.Progress("alignment", len(features), "clip")
    for start in range(0, len(features), size):
        arrays = [run.arrays(source[i]) for i in features.kept[start : start + size]]
        columns = [np.stack([each[name] for each in arrays]) for name in ("video", "mel")]
        scores += map_batches(functools.partial(score, params), size, *columns, mesh=run.local_mesh).tolist()
        progress.update(len(scores))
    text = json.dumps(scores)
    logging.write_atomically(folder / _FILE, text + "\n")
    return text_digest(text)


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
