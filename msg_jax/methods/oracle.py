"""The ceiling of AVP-RPO: the same with a perfect reward."""

import dataclasses
from typing import ClassVar

from msg_jax.errors import UserError
from msg_jax.methods.candidates import SCORES
from msg_jax.methods.ranked import Ranked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oracle(Ranked):
    """The true events rank the candidates, by the judge. Not a system: it needs event truth."""

    kind: ClassVar[str] = "oracle"
    role = "ceiling"
    title: ClassVar[str] = "Oracle ranking"
    summary: ClassVar[str] = "ceiling: AVP-RPO with pairs ranked by the true events"

    def tune(self, job):
        if not job.run.source("train").class_names:
            raise UserError(f"config.arms.{job.name} is an oracle, which needs event truth, and {job.run.config.data.source} "
                            "has none: remove that arm.")
        return super().tune(job)

    def rank_steps(self, step_rewards, step_errors):
        return -step_errors

    def rank_candidates(self, scores, rng):
        return scores[..., SCORES.index("event_f1")]
