"""Training of the generator: flow matching, or the diffusion objective of VTA-LDM."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from msg_jax import networks, train
from msg_jax.config.schema import Base, Preference
from msg_jax.data import pipeline
from msg_jax.data.features import FeatureSource
from msg_jax.errors import UserError
from msg_jax.infra import mesh
from msg_jax.losses import flow
from msg_jax.losses.diffusion import Diffusion
from msg_jax.models import joint_mmdit, lora
from msg_jax.models.mmdit import draw_drops, drop_conditions, example_inputs
from msg_jax.run.run import Run
from msg_jax.types import STREAMS, Array, JointConditions, Module, Params, TrainState

DEVIATION_CLIPS = 512  # from which the deviations of latents are taken


class GeneratorTask(train.Task):
    """Shared by all trainings of the generator: they train it whole, or adapters of it where `section.lora_rank` > 0.

    With adapters, gradients, optimizer state and EMA are those of the adapters; the network stays frozen beside them.
    """

    run: Run
    section: Base | Preference
    seed: int
    model: Module
    base: Params  # the network that training starts from; without one, its buffers
    diffusion: Diffusion | None = None  # None: flow matching
    known_shares: tuple[float, float] | None = None  # of items whose sound or pictures are known, if both are generated

    def build(self, dims: dict[str, int]) -> None:
        """Make network and optimizer; `dims` are the widths of the extracted features."""
        self.model = networks.generator(self.run.config, self.run.clip, dims, networks.compute_dtype())
        self.diffusion = networks.diffusion(self.run.config)
        self.known_shares = networks.known_shares(self.run.config)
        self.use(self.section)

    @property
    def pretrained(self) -> Params | None:
        """The parameters of `base`, if there are any and all are trained."""
        return None if self.section.lora_rank else self.base.get("params")

    def start(self, rng: Array) -> Params:
        """Initial parameters, or adapters of `base`; boxed with their logical axis names."""
        section, inputs = self.section, example_inputs(self.model.config)
        if not section.lora_rank:
            return self.model.init(rng, *inputs)["params"]
        boxes = jax.eval_shape(self.model.init, rng, *inputs)["params"]
        return lora.init(rng, boxes, section.lora_rank, section.lora_targets)

    def variables(self, trained: Params, base: Params) -> Params:
        """The network's variables: `trained` parameters with the buffers of `base`, or `base` with trained adapters."""
        if self.section.lora_rank:
            return lora.attach(base, trained, self.section.lora_scale)
        return {"params": trained, "buffers": base["buffers"]}

    def result(self, state: TrainState) -> Params:
        """The trained network (its EMA if there is one) as plain variables, with adapters merged into the weights."""
        trained = state.params if state.ema_params is None else state.ema_params
        if self.section.lora_rank:  # they lie on the mesh of all processes, the network on this one's
            trained = mesh.to_host(trained)
        return lora.merge(self.variables(self.run.local(trained), self.base))

    def batch_shapes(self):
        latents, _, conditions = jax.eval_shape(lambda: example_inputs(self.model.config, self.section.batch_size))
        if isinstance(conditions, JointConditions):
            return {"latents": latents, "text": conditions.text}
        found = {"latents": latents, "clip": conditions.clip, "sync": conditions.sync, "text": conditions.text}
        return found if conditions.motion is None else found | {"motion": conditions.motion}

    def held_out(self):
        features = FeatureSource(self.run.folder("extract") / "validation")
        return self.run.batches(features, self.section.batch_size, seed=self.seed) if len(features) else None

    def held_out_loss(self, params, batch, rng, frozen):
        """The flow-matching (or diffusion) loss on real sound, whatever the training loss is."""
        variables = self.variables(params, self.frozen_base(frozen))
        conditions = self.model.conditions.from_batch(batch)
        return self.flow_loss(variables, batch["latents"], conditions, self.flow_draws(rng, batch["latents"]))

    def flow_draws(self, rng: Array, latents: Array) -> dict[str, Array]:
        """The random numbers of `flow_loss` for latents (B, T, C)."""
        return flow_draws(rng, latents, self.section, self.times, self.known_shares)

    def times(self, key: Array, count: int) -> Array:
        """Times (count,) at which the network is trained."""
        if self.diffusion:
            return self.diffusion.sample_t(key, count)
        return flow.sample_t(key, count, self.run.config.base.time_shift)

    def flow_loss(self, variables: Params, latents: Array, conditions: Any, draws: dict[str, Array]) -> Array:
        """Mean flow-matching error () of the codec's latents (B, T, C), or the diffusion objective's error."""
        return flow_loss(self.model, variables, latents, conditions, draws, self.diffusion)

    def frozen_base(self, frozen: Any) -> Params:
        """`base` as the step gets it."""
        return frozen


