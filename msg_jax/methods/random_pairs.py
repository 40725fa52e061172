"""A control of AVP-RPO: the same loss on pairs whose ranking says nothing."""

import dataclasses
from typing import ClassVar

import numpy as np

from msg_jax.methods.ranked import Ranked


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomPairs(Ranked):
    """Stitched pairs follow the rewards of another video's candidates; whole candidates are ranked at random."""

    kind: ClassVar[str] = "random_pairs"
    role = "control"
    title: ClassVar[str] = "Random pairs"
    summary: ClassVar[str] = "control: the AVP-RPO loss on pairs made by other videos' rewards"

    def rank_steps(self, step_rewards, step_errors):
        return np.roll(step_rewards, 1, axis=0)

    def rank_candidates(self, scores, rng):
        return rng.random(scores.shape[:2])
