"""python benchmarks/faults.py [--only=WORDS] [--json=FILE]

Inject faults into a small training, and check that each is reported and that the training recovers.

A case holds if the error message is the expected one and, where the training can continue, it ends with the same bits as an
undisturbed one. Exits with code 1 if a case does not hold.
"""

import argparse
from collections.abc import Callable
import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "--xla_force_host_platform_device_count=8")  # workers have it set
os.environ["JAX_PLATFORMS"] = "cpu"

from flax.core import meta
import jax
import jax.numpy as jnp
import numpy as np

from msg_jax import train
from msg_jax.config.schema import Optimizer, Training
from msg_jax.data import pipeline
from msg_jax.data.features import FeatureSource, FeatureWriter
from msg_jax.infra import checkpoint, guard, record, runtime
from msg_jax.infra import mesh as mesh_lib
from msg_jax.models.layers import Dense

ROOT = pathlib.Path(__file__).parents[1]
STEPS, SAVE = 30, 5
TRAINING = Training(
    steps=STEPS, batch_size=16,
    optimizer=Optimizer(learning_rate=0.1, warmup_steps=3, final_scale=0.1, weight_decay=0.0, clip_norm=10.0),
)


class Points:
    """A source of 64 random points and their targets."""

    split = "train"

    def __len__(self):
        return 64

    def __getitem__(self, i):
        x = np.random.default_rng(i).normal(size=8).astype(np.float32)
        return {"id": f"point-{i}", "x": x, "y": x[:4] - 1}


@dataclasses.dataclass
class Work(train.Task):
    """A small regression with a fault in it."""

    mesh: jax.sharding.Mesh
    at: int = -1  # step of the faults in the loss and the parameters
    fault: str = ""  # nan, inf or spike: in the loss; parameters; hang or disk: in the input
    pause_sec: float = 0.0  # per step
    name: str = "work"

    def __post_init__(self):
        self.model = Dense(4, axes=("embed", "mlp"))
        self.use(TRAINING)

    def init(self, rng):
        return train.create_state(self.model.init(rng, jnp.zeros((1, 8)))["params"], self.optimizer, ema=False)

    def loss(self, params, rows, frozen):
        return jnp.mean((self.model.apply({"params": params}, rows["x"]) - rows["y"]) ** 2), {}

    def step(self, state, batch, rng, frozen):
        new, metrics = super().step(state, batch, rng, frozen)
        here = state.step == self.at
        factor = {"nan": jnp.nan, "inf": jnp.inf, "spike": 1e5}.get(self.fault, 1.0)
        metrics |= {"loss": jnp.where(here, metrics["loss"] * factor, metrics["loss"])}
        if self.fault == "parameters":
            new = new.replace(params=jax.tree.map(lambda x: jnp.where(here, jnp.nan, x), new.params))
        return new, metrics

    def batches(self):
        def disturbed(point):
            time.sleep(self.pause_sec / TRAINING.batch_size)
            if self.fault == "hang":
                time.sleep(20)
            if self.fault == "disk":
                raise OSError(5, "Input/output error", "/data/clip.mp4")
            return point

        return pipeline.batches(
            Points(), batch_size=TRAINING.batch_size, seed=1, transform=disturbed, read_threads=1,
            rows=mesh_lib.local_rows(self.mesh, TRAINING.batch_size),
        )


mesh_lib.SMALLEST_SHARD = 1  # its regression has nothing that a mesh would otherwise split


def mesh_of(shape) -> jax.sharding.Mesh:
    """A mesh of this process's first devices or, with several processes, of all devices."""
    return mesh_lib.make_mesh(shape, jax.devices()[: math.prod(shape)] if jax.process_count() == 1 else jax.devices())


def trained(folder, shape=(1, 1, 1), steps=STEPS, **work) -> dict:
    """Train and return the parameters."""
    mesh = mesh_of(shape)
    observe = train.Observe(guard.Limits(data_timeout_sec=2.0 if work.get("fault") == "hang" else 60.0))
    state = train.fit(
        Work(mesh, **work), steps=steps, workdir=folder, mesh=mesh, seed=0, log_every=SAVE, checkpoint_every=SAVE,
        observe=observe,
    )
    return mesh_lib.to_host(state.params)


