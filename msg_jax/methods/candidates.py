"""Candidates of a model for training clips, with their scores: the pool that pairs are made from.

As a stage it fills the base model's pool once, for the first round of every preference arm.
"""

import functools

import jax
import numpy as np

from msg_jax.config.schema import Arm, Preference
from msg_jax.data.features import FeatureSource, FeatureWriter
from msg_jax.evaluation import events
from msg_jax.infra import logging, preemption, runtime
from msg_jax.run import build
from msg_jax.run.run import Run
from msg_jax.run.stage import text_digest
from msg_jax.storage import Path
from msg_jax.types import Params

# `event_f1` is the truth, by the judge: the oracle ranks by it, all others only log it. Unknown scores are NaN.
SCORES = ("semantic", "dynamic", "window", "events", "reward", "event_f1", "desync", "segments")
DECISIVE = ("videos", "candidates", "candidate_guidance", "candidate_steps")
"""Fields of `config.preference` that decide the candidates; arms that differ only in others share them."""


def needs_own_candidates(arm: Arm) -> bool:
    """Whether an arm samples another model than the base, or with other settings than the `preference` section."""
    return arm.start != "base" or any(name in arm.changes for name in DECISIVE)


class CandidatePool:
    """Samples candidates and scores them. Each round uses other training clips."""

    def __init__(self, run: Run, section: Preference, seed: int):
        self.run, self.section, self.seed = run, section, seed
        self.features = FeatureSource(run.folder("extract") / "train")
        self.source = run.source("train", self.features.kept, ("video",))
        self.reward = build.reward_scorer(run)
        self.codec_and_judge = build.codec_and_judge(run, self.source.class_names)

    @functools.cached_property
    def _sampler(self):
        return build.sampler(self.run, self.features)

    def clips(self, number: int) -> np.ndarray:
        """Indices of the training clips of round `number`."""
        return np.random.default_rng((self.seed, number)).permutation(len(self.features))[: self.section.videos]

    def fill(self, folder: Path, number: int, variables: Params) -> None:
        """Write N candidates of each clip, continuing where a kill left it.

        Each clip has `latents` (N, T, C), `scores` (N, SCORES), and per latent step `step_rewards` (N, T) and `step_errors`
        (N, T), which are NaN without a judge.
        """
        section, config, chosen = self.section, self.run.config.evaluate, self.clips(number)
        variables = self.run.local(variables)
        writer = FeatureWriter(folder, len(chosen), config.batch_size, jax.process_index(), jax.process_count())
        progress = logging.Progress(f"candidates {number}", len(chosen), "video")
        for shard, rows in writer.missing:
            indices = chosen[rows.start : rows.stop]
            (latents,) = self._sampler.latents(
                variables, indices, seed=self.seed, purpose=f"candidates/{number}", candidates=section.candidates,
                guidance_scale=section.candidate_guidance, steps=section.candidate_steps, batch_size=config.batch_size,
            )
            records = [self.source[int(i)] for i in indices]
            writer.write(shard, [r["id"] for r in records], self._scored(records, latents))
            progress.update(rows.stop)
            preemption.exit_if_requested(f"candidates {rows.stop}")
        runtime.barrier(f"candidates {folder}")
        writer.finish()

    def _scored(self, records: list[dict], latents: np.ndarray) -> list[dict[str, np.ndarray]]:
        """The items of clips with their candidates (V, N, T, C)."""
        mels = self.codec_and_judge.decode(latents)
        video = self.reward.embed_video(np.stack([r["video"] for r in records]))
        scores, rewards = self.reward.score_steps(video, mels)
        errors = np.full(latents.shape[:3], np.nan, np.float32)
        if self.codec_and_judge.can_judge:
            truth = events.true_events(np.stack([r["events"] for r in records]))
            tolerance = self.run.config.evaluate.tolerance_sec
            scores["event_f1"] = self.codec_and_judge.f1(truth, mels, tolerance)["event_f1"]
            errors = self.codec_and_judge.step_errors(truth, mels, latents.shape[2], tolerance)
        unknown = np.full(latents.shape[:2], np.nan)
        table = np.stack([scores.get(name, unknown) for name in SCORES], axis=-1).astype(np.float32)
        rewards = np.asarray(jax.image.resize(rewards, latents.shape[:3], "linear"))
        return [
            {"latents": latents[i], "scores": table[i], "step_rewards": rewards[i], "step_errors": errors[i]}
            for i in range(len(records))
        ]


def make(run: Run, folder: Path, seed: int | None) -> str:
    assert seed is not None
    pool = CandidatePool(run, run.config.preference, seed)
    pool.fill(folder, 0, run.load("base", seed))
    return text_digest(*FeatureSource(folder).digests())
