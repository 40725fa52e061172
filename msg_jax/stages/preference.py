"""The preference task: DPO for flow matching (losses/preference.py) with its two anchors, whatever made the pairs."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from msg_jax import networks, train
from msg_jax.losses import flow
from msg_jax.losses.preference import PairErrors, preference_loss
from msg_jax.models.mmdit import example_inputs
from msg_jax.stages.base import conditions_of, flow_loss
from msg_jax.stages.common import Run
from msg_jax.types import Params, PreferenceBatch


@dataclasses.dataclass
class PreferenceTask(train.Task):
    """The DPO loss over policy and frozen reference, and the two flow-matching anchors, each with its weight."""

    run: Run
    source: Any
    section: ConfigDict
    seed: int
    reference: Params
    dims: dict[str, int]
    name: str

    def __post_init__(self):
        self.model = networks.generator(self.run.config, self.run.clip, self.dims, self.run.dtype)
        self.optimizer = train.make_optimizer(self.section.optimizer, self.section.steps)
        self.frozen = {"reference": self.reference}

    def init(self, rng):
        params = self.model.init(rng, *example_inputs(self.model.config))["params"]
        return train.create_state(train.boxed_like(params, self.reference["params"]), self.optimizer, ema=False)

    def step(self, state, batch, rng, frozen):
        section, buffers = self.section, frozen["reference"]["buffers"]
        batch = PreferenceBatch(
            winner=batch["winner"], loser=batch["loser"], real=batch["latents"], conditions=conditions_of(batch)
        )
        noise_key, time_key, real_key = jax.random.split(rng, 3)
        # The same noise and the same t for both sides: only what is compared may differ.
        noise = jax.random.normal(noise_key, batch.winner.shape)
        t = flow.sample_t(time_key, len(batch.winner))
        sides = jnp.concatenate([batch.winner, batch.loser])

        def side_errors(variables):
            processed = self.model.apply(variables, batch.conditions, method="preprocess")
            processed = jax.tree.map(lambda x: jnp.concatenate([x, x]), processed)
            errors = flow.flow_error(
                lambda x_t, t: self.model.apply(variables, x_t, t, processed, method="velocity"),
                self.model.apply(variables, sides, method="normalize"),
                jnp.concatenate([noise, noise]), jnp.concatenate([t, t]),
            )
            return jnp.split(errors, 2)

        reference_errors = side_errors(frozen["reference"])

        def loss_fn(params):
            variables = {"params": params, "buffers": buffers}
            errors = PairErrors(*side_errors(variables), *reference_errors)
            dpo, metrics = preference_loss(errors, section.beta)
            real = flow_loss(
                self.model, variables, batch.real, batch.conditions, real_key, section.condition_dropout,
                section.text_dropout,
            )
            loss = (
                section.dpo_weight * dpo + section.winner_weight * errors.policy_winner.mean() + section.real_weight * real
            )
            return loss, {"dpo": dpo, "error_real": real} | metrics

        (loss, metrics), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return train.apply_gradients(state, gradients, self.optimizer), {"loss": loss} | metrics

    def batches(self):
        return self.run.batches(self.source, self.section.batch_size, seed=self.seed)