def fit(*args, **kwargs) -> str:
    """Train and return the digest of the parameters."""
    return checkpoint.digest(trained(*args, **kwargs))


def restored(folder, shape=(1, 1, 1)) -> tuple[dict, dict]:
    """The state of a training's latest checkpoint and the batch that comes next, as whole numpy arrays."""
    mesh = mesh_of(shape)
    task, key = Work(mesh), jax.random.key(0)
    with jax.set_mesh(mesh):
        layout = mesh_lib.shardings(jax.eval_shape(task.init, key), mesh)
        fresh = jax.jit(lambda key: meta.unbox(task.init(key)), out_shardings=layout)(key)
        iterator = iter(task.batches())
        state, _ = checkpoint.Checkpoints(folder / "checkpoints").restore(fresh, iterator)
        batch = {name: value for name, value in next(iterator).items() if name != "id"}
        return mesh_lib.to_host((state, mesh_lib.put_batch(batch, mesh)))


# The cases below start workers: processes that take part in a training.


def worker(arguments: argparse.Namespace) -> None:
    """Train, or restore, and print a digest."""
    with runtime.user_errors():
        if arguments.file_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (arguments.file_bytes, arguments.file_bytes))
        runtime.start()
        shape = tuple(int(size) for size in arguments.mesh.split(","))
        folder = pathlib.Path(arguments.worker)
        if arguments.restore:
            print(checkpoint.digest(restored(folder, shape)), flush=True)
        else:
            print(fit(folder, shape, arguments.steps, pause_sec=arguments.pause), flush=True)


def start(folder, *flags, devices=1, **variables) -> subprocess.Popen:
    """Start a worker with its own virtual devices and environment variables."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_NUM")}
    environment |= {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "PYTHONPATH": str(ROOT)} | variables
    command = [sys.executable, __file__, f"--worker={folder}", *flags]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_two(folder, *flags, count=2) -> list[subprocess.Popen]:
    """Start the first `count` workers of a training of two, with two devices each."""
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    common = dict(JAX_NUM_PROCESSES="2", JAX_COORDINATOR_ADDRESS=f"localhost:{port}", JAX_START_TIMEOUT_SEC="60")
    return [start(folder, "--mesh=1,2,2", *flags, devices=2, **common, JAX_PROCESS_ID=str(i)) for i in range(count)]


def ends(process: subprocess.Popen, within: float = 120) -> tuple[int, str]:
    """Wait for a worker; return its exit code and its last message."""
    try:
        out, err = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return -1, f"still running after {within:g} s"
    messages = [line for line in err.splitlines() if line.startswith(("error:", "Stopped"))]
    return process.returncode, (messages or out.strip().splitlines() or [err[-200:]])[-1]


def wait_for_step(folder: pathlib.Path, step: int) -> None:
    """Wait until a training has saved a step, for two minutes at most."""
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / str(step)).exists() and time.monotonic() < deadline:
        time.sleep(0.1)


# A case injects a fault into a training in a fresh folder, and returns what it observed.

CASES: list[tuple[str, str, Callable[[pathlib.Path], str]]] = []
"""(injected fault, expected observation as a regular expression, function)."""


def case(injected: str, expected: str):
    """Decorator that adds a function to CASES."""

    def add(function):
        CASES.append((injected, expected, function))
        return function

    return add


def message_of(function: Callable[[], object]) -> str:
    """The error message that a user would see."""
    try:
        return f"no error: {function()}"
    except Exception as error:
        return runtime.user_message(error) or f"TRACEBACK {type(error).__name__}: {error}"


def continued(folder, shape=(1, 1, 1)) -> str:
    """Continue the training after the fault and compare it with an undisturbed one: same bits, or within 1e-4."""
    ours, theirs = trained(folder, shape), undisturbed()
    if checkpoint.digest(ours) == checkpoint.digest(theirs):
        return "continued: same bits"
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs))
    same = all(np.linalg.norm(a - b) < 1e-4 * np.linalg.norm(b) for a, b in pairs)
    return "continued: close" if same else "continued: OTHER parameters"


@functools.cache
def undisturbed() -> dict:
    """The parameters of a training on one device without a fault."""
    with tempfile.TemporaryDirectory() as folder:
        return trained(folder)


def flip(path: pathlib.Path, bit: int = 3) -> None:
    """Flip a bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1 << bit
    path.write_bytes(data)


