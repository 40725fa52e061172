"""The training loop on a regression with a known answer: resumed, killed, sharded and poisoned."""

import dataclasses
import itertools
import math
import os
import signal
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from msg_jax import train
from msg_jax.config.schema import Optimizer, Training
from msg_jax.data import pipeline
from msg_jax.errors import UserError
from msg_jax.infra import checkpoint, guard, logging, metering, preemption
from msg_jax.infra import mesh as mesh_lib
from msg_jax.infra.random import key_for
from msg_jax.models.layers import Dense

OPTIMIZER = Optimizer(
    learning_rate=0.3, warmup_steps=3, final_scale=0.1, b1=0.9, b2=0.98, weight_decay=0.0, clip_norm=10.0
)
WEIGHTS = np.arange(8.0, dtype=np.float32).reshape(4, 2) - 3


class Points:
    """x -> WEIGHTS^T x, without noise."""

    split = "train"

    def __len__(self):
        return 64

    def __getitem__(self, i):
        x = np.random.default_rng(i).normal(size=4).astype(np.float32)
        return {"id": f"point-{i}", "x": x, "y": x @ WEIGHTS}


@dataclasses.dataclass
class Regression(train.Task):
    steps: int = 60
    name: str = "regression"
    poison_at: int | None = None
    poison: float = float("nan")  # the loss is multiplied by it
    accumulate: int = 1
    ema_decay: float = 0.9
    hang_at: int | None = None

    def __post_init__(self):
        self.model = Dense(2, axes=("embed", "mlp"))
        self.use(Training(steps=self.steps, batch_size=16, optimizer=OPTIMIZER, accumulate=self.accumulate))

    def init(self, rng):
        return train.create_state(self.model.init(rng, jnp.zeros((1, 4)))["params"], self.optimizer, ema=True)

    def draw(self, batch, rng, frozen):
        return batch | {"noise": 1e-3 * jax.random.normal(rng, batch["y"].shape)}

    def loss(self, params, rows, frozen):
        error = self.model.apply({"params": params}, rows["x"]) - rows["y"] + rows["noise"]
        return jnp.mean(error**2), {"bias": jnp.mean(error)}

    def step(self, state, batch, rng, frozen):
        new, metrics = super().step(state, batch, rng, frozen)
        if self.poison_at is not None:
            factor = jnp.where(state.step == self.poison_at, self.poison, 1.0)
            metrics |= {"loss": metrics["loss"] * factor}
        return new, metrics

    def batches(self):
        def hang(point):
            time.sleep(5)
            return point

        return pipeline.batches(Points(), batch_size=16, seed=1, transform=hang if self.hang_at == 0 else None)


def _fit(task, folder, steps, mesh_shape=(1, 1, 1), seed=0, **options):
    devices = jax.devices()[: int(np.prod(mesh_shape))]
    return train.fit(
        task, steps=steps, workdir=folder, mesh=mesh_lib.make_mesh(mesh_shape, devices), seed=seed,
        **dict(log_every=5, checkpoint_every=7) | options,
    )


def _without_rates(row):
    return {name: value for name, value in row.items() if name not in metering.FIELDS}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return _fit(Regression(), folder, 60), folder


def test_it_learns_the_known_weights(undisturbed):
    kernel = undisturbed[0].params["dense"]["kernel"]
    assert float(jnp.abs(kernel - WEIGHTS).max()) < 0.2
    losses = [row["loss"] for row in logging.read_metrics(undisturbed[1] / "metrics.jsonl")]
    assert losses[-1] < 0.01 * losses[0]


def test_a_resumed_run_ends_with_the_same_bits(undisturbed, tmp_path):
    stopped = Regression()
    _fit(stopped, tmp_path, 25)  # its last checkpoint is step 25 of the same schedule
    resumed = _fit(Regression(), tmp_path, 60)
    assert checkpoint.digest(resumed) == checkpoint.digest(undisturbed[0])
    resumed_rows, rows = (logging.read_metrics(folder / "metrics.jsonl") for folder in (tmp_path, undisturbed[1]))
    assert [_without_rates(row) for row in resumed_rows] == [_without_rates(row) for row in rows]


