"""Trains SF-CAVP, the contrastive audio-visual model that serves as the reward."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from msg_jax import networks, train
from msg_jax.errors import UserError
from msg_jax.infra import checkpoint
from msg_jax.infra import mesh as mesh_lib
from msg_jax.losses.contrastive import sf_cavp_loss
from msg_jax.models.sf_cavp import random_crop, random_view
from msg_jax.stages.common import Run
from msg_jax.types import AVBatch


@dataclasses.dataclass
class SFCAVPTask(train.Task):
    """SF-CAVP by the `sf_cavp` section; another `name` draws other weights and crops and so gives a second one."""

    run: Run
    name: str = "sf_cavp"

    def __post_init__(self):
        section = self.run.config.sf_cavp
        self.model = networks.reward_model(self.run.config, self.run.clip)
        self.optimizer = train.make_optimizer(section.optimizer, section.steps)
        if section.accumulate != 1:
            raise UserError(f"config.sf_cavp.accumulate={section.accumulate}: a contrastive loss compares every clip with the "
                            "whole batch, so no micro-batch can stand for it; set it to 1, and add devices instead.")

        crop_sec = section.crop_share * self.run.clip.duration_sec
        needed_sec = self.model.config.shortest_sec(section.lags)
        if crop_sec < needed_sec:
            raise UserError(f"A crop of {crop_sec:g} s, config.sf_cavp.crop_share={section.crop_share} of a clip, is too short "
                            f"for the windows and lags of SF-CAVP, which need {needed_sec:g} s: crop less, or leave out long "
                            "lags.")

    def init(self, rng):
        clip = self.run.clip
        video = jnp.zeros((1, clip.video_frames, clip.video_px, clip.video_px, 3))
        mel = jnp.zeros((1, clip.mel_frames, clip.mel.bands))
        return train.create_state(self.model.init(rng, AVBatch(video, mel))["params"], self.optimizer, ema=False)

    def draw(self, batch, rng, frozen):
        clips = AVBatch(networks.to_unit(batch["video"]), batch["mel"])
        crop_key, view_key = jax.random.split(rng)
        crop_sec = self.run.config.sf_cavp.crop_share * self.run.clip.duration_sec
        return random_view(random_crop(clips, crop_key, self.run.clip, crop_sec), view_key)

    def loss(self, params, clips, frozen):
        section, axes = self.run.config.sf_cavp, mesh_lib.BATCH[0]

        # The negatives are the global batch: inside shard_map every device gathers the others' embeddings.
        @functools.partial(
            jax.shard_map, mesh=self.run.mesh, in_specs=(mesh_lib.BATCH, mesh_lib.BATCH, P()), out_specs=P(),
            check_vma=False,
        )
        def global_loss(video, audio, scales):
            return sf_cavp_loss(video, audio, scales, dict(section.loss_weights), tuple(section.lags), axis_name=axes)

        output = self.model.apply({"params": params}, clips)
        return global_loss(output.video, output.audio, output.scales)

    def batches(self):
        config = self.run.config

        def arrays(record):
            return {name: value for name, value in self.run.arrays(record).items() if name != "clip_video"}

        return self.run.batches(self.run.source("train"), config.sf_cavp.batch_size, arrays, seed=config.seed)


def make(run: Run, folder: pathlib.Path, seed: int | None) -> str:
    state = train.fit(SFCAVPTask(run), seed=run.config.seed, **run.fit_options(run.config.sf_cavp, folder))
    return checkpoint.export(folder / "params", state.params)
