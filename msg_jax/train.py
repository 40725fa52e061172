"""The only training loop. It knows no model: a `Task` brings state, step and batches."""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import math
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
from msg_jax.infra import explain, guard, logging, metering, preemption, runtime
from msg_jax.infra import mesh as mesh_lib
from msg_jax.infra.checkpoint import Checkpoints
from msg_jax.types import Array, Params, TrainState

Metrics = Mapping[str, Array]


class Task:
    """What a stage trains: a subclass gives `name`, `optimizer`, `init`, `loss` and `batches`, or `step` instead of `loss`."""

    name: str
    optimizer: optax.GradientTransformation
    ema_decay: float = 0.0
    accumulate: int = 1  # micro-batches that a step's gradient is the mean of
    pretrained: Params | None = None  # parameters to start from in the place of those that `init` makes
    frozen: Any = None  # networks that the step reads and never changes: passed in beside the state; may be boxed

    def init(self, rng: Array) -> TrainState:
        """A fresh state; parameters may be boxed with their logical axis names."""
        raise NotImplementedError

    def draw(self, batch: Any, rng: Array, frozen: Any) -> Any:
        """What `loss` is a mean over, row by row (B, ...): the batch, and every random number that its rows meet."""
        return batch

    def loss(self, params: Params, rows: Any, frozen: Any) -> tuple[Array, Metrics]:
        """The mean loss () over rows, and further means; no row may depend on another. Pure, and draws nothing."""
        raise NotImplementedError

    def step(self, state: TrainState, batch: Any, rng: Array, frozen: Any) -> tuple[TrainState, Metrics]:
        """One optimiser step; pure. `metrics` are scalars and hold `loss`."""
        rows = self.draw(batch, rng, frozen)
        loss, metrics, gradients = mean_gradients(
            lambda params, rows: self.loss(params, rows, frozen), state.params, rows, self.accumulate
        )
        return apply_gradients(state, gradients, self.optimizer, self.ema_decay), {"loss": loss} | metrics

    def batches(self) -> grain.IterDataset:
        """Endless batches of this process (dicts of numpy arrays), a function of seed and step alone.

        An entry `id`, a list of strings, names the clips; it is for messages and does not reach `step`.
        """
        raise NotImplementedError


def mean_gradients(
    loss_fn: Callable[[Params, Any], tuple[Array, Metrics]], params: Params, rows: Any, accumulate: int
) -> tuple[Array, Metrics, Params]:
    """Loss, metrics and gradients of a mean over rows, in `accumulate` micro-batches of which one at a time is in memory.

    Up to rounding it is the whole batch at once, for the random numbers are among the rows.
    """
    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    if accumulate == 1:
        (loss, metrics), gradients = gradient(params, rows)
        return loss, metrics, gradients

    def one(total, rows):
        return jax.tree.map(jnp.add, total, gradient(params, rows)), None

    rows = mesh_lib.micro_batches(rows, accumulate)
    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], rows))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(one, zeros, rows)
    (loss, metrics), gradients = jax.tree.map(lambda x: x / accumulate, total)
    return loss, metrics, gradients


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


@dataclasses.dataclass(frozen=True)
class Watch:
    """What looks on while a training runs; nothing in it changes the result."""

    limits: guard.Limits = dataclasses.field(default_factory=guard.Limits)
    tensorboard: bool = False
    wandb: str = ""  # the project, or none
    profile: tuple[int, int] | None = None  # a trace of the steps a <= step < b
    explain: bool = False  # print how the step lies on the mesh, and end


