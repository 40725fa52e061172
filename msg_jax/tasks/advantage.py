"""Losses that weigh samples by their reward (losses/advantage.py) as a training task."""

from collections.abc import Callable
import dataclasses

import jax

from msg_jax.losses import flow
from msg_jax.tasks.flow import flow_loss
from msg_jax.tasks.reference import ReferenceTask
from msg_jax.types import Array, Conditions, Params


@dataclasses.dataclass
class AdvantageTask(ReferenceTask):
    """Train on samples of `reference` and their `weight`, and by flow matching on real sound.

    `objective(velocity, old velocity, target velocity, weight)` is the loss of a batch.
    """

    objective: Callable[[Array, Array, Array, Array], Array]

    def draw(self, batch, rng, frozen):
        noise_key, time_key, real_key = jax.random.split(rng, 3)
        noise = jax.random.normal(noise_key, batch["sample"].shape)
        t = self.times(time_key, len(noise))
        return batch | {"noise": noise, "t": t, "flow": self.flow_draws(real_key, batch["latents"])}

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
