"""python benchmarks/meshes.py [--stages=judge,sf_cavp,...] [--meshes=8,1,1;...] [--steps=10] [--float64] [--workdir=DIR]
[--json=FILE]

Compare every training stage on meshes of eight virtual CPU devices with one device, at the smoke preset.

The columns of the table (docs/SCALING.md) are relative L2 differences |a - b| / |b| of the tensor that differs most:

    a step     of Adam's first moment after one step from the same state of one device, median over the steps
    worst      the same, maximum over the steps
    10 steps   of the parameters after all steps in a row

A wrong mesh differs in every step. Now and then rounding opens a ReLU in one program and closes it in the other; that shows in
the last two columns only. The row `nudged` says how large `10 steps` may be: it is a second training on one device, whose
initial parameters are changed by a factor of about 1 + 1e-7.

The upstream stages are made once, on one device, and kept with `--workdir`. With `--float64` the same programs round at 1e-16,
so a difference that remains is not rounding. Exits with code 1 if `a step` exceeds 1e-4.

On several processes, with the stages that an earlier call on one device left in `--workdir`:

    python benchmarks/meshes.py --workdir=DIR --meshes=
    for i in 0 1; do
      JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=$i JAX_COORDINATOR_ADDRESS=localhost:12355 DEVICES=2 \\
        python benchmarks/meshes.py --workdir=DIR --meshes=1,2,2 &
    done
"""
# ruff: noqa: E402

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import itertools
import json
import math
import os
import pathlib
import shutil
import sys
import tempfile
import time
from typing import Any
from unittest import mock

import numpy as np

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    f" --xla_force_host_platform_device_count={os.environ.get('DEVICES', 8)}"
)

import jax
import jax.numpy as jnp

FLOAT64 = "--float64" in sys.argv
if FLOAT64:  # before networks are imported, which have float32 as a default
    jax.config.update("jax_enable_x64", True)
    jnp.float32 = jnp.float64

from absl import logging as absl_logging
from flax.core import meta
import optax

from msg_jax import train
from msg_jax.config import tree
from msg_jax.config.schema import Config
from msg_jax.infra import checkpoint, runtime
from msg_jax.infra import mesh as mesh_lib
from msg_jax.infra.random import key_for
from msg_jax.methods import AvpRpo, SyncDpo
from msg_jax.programs.plan import maker, plan
from msg_jax.recipes import runs
from msg_jax.run.run import Run
from msg_jax.types import TrainState


def widen(x: Any) -> Any:
    """Turn float32 into float64: an array, or the name of a type."""
    if isinstance(x, np.ndarray):
        return x.astype(np.float64) if x.dtype == np.float32 else x
    return np.dtype("float64" if x == "float32" else x)


if FLOAT64:
    put_batch = mesh_lib.put_batch
    mesh_lib.put_batch = lambda batch, mesh: put_batch(jax.tree.map(widen, batch), mesh)
    jnp.dtype = widen  # networks call it with the type that their config names

MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (2, 4, 1), (1, 2, 4)]
LIMIT = 1e-4
mesh_lib.SMALLEST_SHARD = 1  # most tensors of the smoke preset would not be split at all
SECTIONS = {
    "judge": "judge", "sf_cavp": "sf_cavp", "sound_events": "sound_events", "encoders": "encoders", "base": "base",
    "avp_rpo": "preference", "sync_dpo": "preference",
}
"""The training stages, and their config sections."""


def settings(steps: int, cache: str | os.PathLike) -> Config:
    """The smoke preset with one training of `steps` steps in every stage."""
    config = runs.avp_rpo("smoke")
    config = tree.replace(config, **{section: dict(steps=steps) for section in SECTIONS.values()})
    return tree.replace(
        config,
        data=dict(cache=str(cache)),
        arms={"avp_rpo": AvpRpo(), "sync_dpo": SyncDpo(curriculum="uniform")},
        preference=dict(rounds=1),
        every=dict(checkpoint=1, held_out=0),
        sound_events=dict(rounds=0, codes=config.sound_events.kinds),  # round 0, which predicts the codes, is the only training
    )