for _fault, _message in (("nan", "loss is nan at step 13"), ("inf", "loss is inf at step 13"),
                         ("parameters", "loss is nan at step 14")):
    @case(f"{_fault} at step 13", rf"{_message} \(clips point-.*checkpoints/10.*continued: same bits")
    def _(folder, fault=_fault):
        return message_of(lambda: fit(folder, at=12, fault=fault)) + " / " + continued(folder)


@case("parameters that are not finite before a save", r"parameters are not finite at step 15; .*checkpoints/10.*same bits")
def _(folder):
    return message_of(lambda: fit(folder, at=14, fault="parameters")) + " / " + continued(folder)


@case("a loss 100000 times the median", r"at step 26 .*more than config.guard.spike=20 times the running median.*25.*same bits")
def _(folder):
    return message_of(lambda: fit(folder, at=25, fault="spike")) + " / " + continued(folder)


@case("a reader that hangs", r"no batch came within config.guard.data_timeout_sec=2 s at step 0.*same bits")
def _(folder):
    return message_of(lambda: fit(folder, fault="hang")) + " / " + continued(folder)


@case("a disk that fails while a clip is read", r"/data/clip.mp4: Input/output error; .*same bits")
def _(folder):
    return message_of(lambda: fit(folder, fault="disk")) + " / " + continued(folder)


@case("a flipped bit in any file of the newest checkpoint", r"all of [1-9]\d* flips found, continued: same bits")
def _(folder):
    fit(folder / "whole", steps=15)
    files = [path for path in sorted((folder / "whole/checkpoints/15").rglob("*")) if path.is_file() and path.stat().st_size]
    found = 0
    for i, path in enumerate(files):
        copy = folder / f"copy{i}"
        shutil.copytree(folder / "whole", copy)
        flip(copy / path.relative_to(folder / "whole"), i % 8)
        found += checkpoint.Checkpoints(copy / "checkpoints").latest_step == 10 and (copy / "damaged/15-0").is_dir()
    return f"{'all' if found == len(files) else found} of {len(files)} flips found, " + continued(folder / "copy0")


@case("a missing checkpoint file", r"15-0, continued: same bits")
def _(folder):
    fit(folder, steps=15)
    next((folder / "checkpoints/15").rglob("_METADATA")).unlink()
    done = continued(folder)
    return f"{next((folder / 'damaged').iterdir()).name}, {done}"


@case("a truncated checkpoint file", r"15-0, continued: same bits")
def _(folder):
    fit(folder, steps=15)
    largest = max((path for path in (folder / "checkpoints/15").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-7])
    done = continued(folder)
    return f"{next((folder / 'damaged').iterdir()).name}, {done}"


@case("both checkpoints damaged", r"checkpoints/10 cannot be restored \(.*not as it was written\), and no older one is left")
def _(folder):
    fit(folder, steps=15)
    for path in (folder / "checkpoints").glob("*/state/_METADATA"):
        flip(path)
    return message_of(lambda: fit(folder))


@case("a half-written checkpoint", r"continued: same bits")
def _(folder):
    fit(folder, steps=15)
    shutil.copytree(folder / "checkpoints/15/state", folder / "checkpoints/20.orbax-checkpoint-tmp-1/state")
    return continued(folder)


@case("a truncated last line of metrics.jsonl", r"6 rows, continued: same bits")
def _(folder):
    fit(folder, steps=15)
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 20, "lo')
    done = continued(folder)
    return f"{len(path.read_text().splitlines())} rows, {done}"