def test_weight_decay_spares_biases_norms_and_scales():
    """Adam's first step is the gradient's sign; decay adds 0.1 x 2 to it. The state is that of optax.adamw."""
    config = Optimizer(learning_rate=0.5, warmup_steps=0, weight_decay=0.1, clip_norm=1e9)
    optimizer = train.make_optimizer(config, optax.constant_schedule(0.5))
    params = {"kernel": jnp.full((1, 1), 2.0), "bias": jnp.full(1, 2.0), "log_scale": jnp.array(2.0)}
    state = train.create_state(params, optimizer, ema=False)
    gradients = jax.tree.map(lambda p: jnp.full_like(p, 3.0), params)
    changed = train.apply_gradients(state, gradients, optimizer).params
    expected = {"kernel": 2 - 0.5 * 1.2, "bias": 2 - 0.5, "log_scale": 2 - 0.5}
    assert {name: leaf.item() for name, leaf in changed.items()} == pytest.approx(expected, rel=1e-6)
    plain = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(0.5))).init(params)
    assert jax.tree.structure(plain) == jax.tree.structure(state.opt_state)


class HeldOut(Regression):
    """The same training, with held-out batches."""

    def held_out(self):
        return pipeline.batches(Points(), batch_size=16, seed=2)


def _error(params, batch, key):
    """Residuals (B, 2) by numpy."""
    noise = 1e-3 * np.asarray(jax.random.normal(key, batch["y"].shape))
    return batch["x"] @ np.asarray(params["dense"]["kernel"]) + np.asarray(params["dense"]["bias"]) - batch["y"] + noise


def _held_out_loss(state):
    batches = iter(HeldOut().held_out())
    key = key_for(0, "regression/held_out")
    losses = [(_error(state.ema_params, next(batches), jax.random.fold_in(key, i)) ** 2).mean() for i in range(2)]
    return np.mean(losses)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_first_rows_have_the_norm_of_the_gradient_and_the_learning_rate(tmp_path, accumulate):
    task = Regression(accumulate=accumulate)
    _fit(task, tmp_path, 10, log_every=1)
    rows = logging.read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 11)) and all(np.isfinite(row["grad_norm"]) for row in rows)
    params = train.meta.unbox(task.init(key_for(0, "regression/init"))).params
    batch = next(iter(task.batches()))
    error = _error(params, batch, key_for(0, "regression", 0))
    gradients = batch["x"].T @ error / 16, error.sum(axis=0) / 16  # of the mean over 16 x 2 squares
    assert rows[0]["grad_norm"] == pytest.approx(math.sqrt(sum((part**2).sum() for part in gradients)), rel=1e-5)

    def rate(step):  # linear from 0 to 0.3 in 3 of 60 steps, then a cosine to 0.03
        return 0.1 * step if step < 3 else 0.03 + 0.27 * (1 + math.cos(math.pi * (step - 3) / 57)) / 2

    assert [row["learning_rate"] for row in rows] == pytest.approx([rate(row["step"] - 1) for row in rows], abs=1e-6)


def test_the_held_out_loss_is_logged_at_its_interval_and_at_the_end(undisturbed, tmp_path):
    every = dict(log_every=2, held_out_every=7)
    early = _fit(HeldOut(), tmp_path / "early", 8, **every)
    state = _fit(HeldOut(), tmp_path / "whole", 60, **every)
    losses = {row["step"]: row.get("held_out_loss") for row in logging.read_metrics(tmp_path / "whole" / "metrics.jsonl")}
    # The first logged step at or after each multiple of 7, and the last step.
    assert [step for step, loss in losses.items() if loss is not None] == [8, 14, 22, 28, 36, 42, 50, 56, 60]
    for at in (early, state):
        assert losses[int(at.step)] == pytest.approx(_held_out_loss(at), rel=1e-4)
    assert checkpoint.digest(state) == checkpoint.digest(undisturbed[0])
    assert not any("held_out_loss" in row for row in logging.read_metrics(undisturbed[1] / "metrics.jsonl"))


