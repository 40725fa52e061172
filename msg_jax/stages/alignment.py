"""How well each training clip's own sound fits its picture, by SF-CAVP's reward: what the training set can be filtered by."""

import functools
import json
import pathlib

import jax
import numpy as np

from msg_jax import networks
from msg_jax.data.features import FeatureSource
from msg_jax.errors import UserError
from msg_jax.infra import logging
from msg_jax.models import sf_cavp
from msg_jax.stages.common import Run, text_digest
from msg_jax.stages.extract import training_source
from msg_jax.stages.listening import in_batches
from msg_jax.types import AVBatch

_FILE = "scores.json"
ORDERS = ("alignment", "random")  # what clips are kept by: the second is its control


def make(run: Run, folder: pathlib.Path, seed: int | None) -> str:
    """Writes `scores.json`: the sum of SF-CAVP's cosines, weighted as in the config, for each of the clips extracted."""
    model, params = networks.reward_model(run.config, run.clip), run.load("sf_cavp")
    weights = sf_cavp.RewardWeights(**run.config.reward)
    features = FeatureSource(run.folder("extract") / "train")
    source, size = training_source(run), run.config.evaluate.batch_size

    @jax.jit
    def score(params, video, log_mel):
        output = model.apply({"params": params}, AVBatch(networks.to_unit(video), log_mel))
        return sf_cavp.score(output.video, output.audio, weights)["reward"]

    scores, progress = [], logging.Progress("alignment", len(features), "clip")
    for start in range(0, len(features), size):
        arrays = [run.arrays(source[i]) for i in features.kept[start : start + size]]
        columns = (np.stack([each[name] for each in arrays]) for name in ("video", "mel"))
        scores += in_batches(run, functools.partial(score, params), size, *columns).tolist()
        progress.update(len(scores))
    text = json.dumps(scores)
    logging.write_atomically(folder / _FILE, text + "\n")
    return text_digest(text)


def best(run: Run, source: FeatureSource) -> list[int]:
    """Which clips the `base` section keeps for training: the share `keep_share` with the best scores, or as many at random."""
    section = run.config.base
    count = round(section.keep_share * len(source))
    if count < section.batch_size:
        raise UserError(f"config.base.keep_share={section.keep_share} leaves {count} clips, less than a batch of "
                        f"{section.batch_size}: keep more.")
    if section.keep_by == "random":
        return sorted(np.random.default_rng(run.config.seed).permutation(len(source))[:count].tolist())
    scores = np.array(json.loads((run.folder("alignment") / _FILE).read_text()))
    return sorted(np.argsort(-scores, kind="stable")[:count].tolist())
