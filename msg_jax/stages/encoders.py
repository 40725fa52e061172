"""The condition encoders, frames to the features that the generator sees: train the default ones, or use others."""

import dataclasses

import jax.numpy as jnp

from msg_jax import networks, train
from msg_jax.infra import checkpoint, logging
from msg_jax.models.condition_encoder import pretraining_loss
from msg_jax.run.run import Run
from msg_jax.run.stage import text_digest
from msg_jax.stages.sf_cavp import SFCAVPTask
from msg_jax.storage import Path


@dataclasses.dataclass
class EncoderTask(train.Task):
    """Regress audio latents and loudness from frames, so that the features say what sounds when."""

    run: Run
    name: str = "encoders"

    def __post_init__(self):
        self.use(self.run.config.encoders)
        self.frozen = {"codec": self.run.frozen("encoder")["codec"]}
        self.codec = networks.codec(self.run.config, self.run.clip)
        self.model = networks.encoder(self.run.clip)

    def init(self, rng):
        clip = self.run.clip
        video = jnp.zeros((1, clip.video_frames, clip.video_px, clip.video_px, 3))
        clip_video = jnp.zeros((1, clip.clip_video_frames, clip.clip_video_px, clip.clip_video_px, 3))
        return train.create_state(self.model.init(rng, video, clip_video)["params"], self.optimizer, ema=False)

    def draw(self, batch, rng, frozen):
        envelope = batch["mel"].mean(axis=2)
        return batch | {
            "latents": self.codec.apply(frozen["codec"], batch["mel"], method="encode"),
            "envelope": (envelope - envelope.mean()) / (envelope.std() + 1e-3),  # over the whole batch
        }

    def loss(self, params, rows, frozen):
        frames = networks.to_unit(rows["video"]), networks.to_unit(rows["clip_video"])
        return pretraining_loss(self.model.apply({"params": params}, *frames), rows["latents"], rows["envelope"])

    def batches(self, split="train"):
        config = self.run.config
        return self.run.batches(self.run.source(split), config.encoders.batch_size, self.run.arrays, seed=config.seed)

    def held_out(self):
        return self.batches("validation") if len(self.run.source("validation")) else None


def make(run: Run, folder: Path, seed: int | None) -> str:
    kind, config = run.config.encoders.kind, run.config
    if kind == "released":
        assert run.released is not None
        logging.info("%-13s CLIP and Synchformer", "encoders")
        return text_digest(*run.released.checksums("clip", "synchformer").values())
    if networks.has_vision_encoder(config):
        assert run.released is not None
        logging.info("%-13s %s", "encoders", kind)
        return text_digest(*run.released.checksums(kind).values())
    if kind == "joint":
        logging.info("%-13s trained jointly with the generator", "encoders")
        return text_digest("joint")
    if kind == "sf_cavp":
        logging.info("%-13s SF-CAVP's own features condition the generator", "encoders")
        return checkpoint.export(folder / "params", run.load("sf_cavp"))
    if kind == "second_sf_cavp":
        state = run.fit(SFCAVPTask(run, "encoders"), config.sf_cavp, folder, seed=config.seed)
    else:
        state = run.fit(EncoderTask(run), config.encoders, folder, seed=config.seed)
    return checkpoint.export(folder / "params", state.params)
