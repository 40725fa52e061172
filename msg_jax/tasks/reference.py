"""What trainings beside a frozen reference share: the loss compares a policy with the network that it starts from."""

import dataclasses
from typing import Any

from msg_jax import train
from msg_jax.config.schema import Preference
from msg_jax.run.run import Run
from msg_jax.tasks.flow import GeneratorTask
from msg_jax.types import Params


@dataclasses.dataclass
class ReferenceTask(GeneratorTask):
    """Train a policy from `reference`, which the step gets as `frozen["reference"]`; `dims` are the features' widths.

    With adapters, the reference is the same tree without them, so there is no second copy of the network.
    """

    run: Run
    source: Any
    section: Preference
    seed: int
    reference: Params
    dims: dict[str, int]
    name: str

    def __post_init__(self):
        self.build(self.dims)
        self.base = self.reference
        self.frozen = {"reference": self.reference}

    def init(self, rng):
        return train.create_state(self.start(rng), self.optimizer, ema=False)

    def as_sampled(self, conditions: Any, variables: Params) -> Any:
        """Conditions as candidates are sampled with: without captions, unless `section.prompts`."""
        if self.section.prompts:
            return conditions
        null = self.model.apply(variables, len(conditions.text), method="null_conditions")
        return conditions.replace(text=null.text)

    def frozen_base(self, frozen):
        return frozen["reference"]

    def batches(self):
        return self.run.batches(self.source, self.section.batch_size, seed=self.seed)
