"""The control without pairs: flow matching on real sound, continued."""

import dataclasses
from typing import ClassVar

from msg_jax.config import tree
from msg_jax.methods.method import Job, Method
from msg_jax.tasks.flow import FlowTask
from msg_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContinueFlow(Method):
    """As many steps as all rounds of a preference arm together, on four times its batch, which costs about the same.

    A preference step of B pairs passes 3 B items forward and backward and 2 B forward only: 11 B forward-equivalents,
    where 4 B items of flow matching take 12 B.
    """

    kind: ClassVar[str] = "continue_flow"
    role = "control"
    title: ClassVar[str] = "Continued training"
    summary: ClassVar[str] = "control: flow matching continued at equal training compute"

    def tune(self, job: Job) -> Params:
        section = tree.replace(job.trained_at_once, batch_size=4 * job.preference.batch_size)
        task = FlowTask(job.run, job.features, section, job.seed, initial=job.load(self.start), name=job.name)
        return task.result(job.run.fit(task, section, job.folder / "training", seed=job.seed))
