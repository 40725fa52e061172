"""Trains the judge: a sound-event detector on real clips, with the true events as targets."""

import dataclasses
import pathlib
from typing import Any

import jax.numpy as jnp

from msg_jax import networks, train
from msg_jax.data import mel
from msg_jax.evaluation import detector, events
from msg_jax.infra import checkpoint, logging
from msg_jax.stages.common import Run, text_digest


@dataclasses.dataclass
class JudgeTask(train.Task):
    run: Run
    source: Any
    name: str = "judge"

    def __post_init__(self):
        section = self.run.config.judge
        self.model = networks.judge(self.source.class_names)
        self.optimizer, self.accumulate = train.make_optimizer(section.optimizer, section.steps), section.accumulate

    def init(self, rng):
        spec = self.run.clip
        params = self.model.init(rng, jnp.zeros((1, spec.mel_frames, spec.mel.bands)))["params"]
        return train.create_state(params, self.optimizer, ema=False)

    def draw(self, batch, rng, frozen):
        return batch | {"mel": detector.augment(rng, batch["mel"])}

    def loss(self, params, rows, frozen):
        logits, _ = self.model.apply({"params": params}, rows["mel"])
        return detector.detector_loss(logits, rows["targets"]), {}

    def batches(self):
        spec, classes = self.run.clip.mel, len(self.source.class_names)

        def transform(record):
            log_mel = mel.log_mel(record["waveform"], spec)
            targets = events.frame_targets(record["events"][None], len(log_mel), spec.frames_hz, classes)[0]
            return {"mel": log_mel, "targets": targets}

        return self.run.batches(self.source, self.run.config.judge.batch_size, transform, seed=self.run.config.seed)


def make(run: Run, folder: pathlib.Path, seed: int | None) -> str:
    source = run.source("train")
    if not source.class_names:
        logging.info("%-13s not trained: %s has no event truth", "judge", run.config.data.source)
        return text_digest("no event truth")
    state = train.fit(JudgeTask(run, source), seed=run.config.seed, **run.fit_options(run.config.judge, folder))
    return checkpoint.export(folder / "params", state.params)
