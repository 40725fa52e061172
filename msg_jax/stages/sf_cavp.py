"""Trains SF-CAVP, the contrastive audio-visual model that serves as the reward."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from msg_jax import networks, train
from msg_jax.infra import checkpoint
from msg_jax.infra import mesh as mesh_lib
from msg_jax.losses.contrastive import sf_cavp_loss
from msg_jax.models.sf_cavp import random_crop, random_view
from msg_jax.stages.common import Run
from msg_jax.types import AVBatch


@dataclasses.dataclass
class SFCAVPTask(train.Task):
    run: Run
    name: str = "sf_cavp"

    def __post_init__(self):
        section = self.run.config.sf_cavp
        self.model = networks.reward_model(self.run.config, self.run.clip)
        self.optimizer = train.make_optimizer(section.optimizer, section.steps)

    def init(self, rng):
        clip = self.run.clip
        video = jnp.zeros((1, clip.video_frames, clip.video_px, clip.video_px, 3))
        mel = jnp.zeros((1, clip.mel_frames, clip.mel.bands))
        return train.create_state(self.model.init(rng, AVBatch(video, mel))["params"], self.optimizer, ema=False)

    def step(self, state, batch, rng, frozen):
        section = self.run.config.sf_cavp
        clips = AVBatch(networks.to_unit(batch["video"]), batch["mel"])
        crop_key, view_key = jax.random.split(rng)
        clips = random_crop(clips, crop_key, self.run.clip, section.crop_share * self.run.clip.duration_sec)
        clips = random_view(clips, view_key)
        axes = mesh_lib.BATCH[0]

        # The negatives are the global batch: inside shard_map every device gathers the others' embeddings.
        @functools.partial(
            jax.shard_map, mesh=self.run.mesh, in_specs=(mesh_lib.BATCH, mesh_lib.BATCH, P()), out_specs=P(),
            check_vma=False,
        )
        def global_loss(video, audio, scales):
            return sf_cavp_loss(video, audio, scales, section.loss_weights, tuple(section.lags), axis_name=axes)

        def loss_fn(params):
            output = self.model.apply({"params": params}, clips)
            return global_loss(output.video, output.audio, output.scales)

        (loss, metrics), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return train.apply_gradients(state, gradients, self.optimizer), {"loss": loss} | metrics

    def batches(self):
        config = self.run.config
        return self.run.batches(self.run.source("train"), config.sf_cavp.batch_size, self.run.arrays, seed=config.seed)


def make(run: Run, folder: pathlib.Path, seed: int | None) -> str:
    state = train.fit(SFCAVPTask(run), seed=run.config.seed, **run.fit_options(run.config.sf_cavp, folder))
    return checkpoint.export(folder / "params", state.params)
