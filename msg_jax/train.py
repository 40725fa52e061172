"""The only training loop. It knows no model: a `Task` supplies state, loss and batches."""

from collections.abc import Callable
import contextlib
import dataclasses
import itertools
import math
import os
from typing import Any

from flax.core import meta
import grain
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import optax

from msg_jax import storage
from msg_jax.config.schema import Optimizer, Training
from msg_jax.errors import UserError
from msg_jax.infra import explain, guard, logging, metering, operations, preemption, runtime
from msg_jax.infra import mesh as mesh_lib
from msg_jax.infra.checkpoint import Checkpoints
from msg_jax.infra.random import key_for
from msg_jax.types import Array, Params, TrainState

Metrics = dict[str, Array]


HELD_OUT_BATCHES = 2
_QUIET = ("learning_rate",)  # in metrics.jsonl, not on the terminal


class Task:
    """One training: a subclass sets `name`, calls `use`, and defines `init`, `loss` and `batches`."""

    name: str
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    ema_decay: float = 0.0
    accumulate: int = 1  # micro-batches per step
    pretrained: Params | None = None  # start from these parameters instead of those of `init`
    frozen: Any = None  # arguments of the step that it never changes, such as frozen networks; may be boxed

    def use(self, section: Training) -> None:
        """Take optimizer, schedule and micro-batches from a section of the config."""
        self.learning_rate = make_schedule(section.optimizer, section.steps)
        self.optimizer = make_optimizer(section.optimizer, self.learning_rate)
        self.accumulate = section.accumulate

    def init(self, rng: Array) -> TrainState:
        """A fresh state; parameters may be boxed with their logical axis names."""
        raise NotImplementedError

    def draw(self, batch: Any, rng: Array, frozen: Any) -> Any:
        """The batch with its pre-drawn random numbers, row by row (B, ...)."""
        return batch

    def loss(self, params: Params, rows: Any, frozen: Any) -> tuple[Array, Metrics]:
        """Mean loss () over the rows, and mean metrics. Pure; no row may depend on another."""
        raise NotImplementedError

    def step(self, state: TrainState, batch: Any, rng: Array, frozen: Any) -> tuple[TrainState, Metrics]:
        """One optimizer step; pure. Metrics are scalars and include `loss` and `grad_norm`."""
        loss, metrics, gradients = self.gradients(state.params, self.draw(batch, rng, frozen), frozen)
        metrics = {"loss": loss, "grad_norm": optax.global_norm(gradients)} | metrics
        return apply_gradients(state, gradients, self.optimizer, self.ema_decay), metrics

    def gradients(self, params: Params, rows: Any, frozen: Any) -> tuple[Array, Metrics, Params]:
        """`loss` with its metrics and gradients, in `accumulate` micro-batches."""
        return mean_gradients(lambda params, rows: self.loss(params, rows, frozen), params, rows, self.accumulate)

    def batches(self) -> grain.IterDataset:
        """Endless batches of this process (dicts of numpy arrays), a function of seed and step alone.

        An entry `id`, a list of strings, names the clips for messages; `step` does not see it.
        """
        raise NotImplementedError

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays of a global batch of `batches`."""
        raise NotImplementedError

    def held_out(self) -> grain.IterDataset | None:
        """Batches of clips that are never trained on, for `held_out_loss`; None if there are none."""
        return None

    def held_out_loss(self, params: Params, batch: Any, rng: Array, frozen: Any) -> Array:
        """The loss () that is logged for held-out batches."""
        return self.loss(params, self.draw(batch, rng, frozen), frozen)[0]


def mean_gradients(
    loss_fn: Callable[[Params, Any], tuple[Array, Metrics]], params: Params, rows: Any, accumulate: int
) -> tuple[Array, Metrics, Params]:
    """Loss, metrics and gradients of a mean over rows, in `accumulate` micro-batches, one in memory at a time.

    The result is that of the whole batch up to rounding, because random numbers are drawn before the batch is cut.
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


