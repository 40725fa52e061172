"""Trains the base model M0 on extracted features: by default an MM-DiT with conditional flow matching."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from msg_jax import networks, train
from msg_jax.data import pipeline
from msg_jax.data.features import FeatureSource
from msg_jax.errors import UserError
from msg_jax.infra import checkpoint, logging, mesh
from msg_jax.losses import flow
from msg_jax.losses.diffusion import Diffusion
from msg_jax.models import lora
from msg_jax.models.mmdit import draw_drops, drop_conditions, example_inputs
from msg_jax.stages import alignment
from msg_jax.stages.common import Run
from msg_jax.types import Array, Conditions, Params, TrainState


def conditions_of(batch: dict[str, Array]) -> Conditions:
    return Conditions(clip=batch["clip"], sync=batch["sync"], text=batch["text"], motion=batch.get("motion"))


class GeneratorTask(train.Task):
    """What the tasks that train the generator share: they train all of it, or adapters of it where `section.lora_rank` > 0.

    With adapters, gradients, optimiser state and EMA are those of the adapters alone; the network is frozen beside them.
    """

    run: Run
    section: ConfigDict  # steps, batch_size, optimizer, the two dropout rates and the three fields of LoRA
    diffusion: Diffusion | None = None  # what it is trained for, unless that is flow matching
    base: Params  # the network that training starts from; where there is none, its buffers alone

    def build(self, dims: dict[str, int]) -> None:
        self.model = networks.generator(self.run.config, self.run.clip, dims, self.run.dtype)
        self.diffusion = networks.diffusion(self.run.config)
        self.optimizer = train.make_optimizer(self.section.optimizer, self.section.steps)
        self.accumulate, self.ema_decay = self.section.accumulate, self.section.get("ema_decay", 0.0)

    @property
    def pretrained(self) -> Params | None:
        """The parameters of `base`, if they are trained and it has any."""
        return None if self.section.lora_rank else self.base.get("params")

    def start(self, rng: Array) -> Params:
        """What the optimiser starts with, boxed: adapters of `base`, or parameters, whose place `pretrained` ones take."""
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
        """The trained network (its EMA where there is one) as plain variables, with adapters merged into the weights."""
        trained = state.params if state.ema_params is None else state.ema_params
        if self.section.lora_rank:  # they lie on the mesh of all processes, the network on that of this one
            trained = mesh.to_host(trained)
        return lora.merge(self.variables(self.run.local(trained), self.base))


@dataclasses.dataclass
class FlowTask(GeneratorTask):
    """Flow matching, or the diffusion of the `base` section; also the control arm that merely continues it from `initial`."""

    run: Run
    source: FeatureSource
    section: ConfigDict  # also ema_decay
    seed: int
    initial: Params | None = None
    name: str = "base"
    kept: list[int] | None = None  # the clips of the source that are trained with; None: all

    def __post_init__(self):
        self.build(self.source.dims)
        self.base = self.initial or {"buffers": self._buffers()}
        if self.section.lora_rank and not self.initial:
            raise UserError(f"config.base.lora_rank={self.section.lora_rank} adapts a network, and config.base.initial names "
                            "none: set initial to released, or lora_rank to 0.")
        self.frozen = self.base if self.section.lora_rank else {"buffers": self.base["buffers"]}

    def _buffers(self) -> Params:
        """What is never trained; of the released MM-DiT's file, what it says of released encoders and a released codec."""
        config = self.run.config
        buffers = jax.jit(lambda key: self.model.init(key, *example_inputs(self.model.config))["buffers"])(jax.random.key(0))
        for field, names in (("codec.kind", ("latent_mean", "latent_std")), ("encoders.kind", ("empty_text",))):
            if networks.is_released(config, field):
                theirs = self.run.load_released("mmdit", "buffers/")["buffers"]
                buffers |= {name: theirs[name] for name in names}
        return buffers

    def init(self, rng):
        return train.create_state(self.start(rng), self.optimizer, ema=self.section.ema_decay > 0)

    def draw(self, batch, rng, frozen):
        return batch | {"flow": flow_draws(rng, batch["latents"], self.section, self.diffusion)}

    def loss(self, trained, rows, frozen):
        variables = self.variables(trained, frozen)
        return flow_loss(self.model, variables, rows["latents"], conditions_of(rows), rows["flow"], self.diffusion), {}

    def batches(self):
        source = self.source if self.kept is None else pipeline.Subset(self.source, self.kept)
        return self.run.batches(source, self.section.batch_size, seed=self.seed)


def flow_draws(
    rng: Array, latents: Array, section: ConfigDict, diffusion: Diffusion | None = None
) -> dict[str, Array]:
    """The random numbers of `flow_loss` for latents (B, T, C): noise, times (B,), dropped conditions (B, 2)."""
    noise_key, time_key, drop_key = jax.random.split(rng, 3)
    sample_t = diffusion.sample_t if diffusion else flow.sample_t
    return {
        "noise": jax.random.normal(noise_key, latents.shape), "t": sample_t(time_key, len(latents)),
        "drops": draw_drops(drop_key, len(latents), section.condition_dropout, section.text_dropout),
    }


def flow_loss(
    model: Any, variables: Params, latents: Array, conditions: Conditions, draws: dict[str, Array],
    diffusion: Diffusion | None = None,
) -> Array:
    """Mean flow error () of codec latents (B, T, C), with conditions dropped at random so that guidance has its null.

    With a `diffusion`, that error is the one of its prediction.
    """
    null = model.apply(variables, len(latents), method="null_conditions")
    conditions = drop_conditions(draws["drops"], conditions, null)
    error = diffusion.error if diffusion else flow.flow_error
    return jnp.mean(error(
        lambda x_t, t: model.apply(variables, x_t, t, conditions),
        model.apply(variables, latents, method="normalize"), draws["noise"], draws["t"],
    ))


def make(run: Run, folder: pathlib.Path, seed: int | None) -> str:
    initial = run.load_released("mmdit") if networks.is_released(run.config, "base.initial") else None
    if initial and not run.config.base.steps:
        logging.info("%-13s is the released network as it is", "base")
        return checkpoint.export(folder / "params", initial)
    source = FeatureSource(run.folder("extract") / "train")
    kept = alignment.best(run, source) if run.config.base.get("keep_share", 1.0) < 1 else None
    task = FlowTask(run, source, run.config.base, seed, initial, kept=kept)
    state = train.fit(task, seed=seed, **run.fit_options(run.config.base, folder))
    return checkpoint.export(folder / "params", task.result(state))
