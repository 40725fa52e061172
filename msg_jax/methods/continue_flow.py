"""The control without pairs: flow matching on real sound, continued."""

import dataclasses
from typing import ClassVar

from msg_jax.config import tree
from msg_jax.methods.method import Method, at_once
from msg_jax.tasks.flow import FlowTask


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

    def training(self, preference):
        return tree.replace(at_once(preference), batch_size=4 * preference.batch_size)

    def task(self, given):
        return FlowTask(given.run, given.source, given.section, given.seed, initial=given.start, name=given.name)