def on_mesh(config: Config, workdir: pathlib.Path, shape: tuple[int, int, int]) -> Run:
    """A run on the first devices."""
    return Run(workdir, config, mesh_lib.make_mesh(shape, jax.devices()[: math.prod(shape)]))


def make_on_one_device(names: Sequence[str], config: Config, workdir: pathlib.Path) -> None:
    """Make these stages and everything they need."""
    make_stage = maker(on_mesh(config, workdir, (1, 1, 1)), plan(config), {})
    for name in names:
        make_stage(name, 0)


def make(name: str, run: Run, folder: pathlib.Path) -> Any:
    """Make a stage in `folder` from the upstream stages in the run's folder; return the network that it exports."""
    plan(run.config)[name].make(run, folder, 0)
    return mesh_lib.to_host(checkpoint.load(folder / "params"))


@contextlib.contextmanager
def recording(states: list[TrainState]) -> Iterator[None]:
    """Append to `states` the initial state of a training, and the state after each step that it saves."""
    restore, save = checkpoint.Checkpoints.restore, checkpoint.Checkpoints.save

    def recording_restore(self, state, iterator):
        states.append(mesh_lib.to_host(state))
        return restore(self, state, iterator)

    def recording_save(self, step, state, iterator):
        states.append(mesh_lib.to_host(state))
        save(self, step, state, iterator)

    with (mock.patch.object(checkpoint.Checkpoints, "restore", recording_restore),
          mock.patch.object(checkpoint.Checkpoints, "save", recording_save)):
        yield


@contextlib.contextmanager
def comparing_steps(states: list[TrainState], found: list[float]) -> Iterator[None]:
    """Before a training, take its steps from each of `states`; append to `found` the largest difference of a first moment.

    The reference is the moment in the next of `states`.
    """
    fit = train.fit

    def comparing_fit(task, *, mesh, seed, **options):
        with jax.set_mesh(mesh):
            layout = mesh_lib.shardings(jax.eval_shape(task.init, jax.random.key(seed)), mesh)
            frozen = mesh_lib.put(meta.unbox(task.frozen), mesh_lib.shardings(task.frozen, mesh))
            step = jax.jit(task.step, donate_argnums=0, out_shardings=(layout, None))
            for i, (batch, before, after) in enumerate(zip(task.batches(), states, states[1:])):
                batch = mesh_lib.put_batch({name: x for name, x in batch.items() if name != "id"}, mesh)
                ours, _ = step(mesh_lib.put(before, layout), batch, key_for(seed, task.name, i), frozen)
                moments = [optax.tree_utils.tree_get(state.opt_state, "mu") for state in (ours, after)]
                found.append(max(differences(*moments, floor=1e-6 * float(optax.global_norm(moments[1]))).values()))
        return fit(task, mesh=mesh, seed=seed, **options)

    with mock.patch.object(train, "fit", comparing_fit):
        yield


@contextlib.contextmanager
def nudged(seed: int = 0) -> Iterator[None]:
    """Perturb the initial parameters of trainings by about 1e-7 of their values, as another order of summation might."""
    restore, rng = checkpoint.Checkpoints.restore, np.random.default_rng(seed)

    def nudge(x: jax.Array) -> jax.Array:
        return jax.device_put(x * (1 + 1e-7 * rng.normal(size=x.shape)).astype(x.dtype), x.sharding)

    def nudged_restore(self, state, iterator):
        state, step = restore(self, state, iterator)
        return (state if step else state.replace(params=jax.tree.map(nudge, state.params))), step

    with mock.patch.object(checkpoint.Checkpoints, "restore", nudged_restore):
        yield


