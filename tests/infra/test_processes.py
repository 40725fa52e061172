"""Training on two processes with two devices each; benchmarks/faults.py breaks them in more ways."""

import ctypes
import json
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks import faults
from msg_jax.errors import UserError
from msg_jax.infra import checkpoint, logging, runtime
from tests.conftest import environment


def test_two_processes_train_as_one_and_one_continues_their_run(tmp_path):
    """Fifteen steps on a mesh across both processes, then the rest on one device, give the parameters of one device."""
    ended = [faults.ends(process) for process in faults.start_two(tmp_path, "--steps=15")]
    assert [code for code, _ in ended] == [0, 0], ended
    assert ended[0] == ended[1]  # both print the same digest
    saved = tmp_path / "checkpoints" / "15"
    first, second = (set(json.loads((saved / name).read_text())) for name in ("sha256.json", "sha256.1.json"))
    assert second == {name for name in first | second if "ocdbt.process_1/" in name} and not first & second
    sums = {"sha256.json", "sha256.1.json"}
    assert first | second | sums == {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()}
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


@pytest.mark.parametrize(("error", "code"), [
    (jax.errors.JaxRuntimeError("UNKNOWN: Connection closed by peer"), 75), (UserError("The clip is too short."), 2),
    (OSError(28, "No space left on device", "/run/metrics.jsonl"), 2),
])
def test_launchers_can_tell_a_lost_process_from_a_mistake_of_the_user(error, code, monkeypatch):
    codes = []
    monkeypatch.setattr(runtime, "leave", codes.append)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with runtime.user_errors():
        raise error
    assert codes == [code]


_STEPS = """
import resource
import jax, jax.numpy as jnp
from msg_jax.infra import runtime
runtime.start()
step = jax.jit(lambda x: jnp.tanh(jnp.tanh(x @ x[:1024].T) @ x[:1024]).sum())  # 64 MB between the products
x = jnp.ones((16384, 64))
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_a_step_on_a_cpu_finds_the_memory_of_the_step_before():
    """The system clears the 64 MB once, in pages of 4 kB at least, and not at each step."""
    as_users_have = environment() | {"XLA_FLAGS": ""}  # the tests' code, which is not optimised, allocates in other threads
    ended = subprocess.run([sys.executable, "-c", _STEPS], env=as_users_have, capture_output=True, text=True, check=True)
    first, *later = map(int, ended.stdout.split())
    assert min(later) < 1000 < 10_000 < first


_CHECKS = """
import pathlib
from msg_jax.infra import runtime
with runtime.user_errors():
    runtime.start()
    runtime._SHARED_SEC = 1
    runtime.check_shared(pathlib.Path("../both"))
    print("both is shared", flush=True)
    runtime.check_shared(pathlib.Path("run"))
"""


def test_two_processes_without_a_shared_workdir_say_so(tmp_path):
    """Both processes see the folder `../both`, but each has its own `run`."""
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    both = environment() | dict(JAX_NUM_PROCESSES="2", JAX_COORDINATOR_ADDRESS=f"localhost:{port}")
    processes = []
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        processes.append(subprocess.Popen(
            [sys.executable, "-c", _CHECKS], env=both | dict(JAX_PROCESS_ID=str(i)), cwd=tmp_path / str(i),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ))
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 2, err
        assert "both is shared" in out
        assert err.strip().splitlines()[-1].startswith(
            "error: The workdir run is not shared between the processes: 1 of 2 do not see what process 0 writes there; put ")
    assert [list((tmp_path / folder).iterdir()) for folder in ("both", "0/run")] == [[], []]  # the tokens are gone
