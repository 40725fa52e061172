"""The loop on a task whose answer is known: resumed, killed, sharded and poisoned."""

import dataclasses
import os
import signal

from flax.core import meta
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msg_jax import train
from msg_jax.data import pipeline
from msg_jax.errors import UserError
from msg_jax.infra import checkpoint, logging, preemption
from msg_jax.infra import mesh as mesh_lib
from msg_jax.models.layers import Dense

OPTIMIZER = dict(learning_rate=0.3, warmup_steps=3, final_scale=0.1, b1=0.9, b2=0.98, weight_decay=0.0, clip_norm=10.0)
WEIGHTS = np.arange(8.0, dtype=np.float32).reshape(4, 2) - 3


class Points:
    """x -> WEIGHTS^T x, without noise."""

    split = "train"

    def __len__(self):
        return 64

    def __getitem__(self, i):
        x = np.random.default_rng(i).normal(size=4).astype(np.float32)
        return {"x": x, "y": x @ WEIGHTS}


@dataclasses.dataclass
class Regression(train.Task):
    steps: int = 60
    name: str = "regression"
    poison_at: int | None = None
    stop_at: int | None = None

    def __post_init__(self):
        self.model = Dense(2, axes=("embed", "mlp"))
        self.optimizer = train.make_optimizer(OPTIMIZER, self.steps)

    def init(self, rng):
        return train.create_state(self.model.init(rng, jnp.zeros((1, 4)))["params"], self.optimizer, ema=True)

    def step(self, state, batch, rng, frozen):
        def loss_fn(params):
            noise = 1e-3 * jax.random.normal(rng, batch["y"].shape)
            return jnp.mean((self.model.apply({"params": params}, batch["x"]) - batch["y"] + noise) ** 2)

        loss, gradients = jax.value_and_grad(loss_fn)(state.params)
        if self.poison_at is not None:
            loss = jnp.where(state.step == self.poison_at, jnp.nan, loss)
        return train.apply_gradients(state, gradients, self.optimizer, 0.9), {"loss": loss}

    def batches(self):
        return pipeline.batches(Points(), batch_size=16, seed=1)


def _fit(task, folder, steps, mesh_shape=(1, 1, 1), seed=0):
    devices = jax.devices()[: int(np.prod(mesh_shape))]
    return train.fit(
        task, steps=steps, workdir=folder, mesh=mesh_lib.make_mesh(mesh_shape, devices), seed=seed, log_every=5,
        checkpoint_every=7,
    )


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
    _fit(stopped, tmp_path, 25)  # a run cut short: its last checkpoint is step 25 of the same schedule
    resumed = _fit(Regression(), tmp_path, 60)
    assert checkpoint.digest(resumed) == checkpoint.digest(undisturbed[0])
    assert (tmp_path / "metrics.jsonl").read_text() == (undisturbed[1] / "metrics.jsonl").read_text()


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
    with pytest.raises(UserError, match=r"regression: the loss is nan at step 10; .*learning_rate"):
        _fit(Regression(poison_at=9), tmp_path, 20)
    assert (tmp_path / "checkpoints" / "7").is_dir()


def test_sigterm_is_noted(monkeypatch):
    monkeypatch.setattr(preemption, "_requested", False)
    before = signal.getsignal(signal.SIGTERM)
    preemption.install()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.requested()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_after_sigterm_the_step_is_saved_and_the_exit_code_is_0(undisturbed, tmp_path, monkeypatch):
    calls = iter(range(1, 100))

    def requested():
        if next(calls) == 12:
            preemption._requested = True
        return preemption._requested

    monkeypatch.setattr(preemption, "_requested", False)
    monkeypatch.setattr(preemption, "requested", requested)
    with pytest.raises(SystemExit) as stop:
        _fit(Regression(), tmp_path, 60)
    assert stop.value.code == 0
    assert checkpoint.Checkpoints(tmp_path / "checkpoints").latest_step > 7
    monkeypatch.undo()
    assert checkpoint.digest(_fit(Regression(), tmp_path, 60)) == checkpoint.digest(undisturbed[0])


def test_loaded_parameters_get_their_logical_axes_back():
    boxed = Dense(2).init(jax.random.key(0), jnp.zeros((1, 4)))["params"]
    plain = jax.tree.map(lambda x: x + 1, meta.unbox(boxed))
    again = train.boxed_like(boxed, plain)
    assert again["dense"]["kernel"].names == ("embed", "mlp")
    np.testing.assert_array_equal(again["dense"]["kernel"].value, plain["dense"]["kernel"])


def test_keys_differ_by_seed_purpose_and_step():
    keys = [train.key_for(*parts) for parts in ((0, "a", 0), (0, "a", 1), (0, "b", 0), (1, "a", 0))]
    assert len({tuple(np.asarray(jax.random.key_data(key))) for key in keys}) == 4