def test_a_resumed_run_logs_the_same_held_out_losses(tmp_path):
    every = dict(log_every=10, held_out_every=7)
    _fit(HeldOut(), tmp_path / "whole", 60, **every)
    _fit(HeldOut(), tmp_path / "cut", 28, **every)
    _fit(HeldOut(), tmp_path / "cut", 60, **every)
    whole, cut = (logging.read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut"))
    assert [_without_rates(row) for row in cut if row["step"] != 28] == [_without_rates(row) for row in whole]
    assert all("held_out_loss" in row for row in whole)


def test_rates_leave_the_held_out_evaluation_out(tmp_path, monkeypatch):
    """The clock ticks a second whenever it is read, and jumps by a day in the held-out loss."""
    clock = itertools.count()
    monkeypatch.setattr(metering, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))

    class Slow(HeldOut):
        def held_out_loss(self, *args):
            next(itertools.islice(clock, 86_400, None))
            return super().held_out_loss(*args)

    _fit(Slow(), tmp_path, 20, held_out_every=5)
    assert all(row["steps_per_sec"] > 0.1 for row in logging.read_metrics(tmp_path / "metrics.jsonl"))


def test_another_seed_is_another_run(undisturbed, tmp_path):
    assert checkpoint.digest(_fit(Regression(), tmp_path, 60, seed=1)) != checkpoint.digest(undisturbed[0])


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (2, 4, 1), (1, 2, 4)])
def test_every_mesh_gives_the_parameters_of_one_device(undisturbed, tmp_path, shape):
    state = _fit(Regression(), tmp_path, 60, shape)
    for ours, one in zip(jax.tree.leaves(state.params), jax.tree.leaves(undisturbed[0].params)):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(one), rtol=1e-4, atol=1e-5)


def test_a_run_moves_to_another_mesh(undisturbed, tmp_path):
    _fit(Regression(), tmp_path, 25, (2, 2, 2))
    state = _fit(Regression(), tmp_path, 60, (8, 1, 1))
    for ours, one in zip(jax.tree.leaves(state.params), jax.tree.leaves(undisturbed[0].params)):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(one), rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path):
    words = r"regression: the loss is nan at step 10 \(clips point-\d+, .* and 8 more\); .*checkpoints/7, .*learning_rate"
    with pytest.raises(UserError, match=words):
        _fit(Regression(poison_at=9), tmp_path, 20)
    assert (tmp_path / "checkpoints" / "7").is_dir()


def test_a_step_is_not_saved_before_its_loss_is_checked(tmp_path):
    """Step 7 would be saved: the bad loss of step 6 is found first, although rows are written every 50 steps only."""
    with pytest.raises(UserError, match=r"loss is nan at step 6 .*there is no earlier checkpoint"):
        _fit(Regression(poison_at=5), tmp_path, 60, log_every=50)
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


def test_a_loss_that_jumps_stops_the_run_and_a_changed_limit_continues_it(undisturbed, tmp_path):
    words = r"at step 38 .* more than config.guard.spike=20 times the running median .*checkpoints/35"
    with pytest.raises(UserError, match=words):
        _fit(Regression(poison_at=37, poison=1e4), tmp_path, 60)
    lenient = train.Observe(guard.Limits(spike=0))
    state = _fit(Regression(poison_at=37, poison=1e4), tmp_path, 60, observe=lenient)
    assert checkpoint.digest(state) == checkpoint.digest(undisturbed[0])


def test_a_jump_needs_enough_losses_for_a_median():
    watch = guard.LossWatch(guard.Limits(spike=3, window=40), [1.0] * 19)
    watch.add(20, 3.5, None)
    assert watch.check() is None  # the twentieth: now there is a median
    watch.add(21, 3.0, None)
    assert watch.check() is None
    watch.add(22, 3.01, ["a"])
    watch.add(23, float("nan"), ["b"])
    assert "3.01 at step 22 (clips a)" in watch.check()


def test_a_reader_that_hangs_is_a_sentence(tmp_path):
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"no batch came within config.guard.data_timeout_sec=0.5 s at step 0"):
        _fit(Regression(hang_at=0), tmp_path, 5, observe=train.Observe(guard.Limits(data_timeout_sec=0.5)))
    assert time.monotonic() - begun < 4


