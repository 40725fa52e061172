"""Distillation: a student that needs no guidance, or also fewer solver steps than its teacher."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from msg_jax import train
from msg_jax.config.schema import Preference
from msg_jax.data.features import FeatureSource
from msg_jax.inference import sampling
from msg_jax.losses import flow
from msg_jax.losses.flow import VelocityFn
from msg_jax.run.run import Run
from msg_jax.tasks.flow import GeneratorTask
from msg_jax.types import Array, Conditions, Params


@dataclasses.dataclass
class StudentTask(GeneratorTask):
    """Fit the student's velocity, in one pass, to what its teacher does at the scale `guidance`.

    With `steps` = 0 that is the teacher's guided velocity on the straight path to real sound (guidance distillation, Meng et
    al., arXiv 2210.03142): the student takes any number of steps. With N = `steps` it is the teacher's mean velocity over each
    Nth of its own path from noise, which takes `teacher_steps` steps (as in progressive distillation, Salimans & Ho, arXiv
    2202.00512): all parts of a path are trained at once, and the student takes N steps.

    The video is never dropped; the text is, with the probability `section.text_dropout`, for both.
    """

    run: Run
    source: FeatureSource
    section: Preference
    seed: int
    teacher: Params
    guidance: float
    steps: int
    teacher_steps: int
    name: str
    ema_decay: float = 0.99

    def __post_init__(self):
        self.build(self.source.dims)
        self.base = self.teacher
        self.frozen = {"teacher": self.teacher}

    def init(self, rng):
        return train.create_state(self.start(rng), self.optimizer, ema=True)

    def draw(self, batch, rng, frozen):
        noise_key, time_key, drop_key = jax.random.split(rng, 3)
        latents = batch["latents"]
        drops = jax.random.bernoulli(drop_key, self.section.text_dropout, (len(latents), 1, 1))
        t = self.times(time_key, len(latents))
        return batch | {"noise": jax.random.normal(noise_key, latents.shape), "t": t, "drops": drops}

    def loss(self, params: Params, rows: Any, frozen: Any) -> tuple[Array, dict[str, Array]]:
        teacher, conditions = frozen["teacher"], Conditions.from_batch(rows)
        null = self.model.apply(teacher, len(rows["noise"]), method="null_conditions")
        conditions = conditions.replace(text=jnp.where(rows["drops"], null.text, conditions.text))
        student, guided = self.variables(params, teacher), self._guided(teacher, conditions, null)
        if self.steps:
            states, times, targets = self._parts_of_its_path(guided, rows["noise"])
        else:
            states, times, targets = self._velocity(guided, teacher, rows)
        parts = states.shape[1]
        processed = self.model.apply(student, conditions, method="preprocess")
        velocity = self.model.apply(
            student, states.reshape(-1, *states.shape[2:]), times.reshape(-1),
            jax.tree.map(lambda x: jnp.repeat(x, parts, axis=0), processed), method="velocity",
        )
        return jnp.mean(jnp.square(velocity.reshape(targets.shape) - jax.lax.stop_gradient(targets))), {}

    def _guided(self, teacher: Params, conditions: Conditions, null: Conditions) -> VelocityFn:
        def velocity(x_t, t, processed):
            return self.model.apply(teacher, x_t, t, processed, method="velocity")

        cond, null = (self.model.apply(teacher, each, method="preprocess") for each in (conditions, null))
        config = self.run.config
        return sampling.guided(velocity, cond, null, self.guidance, config.sampling.guidance_rescale,
                               projection=config.sampling.guidance_projection, streams=self.model.streams)

    def _velocity(self, guided: VelocityFn, teacher: Params, rows: Any) -> tuple[Array, Array, Array]:
        """States (B, 1, T, C) on the path to real sound, times (B, 1), and the teacher's velocities there."""
        real = self.model.apply(teacher, rows["latents"], method="normalize")
        x_t = flow.interpolate(real, rows["noise"], rows["t"])
        return x_t[:, None], rows["t"][:, None], guided(x_t, rows["t"])[:, None]

    def _parts_of_its_path(self, guided: VelocityFn, noise: Array) -> tuple[Array, Array, Array]:
        """States (B, N, T, C) at the start of each part of the teacher's path, times (B, N), and mean velocities."""
        shift = self.run.config.sampling.time_shift
        path = sampling.euler_path(guided, noise, self.teacher_steps, shift)[:, :: self.teacher_steps // self.steps]
        times = sampling.solver_times(self.steps, shift)
        return path[:, :-1], jnp.tile(times[:-1], (len(noise), 1)), jnp.diff(path, axis=1) / np.diff(times)[:, None, None]

    def frozen_base(self, frozen):
        return frozen["teacher"]

    def held_out_loss(self, params, batch, rng, frozen):
        """The distillation loss."""
        return self.loss(params, self.draw(batch, rng, frozen), frozen)[0]

    def batches(self):
        return self.run.batches(self.source, self.section.batch_size, seed=self.seed)
