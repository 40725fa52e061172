"""A student: guidance folded into the network, and few solver steps."""

import dataclasses
from typing import ClassVar

from msg_jax.errors import UserError
from msg_jax.methods.method import Method, at_once
from msg_jax.tasks.student import StudentTask


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distill(Method):
    """Distil `start`, sampled at `guidance`, into a network that needs no guidance: a step is one pass in the place of two.

    With `solver_steps` = 0 the student takes any number of steps: the report has those of `sampled_steps`, and the first is
    what `generate` takes by default. Otherwise it takes `solver_steps`, and each covers what the teacher does in its share of
    `teacher_steps`. It is trained like a preference arm, for `rounds` x `steps` steps. Arms that start from a student are
    sampled as it is.
    """

    kind: ClassVar[str] = "distill"
    title: ClassVar[str] = "Student"
    summary: ClassVar[str] = "guidance, and solver steps, distilled into fewer passes of the network"
    guidance: float = 2.0
    solver_steps: int = 0
    sampled_steps: tuple[int, ...] = (2, 4, 8, 1)  # read where solver_steps is 0
    teacher_steps: int = 8

    def training(self, preference):
        return at_once(preference)

    def task(self, given):
        return StudentTask(
            given.run, given.source, given.section, given.seed, given.start, self.guidance, self.solver_steps,
            self.teacher_steps, given.name,
        )

    def student_steps(self, config):
        return (self.solver_steps,) if self.solver_steps else self.sampled_steps

    def check(self, name, config):
        where = f"config.arms.{name}"
        if not self.student_steps(config) or min(self.student_steps(config)) < 1:
            raise UserError(f"{where}.sampled_steps={self.sampled_steps} must be numbers of solver steps, 1 or more.")
        if self.solver_steps and (self.solver_steps < 0 or self.teacher_steps % self.solver_steps):
            raise UserError(f"{where}.solver_steps={self.solver_steps} must divide teacher_steps={self.teacher_steps}.")
        if self.guidance != 1 and super().student_steps(config):
            raise UserError(f"{where}.guidance={self.guidance} needs a teacher with guidance, and {self.start} is a student: "
                            "set guidance to 1.")
        if config.base.objective != "flow":
            raise UserError(f"{where} distils flow matching, but config.base.objective is {config.base.objective}: remove that "
                            "arm.")