def cached_gradients(
    encode: Callable[[Params, Any], Any], loss_fn: Callable[[Any, Params], tuple[Array, Metrics]], params: Params, rows: Any,
    accumulate: int,
) -> tuple[Array, Metrics, Params]:
    """As `mean_gradients`, for a loss that compares all rows: `loss_fn(encode(params, rows), params)`.

    The rows are encoded twice, in micro-batches: once to have the embeddings of all, once for the gradients, from those of the
    loss by the embeddings (GradCache, Gao et al., arXiv 2101.06983). No row of `encode` may depend on another.
    """
    pieces = mesh_lib.micro_batches(rows, accumulate)
    embedded = jax.lax.map(lambda piece: encode(params, piece), pieces)
    compare = jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)
    (loss, metrics), (by_row, direct) = compare(mesh_lib.join_micro_batches(embedded), params)

    def add(total, piece):
        rows, by_row = piece
        (gradients,) = jax.vjp(lambda params: encode(params, rows), params)[1](by_row)
        return jax.tree.map(jnp.add, total, gradients), None

    return loss, metrics, jax.lax.scan(add, direct, (pieces, mesh_lib.micro_batches(by_row, accumulate)))[0]


def make_schedule(config: Optimizer, steps: int) -> optax.Schedule:
    """Linear warm-up, then cosine decay to `final_scale` times the peak."""
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, min(config.warmup_steps, max(steps - 1, 1)), max(steps, 2),
        config.learning_rate * config.final_scale,
    )


