"""Methods that weigh every candidate by its reward, instead of pairing them: DiffusionNFT and AWM."""

import abc
import dataclasses
import functools
from typing import Any, ClassVar, Literal

import numpy as np

from msg_jax.data.features import FeatureSource
from msg_jax.losses.advantage import awm_loss, nft_loss
from msg_jax.methods.candidates import SCORES
from msg_jax.methods.rounds import Round, Sampled
from msg_jax.tasks.advantage import AdvantageTask


def advantages(rewards: np.ndarray) -> np.ndarray:
    """Rewards (V, N, ...) minus the mean of each video's candidates, over their standard deviation (one for all videos)."""
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    return centred / max(float(centred.std()), 1e-9)


@dataclasses.dataclass
class SampleSource:
    """Every candidate as an item of its own, with the features of its clip and its `weight` (T or 1,)."""

    features: FeatureSource
    candidates: FeatureSource
    clips: np.ndarray  # (V,) clip of each row of candidates
    weights: np.ndarray  # (V, N, T or 1)

    def __len__(self) -> int:
        return self.weights.shape[0] * self.weights.shape[1]

    def __getitem__(self, i: int) -> dict[str, Any]:
        row, candidate = divmod(i, self.weights.shape[1])
        sample = self.candidates[row]["latents"][candidate]
        return self.features[self.clips[row]] | {"sample": sample, "weight": self.weights[row, candidate].astype(np.float32)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weighted(Sampled):
    """Samples of the round's first model, each with its advantage. A batch has `batch_size` of them.

    `by`: one advantage for each step of the clip (`step_rewards`), or one for the whole candidate.
    """

    by: Literal["step", "candidate"] = "step"

    @abc.abstractmethod
    def weights(self, advantage: np.ndarray) -> np.ndarray:
        """What the loss weighs samples by."""

    @abc.abstractmethod
    def objective(self) -> functools.partial:
        """The loss of (velocity, old velocity, target velocity, weight)."""

    def task(self, given):
        return AdvantageTask(
            given.run, given.source, given.section, given.seed, given.start, given.dims, given.name, self.objective()
        )

    def data(self, one: Round) -> SampleSource:
        table = one.candidates.stack(range(len(one.candidates)), ("scores", "step_rewards"))
        whole = table["scores"][..., SCORES.index("reward")]
        weights = self.weights(advantages(table["step_rewards"] if self.by == "step" else whole[..., None]))
        return SampleSource(one.job.features, one.candidates, one.clips, weights)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionNft(Weighted):
    """DiffusionNFT (arXiv 2509.16117). The reward in [0, 1] is 1/2 + advantage / (2 `clip`), clipped."""

    kind: ClassVar[str] = "diffusion_nft"
    title: ClassVar[str] = "DiffusionNFT"
    summary: ClassVar[str] = "implicit positive and negative policies, weighed by the reward"
    beta: float = 0.2
    clip: float = 0.7

    def weights(self, advantage):
        return 0.5 + 0.5 * np.clip(advantage / self.clip, -1, 1)

    def objective(self):
        return functools.partial(nft_loss, beta=self.beta)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Awm(Weighted):
    """Advantage-weighted matching (arXiv 2509.25050)."""

    kind: ClassVar[str] = "awm"
    title: ClassVar[str] = "AWM"
    summary: ClassVar[str] = "flow matching on samples, weighed by their advantage"
    beta: float = 1.0
    clip: float = 0.2
    kl_weight: float = 1.0

    def weights(self, advantage):
        return advantage

    def objective(self):
        return functools.partial(awm_loss, beta=self.beta, clip=self.clip, kl_weight=self.kl_weight)