@pytest.mark.parametrize(("accumulate", "shape"), [(4, (1, 1, 1)), (2, (2, 2, 2))])
def test_micro_batches_give_the_parameters_of_the_whole_batch(undisturbed, tmp_path, accumulate, shape):
    """Noise included: after 60 steps of Adam nothing differs by more than rounding."""
    state = _fit(Regression(accumulate=accumulate), tmp_path, 60, shape)
    for ours, whole in zip(jax.tree.leaves(state.params), jax.tree.leaves(undisturbed[0].params)):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(whole), rtol=1e-5, atol=1e-5)


def test_micro_batches_must_divide_the_batch(tmp_path):
    with pytest.raises(UserError, match="accumulate=3 cannot cut a batch of 16 on 1 devices: make batch_size a multiple of 3"):
        _fit(Regression(accumulate=3), tmp_path, 5)


def test_goodput_is_the_share_of_the_time_that_nothing_else_took(monkeypatch):
    """Of 100 s, 20 s went into compiling, twice 5 s into saving and 10 s into waiting."""
    now = iter([0, 0, 20, 30, 35, 40, 50, 60, 65, 100])
    monkeypatch.setattr(metering.time, "monotonic", lambda: next(now))
    goodput = metering.Goodput()
    for name in ("compile", "save", "wait", "save"):
        with goodput.losing(name):
            pass
    losses = {"restore_sec": 0, "compile_sec": 20, "wait_sec": 10, "save_sec": 10, "held_out_sec": 0}
    assert goodput.row() == {"goodput": pytest.approx(0.6)} | losses


def test_rows_of_metrics_have_rates(undisturbed):
    rows = logging.read_metrics(undisturbed[1] / "metrics.jsonl")
    for row in rows:
        assert row["examples_per_sec"] == pytest.approx(16 * row["steps_per_sec"])
        assert 0 <= row["data_wait_share"] <= 1
        assert 0 < row["goodput"] < 1 and row["compile_sec"] > 0 and row["restore_sec"] > 0 and row["held_out_sec"] == 0
        assert row["mfu"] is None and "cpu" in row["mfu_reason"]
    # a forward and a backward product of (16, 4) x (4, 2); the input has no gradient
    flops = rows[0]["flops_per_sec"] / rows[0]["steps_per_sec"]
    assert flops == pytest.approx(2 * 2 * 16 * 4 * 2)


@pytest.mark.parametrize(("kind", "flops"), [
    ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA L40S", 362e12), ("TPU v5 lite", 197e12),
    ("TPU v5", 459e12), ("TPU v5e", 197e12), ("TPU v6 lite", 918e12),
])
def test_mfu_is_a_number_on_devices_of_the_table(kind, flops):
    """2e12 operations a step on two devices."""
    device = type("Device", (), {"device_kind": kind})
    row = metering.Meter(2e12, 16, [device, device]).row(3)
    assert row["flops_per_sec"] == pytest.approx(2e12 * row["steps_per_sec"])
    assert row["mfu"] == pytest.approx(row["steps_per_sec"] * 1e12 / flops)


def test_a_trace_of_some_steps_and_tensorboard_files(undisturbed, tmp_path):
    pytest.importorskip("tensorboardX")
    state = _fit(Regression(), tmp_path, 60, observe=train.Observe(profile=(3, 5), tensorboard=True))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    (events,) = (tmp_path / "tensorboard").glob("events.*")
    assert b"loss" in events.read_bytes()
    assert checkpoint.digest(state) == checkpoint.digest(undisturbed[0])


@pytest.mark.parametrize("field", ["tensorboard", "wandb"])
def test_a_missing_writer_is_a_sentence(tmp_path, monkeypatch, field):
    monkeypatch.setitem(sys.modules, {"tensorboard": "tensorboardX"}.get(field, field), None)
    with pytest.raises(UserError, match=f"config.log.{field}=.* needs the package"):
        _fit(Regression(), tmp_path, 5, observe=train.Observe(**{field: "yes"}))


def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(undisturbed, tmp_path):
    _fit(Regression(), tmp_path, 25)
    files = [path for path in (tmp_path / "checkpoints" / "25").rglob("*") if path.is_file() and path.stat().st_size]
    _flip(max(files, key=lambda path: path.stat().st_size))
    state = _fit(Regression(), tmp_path, 60)
    assert [path.name for path in (tmp_path / "damaged").iterdir()] == ["25-0"]
    assert checkpoint.digest(state) == checkpoint.digest(undisturbed[0])


