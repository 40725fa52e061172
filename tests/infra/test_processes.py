"""Training on two processes with two devices each; benchmarks/faults.py breaks them in more ways."""

import jax
import numpy as np
import pytest

from benchmarks import faults
from msg_jax.infra import checkpoint, logging, runtime


def test_two_processes_train_as_one_and_one_continues_their_run(tmp_path):
    """Fifteen steps on a mesh across both processes, then the rest on one device, give the parameters of one device."""
    ended = [faults.ends(process) for process in faults.start_two(tmp_path, "--steps=15")]
    assert [code for code, _ in ended] == [0, 0], ended
    assert ended[0] == ended[1]  # both print the same digest
    ours, theirs = faults.trained(tmp_path), faults.undisturbed()
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    steps = [row["step"] for row in logging.read_metrics(tmp_path / "metrics.jsonl")]
    assert steps == [5, 10, 15, 20, 25, 30]  # written once, by process 0


def test_a_restored_state_and_its_next_batch_are_the_same_on_every_mesh_and_on_two_processes(tmp_path):
    """Parameters, moments and the next batch of a checkpoint from (2, 2, 2), bit for bit."""
    parameters = faults.trained(tmp_path, (2, 2, 2), steps=15)
    state, batch = faults.restored(tmp_path, (2, 2, 2))
    assert state.step == 15 and checkpoint.digest(state.params) == checkpoint.digest(parameters)
    batches = iter(faults.Work(faults.mesh_of((1, 1, 1))).batches())
    for _ in range(15):
        next(batches)
    np.testing.assert_array_equal(batch["x"], next(batches)["x"])
    saved = checkpoint.digest((state, batch))
    for shape in ((8, 1, 1), (1, 1, 1)):
        assert checkpoint.digest(faults.restored(tmp_path, shape)) == saved, shape
    ended = [faults.ends(process) for process in faults.start_two(tmp_path, "--restore")]
    assert ended == [(0, saved)] * 2


def test_a_process_lost_during_a_save_is_not_reported_as_a_storage_error(tmp_path, monkeypatch):
    def lost(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")

    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "save", lost)
    with pytest.raises(jax.errors.JaxRuntimeError) as error:
        faults.trained(tmp_path, steps=5)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert runtime.user_message(error.value).startswith("Process 0 of 2 has lost another (UNKNOWN: Gloo AllGather failed")
