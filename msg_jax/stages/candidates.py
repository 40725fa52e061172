"""Candidates of a model for training clips, with what the reward says of each: the pool that pairs are made from.

As a stage it fills the base model's pool once, for the first round of every preference arm.
"""

import functools
import pathlib

import jax
from ml_collections import ConfigDict
import numpy as np

from msg_jax.data.features import FeatureSource, FeatureWriter
from msg_jax.evaluation import events
from msg_jax.infra import logging, preemption, runtime
from msg_jax.stages.common import Run, text_digest
from msg_jax.stages.generator import Generator
from msg_jax.stages.listening import Listener
from msg_jax.types import Params

# The last is the truth, by the judge: the oracle arm ranks by it, all others only log it. NaN is what is not known.
SCORES = ("semantic", "dynamic", "window", "events", "reward", "event_f1")
# The fields of `config.preference` on which candidates depend; arms that differ in others share them.
DECISIVE = ("videos", "candidates", "candidate_guidance", "candidate_steps")


def section_of(config: ConfigDict, arm: str) -> ConfigDict:
    """The `preference` section with the arm's own changes."""
    changes = {key: value for key, value in config.arms[arm].items() if key not in ("ranking", "winner", "start")}
    return ConfigDict(config.preference.to_dict() | changes)


def changes_candidates(arm: ConfigDict) -> bool:
    """Whether the arm samples another model or otherwise than the `preference` section says, and so cannot share candidates."""
    return arm.start != "base" or any(name in arm for name in DECISIVE)


class CandidatePool:
    """Samples and scores; `clips(number)` are the training clips of round `number`, another choice each round."""

    def __init__(self, run: Run, section: ConfigDict, seed: int):
        self.run, self.section, self.seed = run, section, seed
        self.features = FeatureSource(run.folder("extract") / "train")
        self.source = run.source("train", self.features.kept)
        self.listener = Listener(run, self.source.class_names)

    @functools.cached_property
    def _generator(self) -> Generator:
        return Generator(self.run, self.features)

    def clips(self, number: int) -> np.ndarray:
        return np.random.default_rng((self.seed, number)).permutation(len(self.features))[: self.section.videos]

    def fill(self, folder: pathlib.Path, number: int, variables: Params) -> None:
        """Writes N candidates of each clip, resuming where a kill left it.

        `latents` (N, T, C), `scores` (N, SCORES), and of every step of the latents `step_rewards` (N, T) and, NaN where no
        judge can tell, `step_errors` (N, T).
        """
        section, batch, chosen = self.section, self.run.config.evaluate.batch_size, self.clips(number)
        variables = self.run.local(variables)
        writer = FeatureWriter(folder, len(chosen), batch, jax.process_index(), jax.process_count())
        progress = logging.Progress(f"candidates {number}", len(chosen), "video")
        for shard, rows in writer.missing:
            indices = chosen[rows.start : rows.stop]
            (latents,) = self._generator.latents(
                variables, indices, seed=self.seed, purpose=f"candidates/{number}", candidates=section.candidates,
                guidance_scale=section.candidate_guidance, steps=section.candidate_steps, batch_size=batch,
            )
            records = [self.source[int(i)] for i in indices]
            mels = self.listener.decode(latents.reshape(-1, *latents.shape[2:]))
            mels = mels.reshape(*latents.shape[:2], *mels.shape[1:])
            video = self.listener.embed_video(np.stack([r["video"] for r in records]))
            scores, rewards = self.listener.score_steps(video, mels)
            errors = np.full(latents.shape[:3], np.nan, np.float32)
            if self.listener.can_judge:
                truth = events.true_events(np.stack([r["events"] for r in records]))
                scores["event_f1"] = self.listener.event_f1(truth, mels)
                errors = self.listener.step_errors(truth, mels, latents.shape[2])
            unknown = np.full(latents.shape[:2], np.nan)
            table = np.stack([scores.get(name, unknown) for name in SCORES], axis=-1).astype(np.float32)
            rewards = np.asarray(jax.image.resize(rewards, latents.shape[:3], "linear"))
            items = [
                {"latents": latents[i], "scores": table[i], "step_rewards": rewards[i], "step_errors": errors[i]}
                for i in range(len(records))
            ]
            writer.write(shard, [r["id"] for r in records], items)
            progress.update(rows.stop)
            preemption.exit_if_requested(f"candidates {rows.stop}")
        runtime.barrier(f"candidates {folder}")
        writer.finish()


def make(run: Run, folder: pathlib.Path, seed: int) -> str:
    pool = CandidatePool(run, run.config.preference, seed)
    pool.fill(folder, 0, run.load("base", seed))
    return text_digest(*FeatureSource(folder).digests())