def test_damaged_checkpoints_without_a_good_one_are_a_sentence(tmp_path):
    _fit(Regression(), tmp_path, 25)
    for step in ("21", "25"):
        _flip(next((tmp_path / "checkpoints" / step).rglob("_METADATA")))
    with pytest.raises(UserError, match=r"checkpoints/21 cannot be restored \(.*_METADATA is not as it was written\).* delete"):
        _fit(Regression(), tmp_path, 60)


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def test_a_full_disk_is_a_sentence_and_the_run_continues(undisturbed, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        saves = iter([checkpoint.ocp.CheckpointManager.save, full])
        real = checkpoint.ocp.CheckpointManager.save
        broken.setattr(checkpoint.ocp.CheckpointManager, "save", lambda *a, **k: next(saves, real)(*a, **k))
        words = r"step 14 cannot be written to .*No space left.*the one of step 7 stands: make room"
        with pytest.raises(UserError, match=words):
            _fit(Regression(), tmp_path, 60)
    assert checkpoint.digest(_fit(Regression(), tmp_path, 60)) == checkpoint.digest(undisturbed[0])


def test_sigterm_is_noted(monkeypatch):
    monkeypatch.setattr(preemption, "_requested", False)
    before = signal.getsignal(signal.SIGTERM)
    preemption.install()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.requested()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_after_sigterm_the_step_is_saved_and_the_exit_code_is_143(undisturbed, tmp_path, monkeypatch):
    calls = iter(range(1, 100))

    def requested():
        if next(calls) == 12:
            preemption._requested = True
        return preemption._requested

    monkeypatch.setattr(preemption, "_requested", False)
    monkeypatch.setattr(preemption, "requested", requested)
    with pytest.raises(SystemExit) as stop:
        _fit(Regression(), tmp_path, 60)
    assert stop.value.code == preemption.EXIT_CODE == 143
    assert checkpoint.Checkpoints(tmp_path / "checkpoints").latest_step > 7
    monkeypatch.undo()
    assert checkpoint.digest(_fit(Regression(), tmp_path, 60)) == checkpoint.digest(undisturbed[0])


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4, 2)])
def test_training_starts_from_pretrained_parameters_sharded_as_fresh_ones(tmp_path, shape):
    given = {"dense": {"kernel": jnp.asarray(WEIGHTS), "bias": jnp.zeros(2)}}  # the answer
    task = Regression()
    fresh = _fit(task, tmp_path / "fresh", 1, shape)
    task.pretrained = mesh_lib.replicate(given, mesh_lib.make_mesh(shape, jax.devices()[: math.prod(shape)]))
    started = _fit(task, tmp_path / "started", 1, shape)
    assert float(jnp.abs(started.params["dense"]["kernel"] - WEIGHTS).max()) < 1e-3  # a first step of the warm-up is small
    assert float(jnp.abs(started.ema_params["dense"]["kernel"] - WEIGHTS).max()) < 1e-3
    assert float(jnp.abs(fresh.params["dense"]["kernel"] - WEIGHTS).max()) > 1
    assert jax.tree.map(lambda x: x.sharding, started) == jax.tree.map(lambda x: x.sharding, fresh)
    np.testing.assert_array_equal(task.pretrained["dense"]["kernel"], WEIGHTS)  # the step must not donate them


def test_keys_differ_by_seed_purpose_and_step():
    keys = [key_for(*parts) for parts in ((0, "a", 0), (0, "a", 1), (0, "b", 0), (1, "a", 0))]
    assert len({tuple(np.asarray(jax.random.key_data(key))) for key in keys}) == 4


def test_explain_prints_the_step_and_ends_the_run(tmp_path, monkeypatch):
    logged = []
    monkeypatch.setattr(train.logging, "info", lambda message, *args: logged.append(message % args))
    with pytest.raises(SystemExit) as stop:
        _fit(Regression(), tmp_path, 5, (2, 2, 2), observe=train.Observe(explain=True))
    assert stop.value.code == 0
    assert "regression on 8 devices (data 2, fsdp 2, tensor 2)" in logged[-1] and "all-reduce" in logged[-1]
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))
