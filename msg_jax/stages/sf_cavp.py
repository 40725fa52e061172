"""Trains SF-CAVP, the contrastive audio-visual model that serves as the reward."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from msg_jax import networks, train
from msg_jax.data import pipeline
from msg_jax.errors import UserError
from msg_jax.infra import checkpoint
from msg_jax.infra import mesh as mesh_lib
from msg_jax.infra.random import host, key_for
from msg_jax.losses.contrastive import sf_cavp_loss
from msg_jax.models.sf_cavp import crop_starts, random_crop, random_view
from msg_jax.run.run import Run
from msg_jax.storage import Path
from msg_jax.types import AVBatch


@dataclasses.dataclass
class SFCAVPTask(train.Task):
    """SF-CAVP with the settings of `config.sf_cavp`. Another `name` draws other weights and crops: a second SF-CAVP."""

    run: Run
    name: str = "sf_cavp"

    def __post_init__(self):
        section = self.run.config.sf_cavp
        self.model = networks.reward_model(self.run.config, self.run.clip)
        self.use(section)
        crop_sec = section.crop_share * self.run.clip.duration_sec
        needed_sec = self.model.config.shortest_sec(section.lags)
        if crop_sec < needed_sec:
            raise UserError(f"config.sf_cavp.crop_share={section.crop_share} gives crops of {crop_sec:g} s, but the windows "
                            f"and lags of SF-CAVP need {needed_sec:g} s: crop less, or leave out long lags.")

    def init(self, rng):
        clip = self.run.clip
        video = jnp.zeros((1, clip.video_frames, clip.video_px, clip.video_px, 3))
        mel = jnp.zeros((1, clip.mel_frames, clip.mel.bands))
        return train.create_state(self.model.init(rng, AVBatch(video, mel))["params"], self.optimizer, ema=False)

    def draw(self, batch, rng, frozen):
        clips = AVBatch(networks.to_unit(batch["video"]), batch["mel"])
        crop_key, view_key = jax.random.split(rng)
        return random_view(random_crop(clips, crop_key, self.run.clip, self._crop_sec), view_key)

    @property
    def _crop_sec(self) -> float:
        return self.run.config.sf_cavp.crop_share * self.run.clip.duration_sec

    def _cropped_frames(self) -> pipeline.Frames:
        """The frames that `draw` crops to. They are drawn on the CPU: readers must not wait for a device that trains."""
        clip, (video, mel) = self.run.clip, self.batch_shapes().values()

        @functools.lru_cache(maxsize=64)
        def starts(step: int) -> np.ndarray:
            with jax.default_device(host()):
                crop_key, _ = jax.random.split(key_for(self.run.config.seed, self.name, step))
                return np.asarray(crop_starts(crop_key, video.shape, mel.shape[1], clip, self._crop_sec))

        def frames(step: int, row: int) -> range:
            start = int(starts(step)[row])
            return range(start, start + round(self._crop_sec * clip.video_hz))

        return frames

    def loss(self, params, rows, frozen):
        return self._compare(self._encode(params, rows), params)

    def gradients(self, params, rows, frozen):
        if self.accumulate == 1:
            return super().gradients(params, rows, frozen)
        return train.cached_gradients(self._encode, self._compare, params, rows, self.accumulate)

    def _encode(self, params, rows):
        return self.model.apply({"params": params}, rows, method="encode")

    def _compare(self, embeddings, params):
        """The loss of the embeddings of both modalities; no clip can be left out."""
        section, axes = self.run.config.sf_cavp, mesh_lib.BATCH[0]
        weights = dataclasses.asdict(section.loss_weights)

        # The negatives are the global batch: every device gathers the embeddings of all devices.
        @functools.partial(
            jax.shard_map, mesh=self.run.mesh, in_specs=(mesh_lib.BATCH, mesh_lib.BATCH, P()), out_specs=P(),
            check_vma=False,
        )
        def global_loss(video, audio, scales):
            return sf_cavp_loss(video, audio, scales, weights, section.lags, axis_name=axes)

        video, audio = embeddings
        return global_loss(video, audio, self.model.apply({"params": params}, method="scales"))

    def batch_shapes(self):
        clip, size = self.run.clip, self.run.config.sf_cavp.batch_size
        return {
            "video": jax.ShapeDtypeStruct((size, clip.video_frames, clip.video_px, clip.video_px, 3), jnp.uint8),
            "mel": jax.ShapeDtypeStruct((size, clip.mel_frames, clip.mel.bands), jnp.float32),
        }

    def batches(self, split="train"):
        config = self.run.config

        def arrays(record):
            return {name: value for name, value in self.run.arrays(record).items() if name != "clip_video"}

        source = self.run.source(split, streams=("video",))
        frames = self._cropped_frames() if split == "train" and isinstance(source, pipeline.PartSource) else None
        return self.run.batches(source, config.sf_cavp.batch_size, arrays, seed=config.seed, frames=frames)

    def held_out(self):
        return self.batches("validation") if len(self.run.source("validation")) else None


def make(run: Run, folder: Path, seed: int | None, name: str = "sf_cavp") -> str:
    state = run.fit(SFCAVPTask(run, name), run.config.sf_cavp, folder, seed=run.config.seed)
    return checkpoint.export(folder / "params", state.params)


make_held_out = functools.partial(make, name="held_out_sf_cavp")
"""A second one, from other weights and crops, which rewards nothing."""
