"""Losses that weigh samples by their reward (losses/advantage.py) as a training task."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax

from msg_jax import train
from msg_jax.config.schema import Preference
from msg_jax.losses import flow
from msg_jax.run.run import Run
from msg_jax.tasks.flow import GeneratorTask, flow_draws, flow_loss
from msg_jax.types import Array, Conditions, Params


@dataclasses.dataclass
class AdvantageTask(GeneratorTask):
    """Train on samples of `reference` and their `weight`, and by flow matching on real sound.

    `objective(velocity, old velocity, target velocity, weight)` is the loss of a batch.
    """

    run: Run
    source: Any
    section: Preference
    seed: int
    reference: Params
    dims: dict[str, int]
    name: str
    objective: Callable[[Array, Array, Array, Array], Array]

    def __post_init__(self):
        self.build(self.dims)
        self.base = self.reference
        self.frozen = {"reference": self.reference}

    def init(self, rng):
        return train.create_state(self.start(rng), self.optimizer, ema=False)

    def draw(self, batch, rng, frozen):
        noise_key, time_key, real_key = jax.random.split(rng, 3)
        noise = jax.random.normal(noise_key, batch["sample"].shape)
        t = flow.sample_t(time_key, len(noise))
        return batch | {"noise": noise, "t": t, "flow": flow_draws(real_key, batch["latents"], self.section)}

    def loss(self, params: Params, rows: dict, frozen: Params) -> tuple[Array, dict[str, Array]]:
        section, policy, reference = self.section, self.variables(params, frozen["reference"]), frozen["reference"]
        noise, t = rows["noise"], rows["t"]
        sample = self.model.apply(reference, rows["sample"], method="normalize")
        x_t = flow.interpolate(sample, noise, t)
        conditions = Conditions.from_batch(rows)
        velocity, old = (
            self.model.apply(each, x_t, t, self.as_sampled(conditions, each)) for each in (policy, reference)
        )
        objective = self.objective(velocity, old, flow.target_velocity(sample, noise), rows["weight"])
        real = flow_loss(self.model, policy, rows["latents"], conditions, rows["flow"])
        return objective + section.real_weight * real, {"objective": objective, "error_real": real}

    def batch_shapes(self):
        shapes = super().batch_shapes()
        latents = shapes["latents"]
        return shapes | {"sample": latents, "weight": jax.ShapeDtypeStruct(latents.shape[:2], latents.dtype)}

    def frozen_base(self, frozen):
        return frozen["reference"]

    def batches(self):
        return self.run.batches(self.source, self.section.batch_size, seed=self.seed)
