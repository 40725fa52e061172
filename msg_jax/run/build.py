"""A run's frozen networks, ready for batches of any size."""

from collections.abc import Sequence
import functools

import numpy as np

from msg_jax import networks
from msg_jax.config.schema import Reward
from msg_jax.data import scene_sets, scenes
from msg_jax.data.pipeline import Chosen, Source
from msg_jax.inference import frozen
from msg_jax.inference.batching import map_batches
from msg_jax.inference.desync import DeSync
from msg_jax.inference.sampler import Conditioned, Sampler
from msg_jax.inference.scorer import (
    CodecAndJudge,
    CosineScorer,
    PictureCodecAndJudge,
    RewardScorer,
    SynchformerScorer,
    WaveformJudge,
)
from msg_jax.run.run import Run


def sampler(run: Run, features: Conditioned) -> Sampler:
    """Samples the run's generator for extracted clips."""
    model = networks.generator(run.config, run.clip, features.dims, networks.compute_dtype())
    return Sampler(model, features, run.local_mesh, networks.solver(run.config))


def reward_scorer(run: Run) -> RewardScorer:
    """The run's own reward."""
    config, cosines = run.config, None
    if stages := config.reward_stages:
        params = {name: run.load(name) for name in stages}
        cosines = CosineScorer(networks.reward(config, run.clip), params, run.local_mesh, config.evaluate.batch_size)
    return RewardScorer(cosines, _synchformer(run, config.reward) if config.reward.of_synchformer else None)


def held_out_scorer(run: Run) -> RewardScorer | None:
    """A reward that no training follows: by a second SF-CAVP, or else DeSync where the run reads Synchformer's file anyway."""
    config = run.config
    if config.preference.held_out_reward:
        params = {"sf_cavp": run.load("held_out_sf_cavp")}
        cosines = networks.held_out_reward(config, run.clip)
        return RewardScorer(CosineScorer(cosines, params, run.local_mesh, config.evaluate.batch_size))
    reads_it = config.encoders.kind == "released" and run.clip.duration_sec >= networks.DESYNC_LEAST_SEC
    if reads_it and not config.reward.of_synchformer:
        return RewardScorer(None, _synchformer(run, Reward(desync=1.0)))
    return None


def _synchformer(run: Run, weights: Reward) -> SynchformerScorer:
    assert run.released is not None
    network = DeSync(run.released.paths["synchformer"], networks.released(run.config)["synchformer"])
    return SynchformerScorer(network, codec_and_judge(run, ()).vocode, run.clip, weights)


def codec_and_judge(run: Run, class_names: Sequence[str]) -> CodecAndJudge:
    """The run's codec, and its judge where the data has event truth, i.e. `class_names`."""
    judge = networks.judge(class_names) if class_names else None
    return CodecAndJudge(
        networks.codec(run.config, run.clip), run.frozen("encoder", "decoder")["codec"],
        judge, run.load("judge") if judge else None, run.config.judge, run.clip, run.local_mesh,
        run.config.evaluate.batch_size,
    )


def second_judge(run: Run, class_names: Sequence[str]) -> WaveformJudge | None:
    """The run's second judge; None where the data has no event truth."""
    if not class_names:
        return None
    config = run.config
    return WaveformJudge(
        networks.second_judge(class_names), run.load("second_judge"), config.second_judge, run.clip, run.local_mesh,
        config.evaluate.batch_size,
    )


def picture_judge(run: Run, class_names: Sequence[str]) -> PictureCodecAndJudge:
    """The run's codec and judge of pictures."""
    config = run.config
    return PictureCodecAndJudge(
        networks.picture_codec(config, run.clip), run.frozen("decoder")["picture_codec"], networks.picture_judge(class_names),
        run.load("picture_judge"), config.picture_judge, run.clip, run.local_mesh, config.evaluate.batch_size,
    )


class JointExtractor:
    """Computes the latents of sound and pictures, side by side, and the text of clips. Scenes get their caption's sentence."""

    def __init__(self, run: Run):
        self._run, self._variables = run, run.frozen("encoder")
        self._encode = frozen.joint_encoder(run.config, run.clip)
        self._embed_text = frozen.caption_encoder(run.config, run.clip)

    def __call__(self, clips: Sequence[dict]) -> dict[str, np.ndarray]:
        """`latents` and `text` of what `Run.arrays` makes of clips, with their `caption`."""
        mesh, batch_size = self._run.local_mesh, self._run.config.extract.batch_size
        latents = map_batches(
            functools.partial(self._encode, self._variables["codec"], self._variables["picture_codec"]),
            -batch_size // mesh.size * -mesh.size, np.stack([clip["mel"] for clip in clips]),
            np.stack([clip["video"] for clip in clips]), mesh=mesh,
        )
        return {"latents": latents, "text": np.concatenate([self._embed_text(self._told(clip["caption"])) for clip in clips])}

    def _told(self, caption: str) -> str:
        return scenes.sentence(caption) if self._run.config.data.source == "scenes" else caption


def joint_source(run: Run, split: str) -> Source:
    """The clips of a split for a generator of sound and pictures: scenes without the pairs of classes that are held out."""
    source, data = run.source(split, streams=("video",)), run.config.data
    if data.source != "scenes":
        return source
    return Chosen(source, scene_sets.trained(data.seed, split, len(source), run.clip.duration_sec))