def fit(
    task: Task,
    *,
    steps: int,
    workdir: str | pathlib.Path,
    mesh: Mesh,
    seed: int,
    log_every: int,
    checkpoint_every: int,
    watch: Watch | None = None,
) -> TrainState:
    """Trains `task` to `steps`, resuming from whatever `workdir` holds, and returns the final state.

    Every random number is a function of (seed, task name, step) and the input of the step alone, so a run that was
    killed and resumed ends with the same bits as one that was not.

    Raises UserError, naming stage, step and the checkpoint from before, when the loss is not finite or jumps, when no batch
    comes, and when a checkpoint cannot be written. A state whose loss was not looked at is never saved.
    """
    workdir, watch = pathlib.Path(workdir), watch or Watch()
    with jax.set_mesh(mesh):
        init_key = key_for(seed, f"{task.name}/init")
        layout = mesh_lib.shardings(jax.eval_shape(task.init, init_key), mesh)
        state = jax.jit(lambda key: meta.unbox(task.init(key)), out_shardings=layout)(init_key)
        if task.pretrained is not None:  # not inside `init`: the compiled program would hold them as constants
            copied = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=layout.params)
            there = mesh_lib.put(task.pretrained, layout.params)
            state = state.replace(params=copied(there), ema_params=None if state.ema_params is None else copied(there))
        frozen = mesh_lib.put(meta.unbox(task.frozen), mesh_lib.shardings(task.frozen, mesh))
        iterator = iter(task.batches())
        checkpoints = Checkpoints(workdir / "checkpoints")
        state, start = checkpoints.restore(state, iterator)
        if start:
            logging.info("%-13s resumes at step %d", task.name, start)
        if start == steps:
            return state
        writers = _writers(workdir, start, watch)
        losses = guard.LossWatch(watch.limits, [row["loss"] for row in writers[0].rows] if writers else ())
        progress = logging.Progress(task.name, steps, start=start)
        profiler = metering.Profiler(watch.profile, workdir / "profile")
        stop = preemption.Agreement(mesh)
        feed = guard.Feed(iterator, watch.limits.data_timeout_sec, task.name)
        all_finite = jax.jit(lambda tree: jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all())
        step_fn = meter = None

        for step in range(start, steps):
            with meter.waiting_for_data() if meter else contextlib.nullcontext():
                batch = feed.next(step)
            ids = batch.pop("id", None)
            batch = mesh_lib.put_batch(batch, mesh)
            key = key_for(seed, task.name, step)
            if step_fn is None:
                lowered = jax.jit(task.step, donate_argnums=0, out_shardings=(layout, None)).lower(state, batch, key, frozen)
                step_fn = lowered.compile()
                runtime.barrier(f"{task.name} compiled")
                if watch.explain:
                    logging.info("%s", explain.describe(task.name, step_fn, state, mesh))
                    raise SystemExit(0)
                flops = metering.step_flops(lowered, task.accumulate)
                meter = metering.Meter(flops, len(jax.tree.leaves(batch)[0]), list(mesh.devices.flat), step)
            profiler.before(step)
            state, metrics = step_fn(state, batch, key, frozen)
            done = step + 1
            losses.add(done, metrics["loss"], ids)
            profiler.after(done, metrics)
            logs = done % log_every == 0 or done == steps
            stops = stop.requested()
            saves = done % checkpoint_every == 0 or done == steps or stops
            if logs or saves:  # only here does the host wait for the device
                fault = losses.check()
                if fault is None and saves and not all_finite(state.params):
                    fault = f"the parameters are not finite at step {done}"
                if fault:
                    raise UserError(f"{task.name}: {fault}; {_before(checkpoints)}; lower learning_rate or clip_norm.")
            if logs:
                # What a step had no item of is null in the file; figures of single groups, GROUP/NAME, stay off the terminal.
                values = {name: float(value) for name, value in metrics.items()}
                row = {name: value if math.isfinite(value) else None for name, value in values.items()} | meter.row(done)
                for writer in writers:
                    writer.write(done, row)
                progress.update(done, {name: value for name, value in values.items() if "/" not in name})
            if saves:
                checkpoints.save(done, state, iterator)
                if stops:
                    preemption.stop(f"{task.name} step {done}")
        for each in (checkpoints, profiler, feed, *writers):
            each.close()
    return state


def _writers(workdir: pathlib.Path, start: int, watch: Watch) -> list[Any]:
    """What takes the rows of metrics: `metrics.jsonl` first; none but in process 0."""
    if jax.process_index():
        return []
    writers: list[Any] = [logging.MetricsFile(workdir / "metrics.jsonl", start)]
    if watch.tensorboard:
        writers.append(logging.TensorBoard(workdir / "tensorboard"))
    if watch.wandb:
        writers.append(logging.WandB(watch.wandb, workdir))
    return writers


def _before(checkpoints: Checkpoints) -> str:
    if checkpoints.latest_step is None:
        return "there is no checkpoint from before"
    last = checkpoints.folder / str(checkpoints.latest_step)
    return f"the checkpoint from before is {last}, and the same command continues from it"