def differences(ours: Any, theirs: Any, floor: float = 0.0) -> dict[str, float]:
    """The relative L2 difference of every tensor, by name; norms below `floor` count as `floor`."""
    named, others = jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs)
    return {
        jax.tree_util.keystr(path): float(np.linalg.norm(a - b) / max(np.linalg.norm(b), floor, 1e-30))
        for (path, a), b in zip(named, others, strict=True)
    }


def compare_meshes(names: Sequence[str], config: Config, folder: pathlib.Path, shapes: list[tuple]) -> Iterator[dict]:
    """For each stage, yield the row of its nudged training and one row per mesh."""
    for name in names:
        states: list[TrainState] = []
        with tempfile.TemporaryDirectory() as again, recording(states):
            one = make(name, on_mesh(config, folder, (1, 1, 1)), pathlib.Path(again))
        for shape in (None, *shapes):
            begun, steps = time.process_time(), []
            with tempfile.TemporaryDirectory() as fresh, comparing_steps(states, steps) if shape else nudged():
                found = make(name, on_mesh(config, folder, shape or (1, 1, 1)), pathlib.Path(fresh))
            yield report(name, shape, steps, differences(found, one), time.process_time() - begun)


def compare_processes(names: Sequence[str], config: Config, folder: pathlib.Path, shapes: list[tuple]) -> Iterator[dict]:
    """Yield one row per stage and mesh of all processes' devices; the reference is the run in `folder`, made by one process."""
    for name, shape in itertools.product(names, shapes):
        begun, place = time.process_time(), folder.with_name(f"{jax.process_count()}_processes") / name
        runtime.first_process_alone(lambda place=place: shutil.rmtree(place, ignore_errors=True), name)
        found = make(name, on_mesh(config, folder, shape), place)
        one = mesh_lib.to_host(checkpoint.load(folder / name / "params"))
        yield report(name, shape, [], differences(found, one), time.process_time() - begun)


def report(
    name: str, shape: tuple[int, int, int] | None, steps: list[float], found: dict[str, float], seconds: float
) -> dict:
    """Print a row of the table and return it."""
    worst, label = max(found, key=found.get), ",".join(map(str, shape)) if shape else "nudged"
    cells = [f"{value:.1e}" for value in (np.median(steps), max(steps))] if steps else ["-", "-"]
    cells = [f"{cell:>8}" for cell in (*cells, f"{found[worst]:.1e}")]
    print(f"{name:<13} {label:<7}", *cells, f"{seconds:>6.0f}  {worst}", flush=True)
    return {"stage": name, "mesh": label, "steps": steps, "parameters": found[worst], "tensor": worst}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default=",".join(SECTIONS))
    parser.add_argument("--meshes", default=";".join(",".join(map(str, shape)) for shape in MESHES))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--float64", action="store_true")  # read above, before networks are imported
    parser.add_argument("--workdir")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    absl_logging.set_verbosity(absl_logging.WARNING)
    # Compilation dominates. Without LLVM's optimisations it takes a third of the time, and the partitioning is the same.
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
    runtime.start()
    names = arguments.stages.split(",")
    shapes = [tuple(int(size) for size in shape.split(",")) for shape in arguments.meshes.split(";") if shape]
    with tempfile.TemporaryDirectory() as temporary:
        workdir = pathlib.Path(arguments.workdir or temporary)
        config, compare = settings(arguments.steps, workdir / "data"), compare_processes
        if jax.process_count() > 1 and not arguments.workdir:
            parser.error("several processes need the --workdir of an earlier call on one device")
        if jax.process_count() == 1:
            make_on_one_device(names, config, workdir / "run")
            print(f"on one device: {time.process_time():.0f} s\n")
            compare = compare_meshes
        print(f"{'stage':<13} {'mesh':<7} {'a step':>8} {'worst':>8} {arguments.steps:>2} steps {'CPU s':>6}")
        rows = list(compare(names, config, workdir / "run", shapes)) if shapes else []
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(rows, indent=1))
    sys.exit(any(np.median(row["steps"]) > LIMIT for row in rows if row["steps"]))


if __name__ == "__main__":
    main()