def make_optimizer(config: Optimizer, schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW after clipping by global norm. Weight decay is for kernels and embeddings, not for biases, norms and scales.

    The state has the tree of `optax.adamw`; a mask of optax would wrap a part of it, and no older checkpoint would restore.
    """

    def decay(updates: Params, params: Params | None) -> Params:
        return jax.tree.map(lambda g, p: g + config.weight_decay * p if p.ndim > 1 else g, updates, params)

    adamw = optax.chain(
        optax.scale_by_adam(b1=config.b1, b2=config.b2), optax.stateless(decay), optax.scale_by_learning_rate(schedule)
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


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


def trace_step(task: Task, layout: Any, state: TrainState, batch: Any, rng: Array, frozen: Any) -> jax.stages.Traced:
    """The training step for these arguments, or for their shapes with shardings; `layout` are the shardings of the state."""
    return jax.jit(task.step, donate_argnums=0, out_shardings=(layout, None)).trace(state, batch, rng, frozen)


@dataclasses.dataclass(frozen=True)
class Observe:
    """Observability options; they never change the result."""

    limits: guard.Limits = dataclasses.field(default_factory=guard.Limits)
    tensorboard: bool = False
    wandb: str = ""  # project name; empty: off
    profile: tuple[int, int] | None = None  # trace the steps a <= step < b
    explain: bool = False  # print the step's sharding and exit


def fit(
    task: Task,
    *,
    steps: int,
    workdir: str | os.PathLike,
    mesh: Mesh,
    seed: int,
    log_every: int,
    checkpoint_every: int,
    held_out_every: int = 0,
    observe: Observe | None = None,
) -> TrainState:
    """Train `task` for `steps`, resuming from the last checkpoint in `workdir`; return the final state.

    Every random number is a function of (seed, task name, step), so a run that was killed and resumed ends with the same
    bits as one that was not. `workdir/metrics.jsonl` gets loss, gradient norm, learning rate and rates every `log_every`
    steps, and the loss on held-out clips every `held_out_every` steps (0: never) and at the end.

    Raises UserError, naming stage, step and the last checkpoint, if the loss is not finite or jumps, if no batch arrives in
    time, or if a checkpoint cannot be written. A state is saved only after its loss was checked.
    """
    workdir, observe, goodput = storage.path(workdir), observe or Observe(), metering.Goodput()
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
        with goodput.losing("restore"):
            checkpoints = Checkpoints(workdir / "checkpoints")
            state, start = checkpoints.restore(state, iterator)
        if start:
            logging.info("%-13s resumes at step %d", task.name, start)
        if start == steps:
            return state
        writers = _writers(workdir, start, observe)
        losses = guard.LossWatch(observe.limits, [row["loss"] for row in writers[0].rows] if writers else ())
        progress = logging.Progress(task.name, steps, start=start)
        profiler = metering.Profiler(observe.profile, workdir / "profile")
        stop = preemption.Agreement(mesh)
        feed = guard.BatchReader(iterator, observe.limits.data_timeout_sec, task.name)
        held_out = _HeldOut(task, mesh, key_for(seed, f"{task.name}/held_out"))
        all_finite = jax.jit(lambda tree: jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all())
        step_fn: Any = None
        meter: Any = None

        for step in range(start, steps):
            with goodput.losing("wait"), meter.waiting_for_data() if meter else contextlib.nullcontext():
                batch = feed.next(step)
            ids = batch.pop("id", None)
            batch = mesh_lib.put_batch(batch, mesh)
            key = key_for(seed, task.name, step)
            if jax.default_backend() == "cpu":
                jax.block_until_ready((batch, key))  # only then does the step run in this thread (runtime.keep_heap)
            if step_fn is None:
                with goodput.losing("compile"):
                    traced = trace_step(task, layout, state, batch, key, frozen)
                    step_fn = traced.lower().compile()
                    runtime.barrier(f"{task.name} compiled")
                if observe.explain:
                    logging.info("%s", explain.describe(task.name, step_fn, state, mesh))
                    raise SystemExit(0)
                flops = operations.count(traced.jaxpr)
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
                # A metric without items in this step is null in the file. Metrics of groups, NAME/GROUP, stay off the terminal.
                values = {name: float(value) for name, value in metrics.items()}
                values["learning_rate"] = float(np.asarray(task.learning_rate(step)))
                rates = meter.row(done)
                logged_before = (done - 1) // log_every * log_every
                if held_out_every and (done // held_out_every > logged_before // held_out_every or done == steps):
                    with goodput.losing("held_out"):
                        values |= held_out.loss(state, frozen)
                    meter.row(done)  # the next rates begin after the evaluation
                row = {name: value if math.isfinite(value) else None for name, value in values.items()} | rates | goodput.row()
                for writer in writers:
                    writer.write(done, row)
                progress.update(done, {name: value for name, value in values.items() if "/" not in name and name not in _QUIET})
            if saves:
                with goodput.losing("save"):
                    checkpoints.save(done, state, iterator)
                if stops:
                    checkpoints.wait()
                    preemption.stop(f"{task.name} step {done}")
        for each in (checkpoints, profiler, feed, *writers):
            each.close()
    return state


class _HeldOut:
    """The loss on the same few held-out batches with the same random numbers, whenever it is asked for."""

    def __init__(self, task: Task, mesh: Mesh, key: Array):
        self._task, self._mesh, self._key = task, mesh, key
        self._batches: list[Any] | None = None
        self._loss = jax.jit(task.held_out_loss)

    def loss(self, state: TrainState, frozen: Any) -> dict[str, float]:
        if self._batches is None:
            source = self._task.held_out()
            found = [] if source is None else list(itertools.islice(source, HELD_OUT_BATCHES))
            self._batches = [{name: value for name, value in batch.items() if name != "id"} for batch in found]
        params = state.params if state.ema_params is None else state.ema_params
        losses = [
            float(self._loss(params, mesh_lib.put_batch(batch, self._mesh), jax.random.fold_in(self._key, i), frozen))
            for i, batch in enumerate(self._batches)
        ]
        return {"held_out_loss": sum(losses) / len(losses)} if losses else {}


def _writers(workdir: storage.Path, start: int, observe: Observe) -> list[Any]:
    """Writers of metrics, `metrics.jsonl` first; process 0 alone has any."""
    if jax.process_index():
        return []
    writers: list[Any] = [logging.MetricsFile(workdir / "metrics.jsonl", start)]
    if observe.tensorboard:
        writers.append(logging.TensorBoard(workdir / "tensorboard"))
    if observe.wandb:
        writers.append(logging.WandB(observe.wandb, workdir))
    return writers


def _before(checkpoints: Checkpoints) -> str:
    if checkpoints.latest_step is None:
        return "there is no earlier checkpoint"
    last = checkpoints.folder / str(checkpoints.latest_step)
    return f"the last checkpoint is {last}, and the same command continues from it"
