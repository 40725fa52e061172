"""AVP-RPO (MultiSoundGen, arXiv 2509.19999): preference pairs ranked by SF-CAVP's reward."""

import dataclasses
from typing import ClassVar

from msg_jax.errors import UserError
from msg_jax.methods.candidates import SCORES
from msg_jax.methods.ranked import Ranked


@dataclasses.dataclass(frozen=True, kw_only=True)
class AvpRpo(Ranked):
    """The reward ranks the candidates of the current model. The paper's winner is `real`."""

    kind: ClassVar[str] = "avp_rpo"
    title: ClassVar[str] = "AVP-RPO"
    summary: ClassVar[str] = "base tuned on pairs of its own candidates, ranked by the reward"

    def check(self, name, config):
        reward = config.reward
        if self.winner == "stitched" and reward.of_synchformer == ["desync"] and not reward.uses_sf_cavp:
            raise UserError(f"config.arms.{name}.winner=stitched joins the best moments of candidates, but DeSync alone scores "
                            "each as a whole: set it to best_of_n or real, or give config.reward.segments a weight.")

    def rank_steps(self, step_rewards, step_errors):
        return step_rewards

    def rank_candidates(self, scores, rng):
        return scores[..., SCORES.index("reward")]