@dataclasses.dataclass
class FlowTask(GeneratorTask):
    """Train the base model, or continue the training of `initial`."""

    run: Run
    source: FeatureSource
    section: Base | Preference
    seed: int
    initial: Params | None = None
    name: str = "base"
    kept: Sequence[int] | None = None  # train on these clips of the source; None: all
    ema_decay: float = 0.0

    def __post_init__(self):
        self.build(self.source.dims)
        self.base = self.initial or {"buffers": self._buffers()}
        if self.section.lora_rank and not self.initial:
            raise UserError(f"config.base.lora_rank={self.section.lora_rank} adapts a network, but config.base.initial names "
                            "none: set initial to released, or lora_rank to 0.")
        self.frozen = self.base if self.section.lora_rank else {"buffers": self.base["buffers"]}

    def _buffers(self) -> Params:
        """Values that are never trained. Released encoders and codecs bring theirs in the released MM-DiT's file."""
        config = self.run.config
        buffers = jax.jit(lambda key: self.model.init(key, *example_inputs(self.model.config))["buffers"])(jax.random.key(0))
        for kind, names in ((config.codec.kind, ("latent_mean", "latent_std")), (config.encoders.kind, ("empty_text",))):
            if kind == "released":
                theirs = self.run.load_released("mmdit", "buffers/")["buffers"]
                buffers |= {name: theirs[name] for name in names}
        if "deviations" in buffers:
            latents = self.source.stack(range(min(len(self.source), DEVIATION_CLIPS)), ("latents",))["latents"]
            turned = latents @ joint_mmdit.channel_basis(self.model.config).T
            buffers |= {"deviations": jnp.asarray(joint_mmdit.deviations(turned))}
        return buffers

    def init(self, rng):
        return train.create_state(self.start(rng), self.optimizer, ema=self.ema_decay > 0)

    def draw(self, batch, rng, frozen):
        return batch | {"flow": self.flow_draws(rng, batch["latents"])}

    def loss(self, params, rows, frozen):
        variables = self.variables(params, frozen)
        return self.flow_loss(variables, rows["latents"], self.model.conditions.from_batch(rows), rows["flow"]), {}

    def batches(self):
        source = self.source if self.kept is None else pipeline.Subset(self.source, self.kept)
        return self.run.batches(source, self.section.batch_size, seed=self.seed)


def flow_draws(
    rng: Array, latents: Array, section: Base | Preference, times: Callable[[Array, int], Array] = flow.sample_t,
    known_shares: tuple[float, float] | None = None,
) -> dict[str, Array]:
    """The random numbers of `flow_loss` for latents (B, T, C): noise, `times` (B,), dropped conditions (B, 2).

    With `known_shares`, also which streams are known (B, 2): the sound of the first share of items, the pictures of the second.
    """
    noise_key, time_key, drop_key = jax.random.split(rng, 3)
    draws = {
        "noise": jax.random.normal(noise_key, latents.shape), "t": times(time_key, len(latents)),
        "drops": draw_drops(drop_key, len(latents), section.condition_dropout, section.text_dropout),
    }
    if known_shares is None:
        return draws
    mode = jax.random.choice(
        jax.random.fold_in(drop_key, 2), 3, (len(latents),), p=jnp.array([*known_shares, 1 - sum(known_shares)])
    )
    return draws | {"known": mode[:, None] == jnp.arange(2)}


def flow_loss(
    model: Module, variables: Params, latents: Array, conditions: Any, draws: dict[str, Array],
    diffusion: Diffusion | None = None,
) -> Array:
    """Mean flow-matching error () of the codec's latents (B, T, C); with a `diffusion`, the error of its prediction.

    Conditions are dropped as drawn, so that the null conditions of guidance are trained. Where sound and pictures are both
    generated, this is the sum of their errors, and a stream that is known has none.
    """
    null = model.apply(variables, len(latents), method="null_conditions")
    conditions = drop_conditions(draws["drops"], conditions, null)
    if "known" in draws:
        conditions = conditions.replace(known=draws["known"])
    error = diffusion.error if diffusion else functools.partial(flow.flow_error, weights=model.error_weights(STREAMS))
    return jnp.mean(error(
        lambda x_t, t: model.apply(variables, x_t, t, conditions),
        model.apply(variables, latents, method="normalize"), draws["noise"], draws["t"],
    ))
