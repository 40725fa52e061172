"""Trains the judge: a sound-event detector on real clips, with the true events as targets."""

import dataclasses

import jax.numpy as jnp

from msg_jax import networks, train
from msg_jax.data import mel
from msg_jax.evaluation import detector, events
from msg_jax.infra import checkpoint, logging
from msg_jax.run.run import Run
from msg_jax.run.stage import text_digest
from msg_jax.storage import Path


@dataclasses.dataclass
class JudgeTask(train.Task):
    run: Run
    name: str = "judge"

    def __post_init__(self):
        self.use(self.run.config.judge)
        self.classes = self.run.source("train").class_names
        self.model = networks.judge(self.classes)

    def init(self, rng):
        spec = self.run.clip
        params = self.model.init(rng, jnp.zeros((1, spec.mel_frames, spec.mel.bands)))["params"]
        return train.create_state(params, self.optimizer, ema=False)

    def draw(self, batch, rng, frozen):
        return batch | {"mel": detector.augment(rng, batch["mel"])}

    def loss(self, params, rows, frozen):
        logits, _ = self.model.apply({"params": params}, rows["mel"])
        return detector.detector_loss(logits, rows["targets"]), {}

    def batches(self, split="train"):
        config, spec = self.run.config, self.run.clip.mel

        def transform(record):
            log_mel = mel.log_mel(record["waveform"], spec)
            targets = events.frame_targets(record["events"][None], len(log_mel), spec.frames_hz, len(self.classes))[0]
            return {"mel": log_mel, "targets": targets}

        return self.run.batches(self.run.source(split), config.judge.batch_size, transform, seed=config.seed)

    def held_out(self):
        return self.batches("validation") if len(self.run.source("validation")) else None


def make(run: Run, folder: Path, seed: int | None) -> str:
    config = run.config
    if not run.source("train").class_names:
        logging.info("%-13s not trained: %s has no event truth", "judge", config.data.source)
        return text_digest("no event truth")
    state = run.fit(JudgeTask(run), config.judge, folder, seed=config.seed)
    return checkpoint.export(folder / "params", state.params)
