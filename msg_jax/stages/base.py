"""Trains the base model M0: an MM-DiT with conditional flow matching, on extracted features."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from msg_jax import networks, train
from msg_jax.data.features import FeatureSource
from msg_jax.infra import checkpoint
from msg_jax.losses import flow
from msg_jax.models.mmdit import drop_conditions, example_inputs
from msg_jax.stages.common import Run
from msg_jax.types import Array, Conditions, Params


def conditions_of(batch: dict[str, Array]) -> Conditions:
    return Conditions(clip=batch["clip"], sync=batch["sync"], text=batch["text"])


@dataclasses.dataclass
class FlowTask(train.Task):
    """Conditional flow matching; also the control arm that merely continues it, with `initial` variables to start from."""

    run: Run
    source: FeatureSource
    section: Any  # steps, batch_size, optimizer, ema_decay and the two dropout rates
    seed: int
    initial: Params | None = None
    name: str = "base"

    def __post_init__(self):
        self.model = networks.generator(self.run.config, self.run.clip, self.source.dims, self.run.dtype)
        self.optimizer = train.make_optimizer(self.section.optimizer, self.section.steps)
        buffers = self.model.init(jax.random.key(0), *example_inputs(self.model.config))["buffers"]
        self.frozen = {"buffers": self.initial["buffers"] if self.initial else buffers}

    def init(self, rng):
        params = self.model.init(rng, *example_inputs(self.model.config))["params"]
        if self.initial:
            params = train.boxed_like(params, self.initial["params"])
        return train.create_state(params, self.optimizer, ema=self.section.ema_decay > 0)

    def step(self, state, batch, rng, frozen):
        def loss_fn(params):
            return flow_loss(
                self.model, {"params": params, "buffers": frozen["buffers"]}, batch["latents"], conditions_of(batch), rng,
                self.section.condition_dropout, self.section.text_dropout,
            )

        loss, gradients = jax.value_and_grad(loss_fn)(state.params)
        return train.apply_gradients(state, gradients, self.optimizer, self.section.ema_decay), {"loss": loss}

    def batches(self):
        return self.run.batches(self.source, self.section.batch_size, seed=self.seed)


def flow_loss(
    model: Any, variables: Params, latents: Array, conditions: Conditions, rng: Array, dropout: float, text_dropout: float
) -> Array:
    """Mean flow error () of codec latents (B, T, C), with conditions dropped at random so that guidance has its null."""
    noise_key, time_key, drop_key = jax.random.split(rng, 3)
    batch = latents.shape[0]
    null = model.apply(variables, batch, method="null_conditions")
    conditions = drop_conditions(drop_key, conditions, null, dropout, text_dropout)
    return jnp.mean(flow.flow_error(
        lambda x_t, t: model.apply(variables, x_t, t, conditions),
        model.apply(variables, latents, method="normalize"),
        jax.random.normal(noise_key, latents.shape), flow.sample_t(time_key, batch),
    ))


def make(run: Run, folder: pathlib.Path, seed: int | None) -> str:
    task = FlowTask(run, FeatureSource(run.folder("extract") / "train"), run.config.base, seed)
    state = train.fit(task, seed=seed, **run.fit_options(run.config.base, folder))
    return checkpoint.export(folder / "params", {"params": state.ema_params, "buffers": task.frozen["buffers"]})
