"""What a tuned network does on held-out clips: the reward, beside what was not rewarded.

A reward that rises while the rest falls is being exploited.
"""

from collections.abc import Mapping, Sequence
import functools

import numpy as np

from msg_jax.data.features import FeatureSource
from msg_jax.evaluation import distribution, events
from msg_jax.methods.candidates import CandidatePool
from msg_jax.run import build
from msg_jax.types import Params

CLIPS = 128
"""Held-out clips at most."""


class Validation:
    """Samples held-out clips, one of each video, with the settings of a pool's candidates, and measures them.

    `metrics` has the mean reward and its terms, and of what is not rewarded:
    - `event_f1` and `fd_judge` by the first judge, where the data has event truth,
    - `held_out_reward`, that of `build.held_out_scorer`, where there is one,
    - `fd_latents`, the Fréchet distance to real sound of the mean and the deviation over time of the codec's latents.

    A distance needs two clips.
    """

    def __init__(self, pool: CandidatePool):
        run, section = pool.run, pool.run.config.evaluate
        self.pool, self._size = pool, section.batch_size
        self._features = FeatureSource(run.folder("extract") / "validation")
        self._indices = first_of_each_video(self._features.ids)[: min(CLIPS, section.clips)]
        rewards = {"reward": pool.reward, "held_out_reward": build.held_out_scorer(run)}
        self._rewards = {name: scorer for name, scorer in rewards.items() if scorer is not None}
        source = run.source("validation", self._features.kept, ("video",))
        videos: dict[str, list] = {name: [] for name in self._rewards}
        self._truth: list[np.ndarray] = []
        for start in range(0, len(self._indices), self._size):
            records = [source[i] for i in self._indices[start : start + self._size]]
            if pool.codec_and_judge.can_judge:
                self._truth += events.true_events(np.stack([record["events"] for record in records]))
            frames = np.stack([record["video"] for record in records])
            for name, scorer in self._rewards.items():
                videos[name].append(scorer.embed_video(frames))
        self._videos = {
            name: {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} for name, parts in videos.items()
        }

    def metrics(self, variables: Params) -> dict[str, float]:
        """Of the sound of a network. The reward and its terms also with the suffix `_reconstructed`, for real sound."""
        section = self.pool.section
        batches = build.sampler(self.pool.run, self._features).latents(
            variables, self._indices, seed=self.pool.seed, purpose="validation", guidance_scale=section.candidate_guidance,
            steps=section.candidate_steps, batch_size=self._size,
        )
        found = self._measured(np.concatenate([batch[:, 0] for batch in batches]))
        return found | {f"{name}_reconstructed": self._of_real[name] for name in ("reward", *self.pool.reward.terms)}

    @functools.cached_property
    def _of_real(self) -> dict[str, float]:
        return self._measured(self._latents)

    @functools.cached_property
    def _latents(self) -> np.ndarray:
        return self._features.stack(self._indices, ("latents",))["latents"]

    @functools.cached_property
    def _real_as(self) -> np.ndarray:
        """The first judge's embeddings of real sound."""
        judge = self.pool.codec_and_judge
        return judge.detect(judge.decode(self._latents))[1]

    def _measured(self, latents: np.ndarray) -> dict[str, float]:
        judge, mels = self.pool.codec_and_judge, self.pool.codec_and_judge.decode(latents)
        found: dict[str, float] = {}
        if len(latents) > 1:
            found["fd_latents"] = distribution.frechet_distance(_summaries(latents), _summaries(self._latents))
        for name, scorer in self._rewards.items():
            scores = scorer.score(self._videos[name], mels[:, None])
            found[name] = float(scores["reward"].mean())
            if name == "reward":
                found |= {term: float(scores[term].mean()) for term in scorer.terms}
        if judge.can_judge:
            heard, heard_as = judge.detect(mels)
            counts = events.clip_counts(self._truth, heard, self.pool.run.config.evaluate.tolerance_sec)["event_f1"]
            found["event_f1"] = float(events.micro_f1(counts.sum(axis=0)))
            if len(latents) > 1:
                found["fd_judge"] = distribution.frechet_distance(heard_as, self._real_as)
        return found


def unrewarded(metrics: Mapping[str, float]) -> float:
    """What a network is picked by, higher is better: event F1, else the held-out reward, else the distance of latents."""
    for name in ("event_f1", "held_out_reward"):
        if name in metrics:
            return metrics[name]
    return -metrics.get("fd_latents", 0.0)


def first_of_each_video(ids: Sequence[str]) -> list[int]:
    """The place of the first clip of each video, by ids such as `a.mp4@8.000`; other ids are videos of their own."""
    first: dict[str, int] = {}
    for place, name in enumerate(ids):
        first.setdefault(name.rpartition("@")[0] or name, place)
    return list(first.values())


def _summaries(latents: np.ndarray) -> np.ndarray:
    """Mean and deviation over time of latents (B, T, C): (B, 2 C)."""
    return np.concatenate([latents.mean(axis=1), latents.std(axis=1)], axis=-1)
