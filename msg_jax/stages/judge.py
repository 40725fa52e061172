"""Trains the judges: detectors of sound events, and of events in pictures, on real clips with the true events as targets."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from msg_jax import networks, train
from msg_jax.clip import MelSpec
from msg_jax.data import mel
from msg_jax.data.pipeline import Chosen
from msg_jax.evaluation import detector, events
from msg_jax.infra import checkpoint, logging
from msg_jax.run.run import Run
from msg_jax.run.stage import text_digest
from msg_jax.storage import Path
from msg_jax.types import Module


@dataclasses.dataclass
class JudgeTask(train.Task):
    """Fit `model` on every other training clip, from the clip `first` on, as log-mels of `spec`."""

    run: Run
    name: str
    model: Module
    spec: MelSpec
    first: int

    def __post_init__(self):
        self.section = getattr(self.run.config, self.name)
        self.use(self.section)

    def init(self, rng):
        frames = self.run.clip.mel_frames
        params = self.model.init(rng, jnp.zeros((1, frames, self.spec.bands)))["params"]
        return train.create_state(params, self.optimizer, ema=False)

    def draw(self, batch, rng, frozen):
        return batch | {"mel": detector.augment(rng, batch["mel"])}

    def loss(self, params, rows, frozen):
        logits, _ = self.model.apply({"params": params}, rows["mel"])
        return detector.detector_loss(logits, rows["targets"]), {}

    def batches(self, split="train"):
        source = self.run.source(split)
        classes = len(source.class_names)

        def transform(record):
            log_mel = mel.log_mel(record["waveform"], self.spec)
            targets = events.frame_targets(record["events"][None], len(log_mel), self.spec.frames_hz, classes)[0]
            return {"mel": log_mel, "targets": targets}

        half = Chosen(source, range(self.first, len(source), 2))
        return self.run.batches(half, self.section.batch_size, transform, seed=self.run.config.seed)

    def held_out(self):
        return self.batches("validation") if len(self.run.source("validation")) > 1 else None


@dataclasses.dataclass
class PictureJudgeTask(train.Task):
    """Fit a detector of the events that frames show."""

    run: Run
    name: str = "picture_judge"

    def __post_init__(self):
        self.section = self.run.config.picture_judge
        self.model = networks.picture_judge(self.run.source("train").class_names)
        self.use(self.section)

    def init(self, rng):
        clip = self.run.clip
        video = jnp.zeros((1, clip.video_frames, clip.video_px, clip.video_px, 3))
        return train.create_state(self.model.init(rng, video)["params"], self.optimizer, ema=False)

    def draw(self, batch, rng, frozen):
        return batch | {"video": detector.augment_frames(rng, networks.to_unit(batch["video"]))}

    def loss(self, params, rows, frozen):
        logits, _ = self.model.apply({"params": params}, rows["video"])
        return detector.detector_loss(logits, rows["targets"]), {}

    def batches(self, split="train"):
        source, hz = self.run.source(split, streams=("video",)), self.run.clip.video_hz

        def transform(record):
            # a frame is a moment, and not the span of time that `frame_targets` takes it for
            shown = record["events"] + np.array([0.0, 0.5 / hz, 0.5 / hz], np.float32)
            targets = events.frame_targets(shown[None], len(record["video"]), hz, len(source.class_names))[0]
            return {"video": record["video"], "targets": targets}

        return self.run.batches(source, self.section.batch_size, transform, seed=self.run.config.seed)

    def held_out(self):
        return self.batches("validation") if len(self.run.source("validation")) > 1 else None


def first(run: Run) -> JudgeTask:
    """The training of the first judge, which hears the codec's log-mels."""
    classes, spec = run.source("train").class_names, run.clip.mel
    return JudgeTask(run, "judge", networks.judge(classes), spec, first=0)


def second(run: Run) -> JudgeTask:
    """The training of the second judge, which hears waveforms."""
    classes, spec = run.source("train").class_names, detector.waveform_mel(run.clip.mel)
    return JudgeTask(run, "second_judge", networks.second_judge(classes), spec, first=1)


def make(run: Run, folder: Path, seed: int | None) -> str:
    return _train(first(run), folder)


def make_second(run: Run, folder: Path, seed: int | None) -> str:
    return _train(second(run), folder)


def make_pictures(run: Run, folder: Path, seed: int | None) -> str:
    return _train(PictureJudgeTask(run), folder)


def _train(task: JudgeTask | PictureJudgeTask, folder: Path) -> str:
    run = task.run
    if not run.source("train").class_names:
        logging.info("%-13s not trained: %s has no event truth", task.name, run.config.data.source)
        return text_digest("no event truth")
    state = run.fit(task, task.section, folder, seed=run.config.seed)
    return checkpoint.export(folder / "params", state.params)
