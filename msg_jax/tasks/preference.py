"""The preference loss as a training task: DPO for flow matching (losses/preference.py) with two anchors."""

from collections.abc import Sequence
import dataclasses

import jax

from msg_jax.inference import sampling
from msg_jax.inference.batching import deinterleave, interleave
from msg_jax.losses import flow
from msg_jax.losses.preference import PairErrors, preference_loss
from msg_jax.tasks.reference import ReferenceTask
from msg_jax.types import STREAMS, Array, Params, PreferenceBatch


@dataclasses.dataclass
class PreferenceTask(ReferenceTask):
    """DPO over policy and frozen reference, and flow matching on the winner and on real sound, each with its weight.

    Of a network of sound and pictures, pairs are compared by the errors of the streams in `scored`.
    """

    scored: Sequence[str] = STREAMS

    def draw(self, batch, rng, frozen):
        noise_key, time_key, real_key = jax.random.split(rng, 3)
        noise = jax.random.normal(noise_key, batch["winner"].shape)
        t = self.times(time_key, len(batch["winner"]))
        return batch | {"noise": noise, "t": t, "flow": self.flow_draws(real_key, batch["latents"])}

    def loss(self, params: Params, rows: dict, frozen: Params) -> tuple[Array, dict[str, Array]]:
        """The loss () and its parts for a batch of pairs; `params` are parameters or adapters."""
        section, policy = self.section, self.variables(params, frozen["reference"])
        pairs = PreferenceBatch(
            winner=rows["winner"], loser=rows["loser"], real=rows["latents"],
            conditions=self.model.conditions.from_batch(rows)
        )
        noise, t = rows["noise"], rows["t"]  # shared by winner and loser, policy and reference
        sides = [self.errors(each, pairs, noise, t, section.dpo_guidance) for each in (policy, frozen["reference"])]
        errors = PairErrors(*sides[0], *sides[1])
        dpo, metrics = preference_loss(errors, section.beta)
        winner = sides[0][0] if section.dpo_guidance == 1 else self.errors(policy, pairs, noise, t)[0]
        real = self.flow_loss(policy, pairs.real, pairs.conditions, rows["flow"])
        loss = section.dpo_weight * dpo + section.winner_weight * winner.mean() + section.real_weight * real
        return loss, {"dpo": dpo, "error_real": real} | metrics | self.more_metrics(errors, rows)

    def errors(
        self, variables: Params, pairs: PreferenceBatch, noise: Array, t: Array, guidance_scale: float = 1.0
    ) -> tuple[Array, Array]:
        """Flow errors (B,), (B,) of winners and losers, under the velocity that sampling at `guidance_scale` follows."""
        sides = interleave(pairs.winner, pairs.loser)

        def processed(conditions):
            conditions = self.model.apply(variables, conditions, method="preprocess")
            return interleave(conditions, conditions)

        velocity = sampling.guided(
            lambda x_t, t, conditions: self.model.apply(variables, x_t, t, conditions, method="velocity"),
            processed(self.as_sampled(pairs.conditions, variables)),
            processed(self.model.apply(variables, len(t), method="null_conditions")),
            guidance_scale,
        )
        errors = flow.flow_error(
            velocity, self.model.apply(variables, sides, method="normalize"), interleave(noise, noise), interleave(t, t),
            self.model.error_weights(self.scored),
        )
        return deinterleave(errors)

    def more_metrics(self, errors: PairErrors, rows: dict) -> dict[str, Array]:
        """Metrics that a subclass adds."""
        return {}

    def batch_shapes(self):
        shapes = super().batch_shapes()
        return shapes | dict.fromkeys(("winner", "loser"), shapes["latents"])
