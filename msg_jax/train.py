"""The only training loop. It knows no model: a `Task` brings state, step and batches."""

from collections.abc import Mapping
import pathlib
from typing import Any
import zlib

from flax.core import meta
import grain
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import optax

from msg_jax.errors import UserError
from msg_jax.infra import logging, preemption
from msg_jax.infra import mesh as mesh_lib
from msg_jax.infra.checkpoint import Checkpoints
from msg_jax.types import Array, Params, TrainState

Metrics = Mapping[str, Array]


class Task:
    """What a stage trains: a subclass gives `name`, `init`, `step` and `batches`."""

    name: str
    frozen: Any = None  # networks that the step reads and never changes: passed in beside the state

    def init(self, rng: Array) -> TrainState:
        """A fresh state; parameters may be boxed with their logical axis names."""
        raise NotImplementedError

    def step(self, state: TrainState, batch: Any, rng: Array, frozen: Any) -> tuple[TrainState, Metrics]:
        """One optimiser step; pure. `metrics` are scalars and hold `loss`."""
        raise NotImplementedError

    def batches(self) -> grain.IterDataset:
        """Endless batches of this process (dicts of numpy arrays), a function of seed and step alone."""
        raise NotImplementedError


def key_for(seed: int, purpose: str, step: int | Array = 0) -> Array:
    """The random key of one purpose at one step: `fold_in(fold_in(root, purpose), step)`."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode())), step)


def make_optimizer(config: Mapping[str, Any], steps: int) -> optax.GradientTransformation:
    """AdamW with linear warm-up, cosine decay to `final_scale` times the peak, and clipping by global norm."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config["learning_rate"], min(config["warmup_steps"], max(steps - 1, 1)), max(steps, 2),
        config["learning_rate"] * config["final_scale"],
    )
    return optax.chain(
        optax.clip_by_global_norm(config["clip_norm"]),
        optax.adamw(schedule, b1=config["b1"], b2=config["b2"], weight_decay=config["weight_decay"]),
    )


def boxed_like(boxed: Params, values: Params) -> Params:
    """`values` in the boxes of `boxed`: loaded arrays that know their logical axes again."""
    return jax.tree.map(
        lambda box, value: box.replace_boxed(value) if isinstance(box, meta.AxisMetadata) else value, boxed, values,
        is_leaf=lambda x: isinstance(x, meta.AxisMetadata),
    )


def create_state(params: Params, optimizer: optax.GradientTransformation, ema: bool) -> TrainState:
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
    )


def apply_gradients(
    state: TrainState, gradients: Params, optimizer: optax.GradientTransformation, ema_decay: float = 0.0
) -> TrainState:
    """One optimiser update; the EMA decay warms up as min(decay, (1 + step) / (10 + step))."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema_params
    if ema is not None:
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        ema = jax.tree.map(lambda old, new: old * decay + new * (1 - decay), ema, params)
    return TrainState(step=state.step + 1, params=params, opt_state=opt_state, ema_params=ema)


def fit(
    task: Task,
    *,
    steps: int,
    workdir: str | pathlib.Path,
    mesh: Mesh,
    seed: int,
    log_every: int,
    checkpoint_every: int,
) -> TrainState:
    """Trains `task` to `steps`, resuming from whatever `workdir` holds, and returns the final state.

    Every random number is a function of (seed, task name, step) and the input of the step alone, so a run that was
    killed and resumed ends with the same bits as one that was not.

    Raises UserError, naming stage and step, when the loss is not finite.
    """
    workdir = pathlib.Path(workdir)
    with jax.set_mesh(mesh):
        init_key = key_for(seed, f"{task.name}/init")
        layout = mesh_lib.shardings(jax.eval_shape(task.init, init_key), mesh)
        state = jax.jit(lambda key: meta.unbox(task.init(key)), out_shardings=layout)(init_key)
        frozen = task.frozen
        step_fn = jax.jit(task.step, donate_argnums=0, out_shardings=(layout, None))

        iterator = iter(task.batches())
        checkpoints = Checkpoints(workdir / "checkpoints")
        state, start = checkpoints.restore(state, iterator)
        if start:
            logging.info("%-13s resumes at step %d", task.name, start)
        metrics_file = logging.MetricsFile(workdir / "metrics.jsonl", start)
        progress = logging.Progress(task.name, steps, start=start)

        for step in range(start, steps):
            batch = mesh_lib.put_batch(next(iterator), mesh)
            state, metrics = step_fn(state, batch, key_for(seed, task.name, step), frozen)
            done = step + 1
            if done % log_every == 0 or done == steps:
                # Only here does the host wait for the device.
                values = {name: float(value) for name, value in metrics.items()}
                if not jnp.isfinite(values["loss"]):
                    raise UserError(
                        f"{task.name}: the loss is {values['loss']} at step {done}; lower learning_rate or clip_norm. The "
                        f"checkpoint of before is in {workdir}/checkpoints."
                    )
                metrics_file.write(done, values)
                progress.update(done, values)
            if done % checkpoint_every == 0 or done == steps or preemption.requested():
                checkpoints.save(done, state, iterator)
                preemption.exit_if_requested(f"{task.name} step {done}")
        checkpoints.close()
    return state