@case("no space for a checkpoint", r"step 10 cannot be written to .*No space left.*step 5 stands: make room.*same bits")
def _(folder):
    manager, real = checkpoint.ocp.CheckpointManager, checkpoint.ocp.CheckpointManager.save

    def full(self, step, *args, **kwargs):
        if step == 10:
            raise OSError(28, "No space left on device")
        return real(self, step, *args, **kwargs)

    manager.save = full
    try:
        message = message_of(lambda: fit(folder))
    finally:
        manager.save = real
    return message + " / " + continued(folder)


@case("files limited to 200 bytes (RLIMIT_FSIZE)", r"2 error: .*(File too large|cannot be written).*same bits")
def _(folder):
    code, message = ends(start(folder, "--file_bytes=200"))
    return f"{code} {message} / {continued(folder)}"


@case("a full file system (tmpfs of 48 kB)", r"2 error: .*No space left on device|not run")
def _(folder):
    place = folder / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(place)], capture_output=True).returncode:
        return "not run: no permission to mount"
    try:
        code, message = ends(start(place))
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)
    return f"{code} {message}"


@case("a workdir that cannot be created", r"2 error: .*(Not a directory|NotADirectory)")
def _(folder):
    (folder / "file").write_text("")
    code, message = ends(start(folder / "file" / "run"))
    return f"{code} {message}"


@case("SIGTERM in the middle", r"143 Stopped by SIGTERM at work step \d+; .* within 30 s / continued: same bits")
def _(folder):
    process = start(folder, "--pause=0.3")
    wait_for_step(folder, 5)
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, message = ends(process)
    late = "within 30 s" if time.monotonic() - begun < 30 else "LATE"
    return f"{code} {message} {late} / {continued(folder)}"


@case("SIGTERM, then another mesh", r"143 Stopped .*/ continued: (close|same)")
def _(folder):
    process = start(folder, "--pause=0.3", "--mesh=2,2,2", devices=8)
    wait_for_step(folder, 5)
    process.send_signal(signal.SIGTERM)
    code, message = ends(process)
    return f"{code} {message} / {continued(folder, (1, 4, 1))}"


@case("SIGKILL in the middle", r"-9 / continued: same bits")
def _(folder):
    process = start(folder, "--pause=0.3")
    wait_for_step(folder, 5)
    process.kill()
    return f"{ends(process)[0]} / {continued(folder)}"


@case("SIGKILL three times at different moments", r"-9 -9 -9 / continued: same bits")
def _(folder):
    codes = []
    for i in range(3):
        process = start(folder, "--pause=0.5")
        wait_for_step(folder, 5)
        time.sleep(0.4 * (i + 1))
        process.kill()
        codes.append(str(ends(process)[0]))
    return f"{' '.join(codes)} / {continued(folder)}"


@case("one of two processes gets SIGTERM",
      r"143 Stopped by SIGTERM at work (step \d+); .*143 Stopped by SIGTERM at work \1; .*continued: (close|same)")
def _(folder):
    processes = start_two(folder, "--pause=0.3")
    wait_for_step(folder, 5)
    processes[1].send_signal(signal.SIGTERM)
    ended = [ends(process) for process in processes]
    return " ".join(f"{code} {message}" for code, message in ended) + f" / {continued(folder, (2, 2, 2))}"


@case("one of two processes is killed", r"(75 error: Process 0 of 2 has lost another \(|-6 ).*continued: (close|same)")
def _(folder):
    processes = start_two(folder, "--pause=0.3")
    wait_for_step(folder, 5)
    processes[1].kill()
    ends(processes[1])
    begun = time.monotonic()
    code, message = ends(processes[0], within=150)
    return f"{code} {message} ({time.monotonic() - begun:.0f} s) / {continued(folder, (2, 2, 2))}"


@case("one of two processes never starts", r"2 error: Processes 1 of 2 are missing, after 60 s")
def _(folder):
    (process,) = start_two(folder, count=1)
    code, message = ends(process)
    return f"{code} {message}"


