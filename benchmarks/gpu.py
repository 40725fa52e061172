"""python benchmarks/gpu.py [--variant=small_16k] [--batch=16] [--networks=clip_text,mmdit,vae,...] [--json=FILE]

What to run first on an accelerator, in a few minutes and without any file: does it compute what the CPU computes, and how fast.
Random weights, the published shapes; on a machine without an accelerator it compares the CPU with itself.

    parity     each network of a released variant, in float32 at full precision and in the type that it is run in, against
               the CPU, whose results the tests compare with reference tensors: norm of the difference over norm
    training   one step of flow matching of the MM-DiT and one of preference tuning with adapters: seconds, FLOP/s, their share
               of the device's peak (MFU), and the most memory that was in use

The same tables as everywhere else, for this machine: benchmarks/inference.py and benchmarks/lora.py. Exits with code 1 if a
network in float32 is off by more than 1e-4.
"""

import argparse
from collections.abc import Callable
import dataclasses
import pathlib
import sys
import tempfile
import time
import types
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import rows
from benchmarks.inference import RandomBundle, cases
from benchmarks.lora import batch_for, task_for
from msg_jax import networks
from msg_jax.convert import bundle
from msg_jax.infra import metering
from msg_jax.stages.base import FlowTask
from msg_jax.stages.preference import PreferenceTask

LIMIT = 1e-4


def parity(name: str, variant: bundle.Variant) -> dict[str, float]:
    """Relative error of a network on the default device against the CPU."""

    def result(device: jax.Device, dtype: Any) -> np.ndarray:
        case = cases(variant, dtype)[name]()
        rng = np.random.default_rng(0)
        inputs = jax.tree.map(lambda leaf: rng.uniform(0, 1, leaf.shape).astype(leaf.dtype), case.inputs)
        weights = RandomBundle(variant).load(case.kind, *case.prefixes)
        with jax.default_matmul_precision("highest" if dtype == jnp.float32 else "default"):
            return np.asarray(jax.jit(case.call)(*jax.device_put((weights, *inputs), device)), np.float64)

    here, reference = jax.devices()[0], result(jax.devices("cpu")[0], jnp.float32)

    def error(dtype) -> float:
        return float(np.linalg.norm(result(here, dtype) - reference) / np.linalg.norm(reference))

    return {"network": name, "float32": error(jnp.float32), "compute_type": error(networks.compute_dtype())}


def flow_task(variant: str, folder: str) -> FlowTask:
    """Flow matching of all parameters of a released MM-DiT's shape."""
    template = task_for(variant, 0, folder)
    weights = RandomBundle(bundle.VARIANTS[variant]).load("mmdit")
    source = types.SimpleNamespace(dims=template.dims)
    return FlowTask(template.run, source, template.run.config.base, 0, initial=weights)


def adapters_task(variant: str, folder: str) -> PreferenceTask:
    """Preference tuning of adapters of rank 16, with weights for the reference."""
    task, weights = task_for(variant, 16, folder), RandomBundle(bundle.VARIANTS[variant]).load("mmdit")
    return dataclasses.replace(task, reference=weights)


def training(name: str, make: Callable[[str, str], Any], variant: str, batch: int, repeats: int = 5) -> dict[str, float]:
    """Seconds and memory of a training step; the batch lies on the device already."""
    with tempfile.TemporaryDirectory() as folder:
        task = make(variant, folder)
    key = jax.random.key(0)
    pairs = jax.device_put(batch_for(task, batch))
    state = jax.jit(lambda key: nn.unbox(task.init(key)))(key)
    lowered = jax.jit(task.step, donate_argnums=0).lower(state, pairs, key, task.frozen)
    flops, step = metering.step_flops(lowered, 1), lowered.compile()
    state, metrics = step(state, pairs, key, task.frozen)
    jax.block_until_ready(metrics)
    begun = time.perf_counter()
    for _ in range(repeats):
        state, metrics = step(state, pairs, key, task.frozen)
    jax.block_until_ready((state, metrics))
    seconds = (time.perf_counter() - begun) / repeats
    device = jax.devices()[0]
    row = {"training": name, "batch": batch, "step_sec": seconds, "loss": float(metrics["loss"])}
    if flops:
        row["tflop_per_sec"] = flops / seconds / 1e12
        if peak := metering.peak_flops(device):
            row["mfu"] = flops / seconds / peak
    if statistics := device.memory_stats():
        row["peak_gb"] = statistics["peak_bytes_in_use"] / 1e9
    return row


TRAININGS = {"flow matching": flow_task, "preference, adapters": adapters_task}


def show(row: dict) -> str:
    cells = [f"{name} {value:.4g}" if isinstance(value, float) else f"{value}" for name, value in row.items()]
    return "   ".join(cells)


def main(argv: list[str] | None = None) -> int:
    flags = argparse.ArgumentParser(usage=__doc__.partition("\n")[0], allow_abbrev=False)
    flags.add_argument("--variant", default="small_16k", choices=sorted(bundle.VARIANTS))
    flags.add_argument("--networks", default="clip_text,synchformer,mmdit,vae,bigvgan")
    flags.add_argument("--batch", type=int, default=16)
    flags.add_argument("--json", type=pathlib.Path, help="also write the rows to this file")
    args = flags.parse_args(argv)
    device = jax.devices()[0]
    print(f"{len(jax.devices())} x {device.device_kind}, {args.variant}", flush=True)
    measured = []
    for name in filter(None, args.networks.split(",")):
        measured.append(parity(name, bundle.VARIANTS[args.variant]))
        print(show(measured[-1]), flush=True)
    for name, make in TRAININGS.items():
        measured.append(training(name, make, args.variant, args.batch))
        print(show(measured[-1]), flush=True)
    rows.save(args.json, args.variant, measured)
    return int(any(row.get("float32", 0.0) > LIMIT for row in measured))


if __name__ == "__main__":
    sys.exit(main())
