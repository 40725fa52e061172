"""python benchmarks/gpu.py [--variant=small_16k] [--batch=16] [--networks=clip_text,mmdit,vae,...] [--json=FILE]

Compare an accelerator with the CPU, and time training steps on it: a first check, in a few minutes and without any files.

Networks have the published shapes and random weights. Without an accelerator, the CPU is compared with itself.

    parity     relative L2 error of each network of a released variant against the CPU, in float32 at full precision and in
               the device's compute type. Tests compare the CPU's results with reference tensors.
    training   a flow-matching step of the MM-DiT, and a preference step with adapters: seconds, FLOP/s, their share of the
               device's peak (MFU) and peak device memory

Exits with code 1 if the float32 error of a network exceeds 1e-4. benchmarks/inference.py and benchmarks/lora.py have more
detail.
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
from msg_jax.tasks.flow import FlowTask
from msg_jax.tasks.preference import PreferenceTask

LIMIT = 1e-4


def parity(name: str, variant: bundle.Variant) -> dict[str, float]:
    """Relative L2 error of a network on the default device against the CPU."""

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
    """Flow matching that trains all parameters of an MM-DiT of a released shape."""
    template = task_for(variant, 0, folder)
    weights = RandomBundle(bundle.VARIANTS[variant]).load("mmdit")
    source, section = types.SimpleNamespace(dims=template.dims), template.run.config.base
    return FlowTask(template.run, source, section, 0, initial=weights, ema_decay=section.ema_decay)


def adapters_task(variant: str, folder: str) -> PreferenceTask:
    """Preference tuning of adapters of rank 16, with random weights as the reference."""
    task, weights = task_for(variant, 16, folder), RandomBundle(bundle.VARIANTS[variant]).load("mmdit")
    return dataclasses.replace(task, reference=weights)


def training(name: str, make: Callable[[str, str], Any], variant: str, batch: int, repeats: int = 5) -> dict[str, float]:
    """Seconds and memory of a training step whose batch is on the device already."""
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
