"""python benchmarks/meshes.py [--stages=judge,sf_cavp,...] [--meshes=8,1,1;...] [--steps=10] [--float64] [--workdir=DIR]
[--json=FILE]

Every stage that trains, at the smoke preset, on every mesh of eight virtual CPU devices, against one device: the largest
relative difference of a tensor, |a - b| / |b| in the L2 norm. `a step` and `worst`: of Adam's first moment after a step from
the state that one device was in, the median and the maximum of ten steps. `10 steps`: of a parameter after ten steps in a row.
A ReLU that one rounding opens and another closes is a jump in the last two, now and then; a mesh that computes something else
would be in all steps. What is to be expected of `10 steps` says the row `nudged`: one device, whose parameters begin 1e-7 of
themselves elsewhere. What a stage needs is made once, on one device, and is the same for all. Prints the table of
docs/SCALING.md, and exits with code 1 if `a step` exceeds 1e-4. With `--workdir` the stages on one device are kept.
With `--float64` the same programs round at 1e-16: what two of them then differ in is no rounding.

On several processes, with the stages on one device that an earlier call has left in `--workdir`:

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
import functools
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
if FLOAT64:  # before any network says that it works in float32
    jax.config.update("jax_enable_x64", True)
    jnp.float32 = jnp.float64

from absl import logging as absl_logging
from flax.core import meta
from ml_collections import ConfigDict
from msg_jax.stages.common import Run, ensure
import optax

from configs import avp_rpo as config_lib
from configs import common
from msg_jax import train
from msg_jax.clip import ClipSpec
from msg_jax.infra import checkpoint, runtime
from msg_jax.infra import mesh as mesh_lib
from msg_jax.stages import plan
from msg_jax.types import TrainState


def wide(x: Any) -> Any:
    """float32 becomes float64: what a type is called, and what has it."""
    if isinstance(x, np.ndarray):
        return x.astype(np.float64) if x.dtype == np.float32 else x
    return np.dtype("float64" if x == "float32" else x)


if FLOAT64:
    put_batch = mesh_lib.put_batch
    mesh_lib.put_batch = lambda batch, mesh: put_batch(jax.tree.map(wide, batch), mesh)
    jnp.dtype = wide  # with which networks read the type that their config names

MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (2, 4, 1), (1, 2, 4)]
LIMIT = 1e-4
SECTIONS = {
    "judge": "judge", "sf_cavp": "sf_cavp", "sound_events": "sound_events", "encoders": "encoders", "base": "base",
    "avp_rpo": "preference", "sync_dpo": "preference",
}
"""Stages that train, and their sections."""


def settings(steps: int, cache: str | os.PathLike) -> ConfigDict:
    """The smoke preset with one training of `steps` steps in every stage."""
    config = config_lib.get_config("smoke")
    config.data.cache = str(cache)
    config.arms = ConfigDict(dict(avp_rpo=common.arm("reward"), sync_dpo=common.sync_dpo("uniform")))
    for section in SECTIONS.values():
        config[section].steps = steps
    config.preference.rounds, config.every.checkpoint = 1, 1
    config.sound_events.update(rounds=0, codes=config.sound_events.kinds)  # the first training, of the codes, is the only one
    return config


def on_mesh(config: ConfigDict, workdir: pathlib.Path, shape: tuple[int, int, int]) -> Run:
    """A run on the first devices."""
    mesh = mesh_lib.make_mesh(shape, jax.devices()[: math.prod(shape)])
    return Run(workdir, config, ClipSpec.from_dict(config.clip.to_dict()), mesh)


def make_on_one_device(names: Sequence[str], config: ConfigDict, workdir: pathlib.Path) -> None:
    """These stages, and those that they need."""
    run, stages = on_mesh(config, workdir, (1, 1, 1)), plan(config)

    @functools.cache
    def made(name: str) -> str:
        return ensure(run, stages[name], 0, {need: made(need) for need in stages[name].needs})

    for name in names:
        made(name)


def make(name: str, run: Run, folder: pathlib.Path) -> Any:
    """What a stage leaves in `folder`, made from what it needs in the folder of the run."""
    plan(run.config)[name].make(run, folder, 0)
    return mesh_lib.to_host(checkpoint.load(folder / "params"))


@contextlib.contextmanager
def keeping(states: list[TrainState]) -> Iterator[None]:
    """Keeps the state that a training begins with and the one after every step that it saves."""
    restore, save = checkpoint.Checkpoints.restore, checkpoint.Checkpoints.save

    def keeping_restore(self, state, iterator):
        states.append(mesh_lib.to_host(state))
        return restore(self, state, iterator)

    def keeping_save(self, step, state, iterator):
        states.append(mesh_lib.to_host(state))
        save(self, step, state, iterator)

    with (mock.patch.object(checkpoint.Checkpoints, "restore", keeping_restore),
          mock.patch.object(checkpoint.Checkpoints, "save", keeping_save)):
        yield


@contextlib.contextmanager
def following(states: list[TrainState], found: list[float]) -> Iterator[None]:
    """Before a training, `found` gets the largest difference of a first moment after each step that it makes from `states`."""
    fit = train.fit

    def following_fit(task, *, mesh, seed, **options):
        with jax.set_mesh(mesh):
            layout = mesh_lib.shardings(jax.eval_shape(task.init, jax.random.key(seed)), mesh)
            frozen = mesh_lib.put(meta.unbox(task.frozen), mesh_lib.shardings(task.frozen, mesh))
            step = jax.jit(task.step, donate_argnums=0, out_shardings=(layout, None))
            for i, (batch, before, after) in enumerate(zip(task.batches(), states, states[1:])):
                batch = mesh_lib.put_batch({name: x for name, x in batch.items() if name != "id"}, mesh)
                ours, _ = step(mesh_lib.put(before, layout), batch, train.key_for(seed, task.name, i), frozen)
                moments = [optax.tree_utils.tree_get(state.opt_state, "mu") for state in (ours, after)]
                found.append(max(differences(*moments, floor=1e-6 * float(optax.global_norm(moments[1]))).values()))
        return fit(task, mesh=mesh, seed=seed, **options)

    with mock.patch.object(train, "fit", following_fit):
        yield


@contextlib.contextmanager
def nudged(seed: int = 0) -> Iterator[None]:
    """Trainings begin with parameters that are off by some 1e-7 of themselves, as another order of sums might leave them."""
    restore, rng = checkpoint.Checkpoints.restore, np.random.default_rng(seed)

    def nudge(x: jax.Array) -> jax.Array:
        return jax.device_put(x * (1 + 1e-7 * rng.normal(size=x.shape)).astype(x.dtype), x.sharding)

    def nudged_restore(self, state, iterator):
        state, step = restore(self, state, iterator)
        return (state if step else state.replace(params=jax.tree.map(nudge, state.params))), step

    with mock.patch.object(checkpoint.Checkpoints, "restore", nudged_restore):
        yield


def differences(ours: Any, theirs: Any, floor: float = 0.0) -> dict[str, float]:
    """The relative L2 difference of every tensor, by its name; of one whose norm is less than `floor`, relative to that."""
    named, others = jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs)
    return {
        jax.tree_util.keystr(path): float(np.linalg.norm(a - b) / max(np.linalg.norm(b), floor, 1e-30))
        for (path, a), b in zip(named, others, strict=True)
    }


def compared_meshes(names: Sequence[str], config: ConfigDict, folder: pathlib.Path, shapes: list[tuple]) -> Iterator[dict]:
    """A row for every stage on every mesh, after one for its nudged training."""
    for name in names:
        states: list[TrainState] = []
        with tempfile.TemporaryDirectory() as again, keeping(states):
            one = make(name, on_mesh(config, folder, (1, 1, 1)), pathlib.Path(again))
        for shape in (None, *shapes):
            begun, step = time.process_time(), []
            with tempfile.TemporaryDirectory() as fresh, following(states, step) if shape else nudged():
                found = make(name, on_mesh(config, folder, shape or (1, 1, 1)), pathlib.Path(fresh))
            yield row(name, shape, step, differences(found, one), time.process_time() - begun)


def compared_processes(names: Sequence[str], config: ConfigDict, folder: pathlib.Path, shapes: list[tuple]) -> Iterator[dict]:
    """The same on the devices of all processes, against the stages in the folder of a run that one process made."""
    for name, shape in itertools.product(names, shapes):
        begun, made = time.process_time(), folder.with_name(f"{jax.process_count()}_processes") / name
        runtime.first_process_alone(lambda made=made: shutil.rmtree(made, ignore_errors=True), name)
        found = make(name, on_mesh(config, folder, shape), made)
        one = mesh_lib.to_host(checkpoint.load(folder / name / "params"))
        yield row(name, shape, [], differences(found, one), time.process_time() - begun)


def row(name: str, shape: tuple[int, int, int] | None, steps: list[float], found: dict[str, float], seconds: float) -> dict:
    """Printed in passing."""
    worst, label = max(found, key=found.get), ",".join(map(str, shape)) if shape else "nudged"
    figures = [f"{figure:.1e}" for figure in (np.median(steps), max(steps))] if steps else ["-", "-"]
    figures = [f"{figure:>8}" for figure in (*figures, f"{found[worst]:.1e}")]
    print(f"{name:<13} {label:<7}", *figures, f"{seconds:>6.0f}  {worst}", flush=True)
    return {"stage": name, "mesh": label, "steps": steps, "parameters": found[worst], "tensor": worst}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default=",".join(SECTIONS))
    parser.add_argument("--meshes", default=";".join(",".join(map(str, shape)) for shape in MESHES))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--float64", action="store_true")  # read above, before the networks are imported
    parser.add_argument("--workdir")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    absl_logging.set_verbosity(absl_logging.WARNING)
    # Nearly all of the time is compiling; without LLVM's optimisations it is a third of it, for the same partitioned programs.
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
    runtime.start()
    names = arguments.stages.split(",")
    shapes = [tuple(int(size) for size in shape.split(",")) for shape in arguments.meshes.split(";") if shape]
    with tempfile.TemporaryDirectory() as temporary:
        workdir = pathlib.Path(arguments.workdir or temporary)
        config, compared = settings(arguments.steps, workdir / "data"), compared_processes
        if jax.process_count() > 1 and not arguments.workdir:
            parser.error("several processes need the --workdir of an earlier call")
        if jax.process_count() == 1:
            make_on_one_device(names, config, workdir / "run")
            print(f"on one device: {time.process_time():.0f} s\n")
            compared = compared_meshes
        print(f"{'stage':<13} {'mesh':<7} {'a step':>8} {'worst':>8} {arguments.steps:>2} steps {'CPU s':>6}")
        rows = list(compared(names, config, workdir / "run", shapes)) if shapes else []
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(rows, indent=1))
    sys.exit(any(np.median(row["steps"]) > LIMIT for row in rows if row["steps"]))


if __name__ == "__main__":
    main()