@case("the first of two processes never starts", r"2 error: Process 0 is missing at localhost:\d+, after 3 s")
def _(folder):
    place = dict(JAX_NUM_PROCESSES="2", JAX_COORDINATOR_ADDRESS="localhost:9", JAX_PROCESS_ID="1", JAX_START_TIMEOUT_SEC="3")
    code, message = ends(start(folder, **place))
    return f"{code} {message}"


@case("fewer devices than JAX_NUM_DEVICES", r"2 error: JAX_NUM_DEVICES=8 but JAX found 1: correct")
def _(folder):
    code, message = ends(start(folder, JAX_NUM_DEVICES="8"))
    return f"{code} {message}"


@case("a coordinator address without a process number", r"2 error: JAX_NUM_PROCESSES, JAX_COORDINATOR_ADDRESS and JAX_")
def _(folder):
    code, message = ends(start(folder, JAX_NUM_PROCESSES="2", JAX_COORDINATOR_ADDRESS="localhost:9"))
    return f"{code} {message}"


@case("a training of two processes that one continues alone", r"continued: (close|same)")
def _(folder):
    for process in start_two(folder, "--steps=15"):
        ends(process)
    alone = checkpoint.Checkpoints(folder / "checkpoints").latest_step
    return continued(folder) if alone == 15 else f"stopped at {alone}"


@case("a mesh that does not fit", r"config.mesh=\(3, 1, 1\) does not fit 3? ?.*devices")
def _(folder):
    return message_of(lambda: mesh_lib.make_mesh((3, 1, 1)))


@case("a flipped bit in an exported network",
      r"The network at .* cannot be read \(.* is not as it was written\); delete that folder")
def _(folder):
    checkpoint.export(folder / "params", {"x": np.arange(1000.0)})
    flip(max((path for path in (folder / "params").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size))
    return message_of(lambda: checkpoint.load(folder / "params"))


@case("a missing exported network", r"No network is stored at .*: run its stage first")
def _(folder):
    return message_of(lambda: checkpoint.load(folder / "params"))


@case("a flipped bit in a shard of features", r"A shard in /features cannot be read \(Corrupted .*delete")
def _(folder):
    writer = FeatureWriter(folder / "features", 4, 4)
    for shard, indices in writer.missing:
        writer.write(shard, [str(i) for i in indices], [{"x": np.full(500, i, np.float32)} for i in indices])
    writer.finish()
    flip(folder / "features/shard-00000.array_record")
    return message_of(lambda: [FeatureSource(folder / "features")[i]["x"].sum() for i in range(4)])


@case("a truncated run.json", r"run.json is damaged .*: restore it, or delete")
def _(folder):
    (folder / "run.json").write_text(json.dumps({"stage": "base", "finished": True})[:-3])
    return message_of(lambda: record.read_record(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the cases whose description contains these words")
    parser.add_argument("--json")
    for name, kind, default in (("worker", str, None), ("mesh", str, "1,1,1"), ("steps", int, STEPS), ("pause", float, 0.0),
                                ("file_bytes", int, 0)):
        parser.add_argument(f"--{name}", type=kind, default=default, help=argparse.SUPPRESS)
    parser.add_argument("--restore", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(arguments)
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.FATAL)
    rows, begun = [], time.monotonic()
    for injected, expected, function in CASES:
        if arguments.only not in injected:
            continue
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
            try:
                observed = function(pathlib.Path(folder))
            except Exception as error:
                observed = f"TRACEBACK {type(error).__name__}: {error}"
            observed = observed.replace(folder, "").replace("\n", " ")
        holds = re.search(expected, observed) is not None
        rows.append({"injected": injected, "expected": expected, "observed": observed, "holds": holds})
        print(f"{'holds' if holds else 'FAILS'}  {injected}\n       {observed[:300]}", flush=True)
    failed = [row for row in rows if not row["holds"]]
    print(f"{len(rows)} cases, {len(failed)} failed, {time.monotonic() - begun:.0f} s")
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(rows, indent=1))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
