"""Trains the condition encoders of the default: frames to the features that the generator sees."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp

from msg_jax import networks, train
from msg_jax.infra import checkpoint, logging
from msg_jax.models.condition_encoder import pretraining_loss
from msg_jax.stages.common import Run


@dataclasses.dataclass
class EncoderTask(train.Task):
    """Frames -> audio latents and loudness, by regression: features that say what sounds when."""

    run: Run
    name: str = "encoders"

    def __post_init__(self):
        section = self.run.config.encoders
        self.frozen = {"codec": self.run.load("codec")}
        self.codec = networks.codec(self.run.config, self.run.clip)
        self.model = networks.encoder(self.run.clip)
        self.optimizer = train.make_optimizer(section.optimizer, section.steps)

    def init(self, rng):
        clip = self.run.clip
        video = jnp.zeros((1, clip.video_frames, clip.video_px, clip.video_px, 3))
        clip_video = jnp.zeros((1, clip.clip_video_frames, clip.clip_video_px, clip.clip_video_px, 3))
        return train.create_state(self.model.init(rng, video, clip_video)["params"], self.optimizer, ema=False)

    def step(self, state, batch, rng, frozen):
        latents = self.codec.apply({"params": frozen["codec"]}, batch["mel"], method="encode")
        envelope = batch["mel"].mean(axis=2)
        envelope = (envelope - envelope.mean()) / (envelope.std() + 1e-3)

        def loss_fn(params):
            frames = networks.to_unit(batch["video"]), networks.to_unit(batch["clip_video"])
            return pretraining_loss(self.model.apply({"params": params}, *frames), latents, envelope)

        (loss, metrics), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return train.apply_gradients(state, gradients, self.optimizer), {"loss": loss} | metrics

    def batches(self):
        config = self.run.config
        return self.run.batches(self.run.source("train"), config.encoders.batch_size, self.run.arrays, seed=config.seed)


def make(run: Run, folder: pathlib.Path, seed: int | None) -> str:
    if run.config.encoders.kind == "sf_cavp":
        logging.info("%-13s SF-CAVP's own features condition the generator", "encoders")
        return checkpoint.export(folder / "params", run.load("sf_cavp"))
    state = train.fit(EncoderTask(run), seed=run.config.seed, **run.fit_options(run.config.encoders, folder))
    return checkpoint.export(folder / "params", state.params)
