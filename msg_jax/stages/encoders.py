"""The condition encoders, frames to the features that the generator sees: trains the default ones, or takes others."""

import dataclasses
import pathlib

import jax.numpy as jnp

from msg_jax import networks, train
from msg_jax.infra import checkpoint, logging
from msg_jax.models.condition_encoder import pretraining_loss
from msg_jax.stages.common import Run, text_digest
from msg_jax.stages.sf_cavp import SFCAVPTask


@dataclasses.dataclass
class EncoderTask(train.Task):
    """Frames -> audio latents and loudness, by regression: features that say what sounds when."""

    run: Run
    name: str = "encoders"

    def __post_init__(self):
        section = self.run.config.encoders
        self.frozen = {"codec": self.run.frozen("encoder")["codec"]}
        self.codec = networks.codec(self.run.config, self.run.clip)
        self.model = networks.encoder(self.run.clip)
        self.optimizer, self.accumulate = train.make_optimizer(section.optimizer, section.steps), section.accumulate

    def init(self, rng):
        clip = self.run.clip
        video = jnp.zeros((1, clip.video_frames, clip.video_px, clip.video_px, 3))
        clip_video = jnp.zeros((1, clip.clip_video_frames, clip.clip_video_px, clip.clip_video_px, 3))
        return train.create_state(self.model.init(rng, video, clip_video)["params"], self.optimizer, ema=False)

    def draw(self, batch, rng, frozen):
        envelope = batch["mel"].mean(axis=2)
        return batch | {
            "latents": self.codec.apply(frozen["codec"], batch["mel"], method="encode"),
            "envelope": (envelope - envelope.mean()) / (envelope.std() + 1e-3),  # of the whole batch
        }

    def loss(self, params, rows, frozen):
        frames = networks.to_unit(rows["video"]), networks.to_unit(rows["clip_video"])
        return pretraining_loss(self.model.apply({"params": params}, *frames), rows["latents"], rows["envelope"])

    def batches(self):
        config = self.run.config
        return self.run.batches(self.run.source("train"), config.encoders.batch_size, self.run.arrays, seed=config.seed)


def make(run: Run, folder: pathlib.Path, seed: int | None) -> str:
    if networks.is_released(run.config, "encoders.kind"):
        logging.info("%-13s CLIP and Synchformer", "encoders")
        return text_digest(*run.released.checksums("clip", "synchformer").values())
    if run.config.encoders.kind == "joint":
        logging.info("%-13s trained jointly with the generator", "encoders")
        return text_digest("joint")
    if run.config.encoders.kind == "second_sf_cavp":
        state = train.fit(SFCAVPTask(run, "encoders"), seed=run.config.seed, **run.fit_options(run.config.sf_cavp, folder))
        return checkpoint.export(folder / "params", state.params)
    if run.config.encoders.kind == "sf_cavp":
        logging.info("%-13s SF-CAVP's own features condition the generator", "encoders")
        return checkpoint.export(folder / "params", run.load("sf_cavp"))
    state = train.fit(EncoderTask(run), seed=run.config.seed, **run.fit_options(run.config.encoders, folder))
    return checkpoint.export(folder / "params", state.params)
