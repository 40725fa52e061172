"""The control without pairs: flow matching on real sound, continued."""

import dataclasses
from typing import ClassVar

from msg_jax.config import tree
from msg_jax.methods import cost
from msg_jax.methods.method import Given, Job, Method, at_once
from msg_jax.run import operations
from msg_jax.tasks.flow import FlowTask
from msg_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContinueFlow(Method):
    """Flow matching, on four times the batch of a preference arm.

    With `matches`, the name of an arm, it and its start together have that arm's total cost: trainings, candidates and their
    scores. Otherwise it has the training cost of one preference arm, in as many steps as all rounds have: a preference step of
    B pairs passes 3 B items forward and backward and 2 B forward only, 11 B forward-equivalents, where 4 B items of flow
    matching take 12 B.
    """

    kind: ClassVar[str] = "continue_flow"
    role = "control"
    title: ClassVar[str] = "Continued training"
    summary: ClassVar[str] = "control: flow matching continued at equal training compute"
    matches: str = ""

    def training(self, preference):
        return tree.replace(at_once(preference), batch_size=4 * preference.batch_size)

    def task(self, given):
        return FlowTask(given.run, given.source, given.section, given.seed, initial=given.start, name=given.name)

    def tune(self, job: Job) -> Params:
        section = self.training(job.preference)
        given = Given(job.run, job.features, section, job.seed, job.load(self.start), job.features.dims, job.name)
        if self.matches:
            matched, spent = (cost.total(job.run, name, job.seed) for name in (self.matches, self.start))
            section = tree.replace(section, steps=max(1, round((matched - spent) / operations.of_step(self.task(given)))))
            given = dataclasses.replace(given, section=section)
        task = self.task(given)
        return task.result(job.run.fit(task, section, job.folder / "training", seed=job.seed))

    def origins(self):
        return super().origins() | ({f"matches={self.matches!r}": self.matches} if self.matches else {})

    def ancestors(self):
        return (self.start,)
