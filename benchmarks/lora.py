"""python -m benchmarks.lora [--variant=large_44k_v2] [--rank=16] [--batch=1] [--json=FILE]

Measure the memory of a preference step of a released MM-DiT, with random weights and rematerialised blocks.

`full` trains all parameters, with a frozen copy as the reference. `lora` trains adapters of one frozen network. `lora` runs
twice, to warm up and to be timed; `full` is only compiled. Each is measured in its own process. Columns, with memory in GB:

    trained    parameters that the optimiser changes
    network    parameters of the network, with buffers
    optimiser  optimiser state
    arguments  of the compiled step: network, reference, optimiser state and batch
    output     of the compiled step: it replaces most of the arguments in place
    working    memory beside those: activations, gradients, scratch
    peak       arguments, working, and the part of the output that replaces nothing
    resident   peak memory of the process, with compilation (host memory only)
    compile, step    seconds
"""

import argparse
import json
import pathlib
import tempfile
import time

from flax import linen as nn
import jax
import numpy as np

from benchmarks import rows
from benchmarks.inference import RandomBundle
from msg_jax import networks
from msg_jax.config import tree
from msg_jax.convert import bundle
from msg_jax.convert.weights import shapes_of
from msg_jax.models.mmdit import example_inputs
from msg_jax.recipes import presets
from msg_jax.run.run import Run
from msg_jax.tasks.flow import GeneratorTask
from msg_jax.tasks.preference import PreferenceTask
from msg_jax.types import TrainState


def task_for(variant: str, rank: int, folder: str) -> PreferenceTask:
    """The preference task of a preset with adapters of a rank (0: all parameters trained); its network is shapes only."""
    config = tree.replace(presets.get(variant), base=dict(remat=True), preference=dict(lora_rank=rank))
    run, network = Run.create(config, folder), networks.released(config)["mmdit"]
    dims = {"clip": network.clip_dim, "sync": network.sync_dim, "text": network.text_dim}
    shapes = shapes_of(networks.generator(config, run.clip, dims, networks.compute_dtype()), *example_inputs(network))
    return PreferenceTask(run, None, config.preference, 0, shapes, dims, "benchmark")


def batch_for(task: GeneratorTask, batch: int) -> dict[str, np.ndarray]:
    """A random batch of pairs, with their conditions and real latents."""
    x, _, conditions = example_inputs(task.model.config, batch)
    draw = np.random.default_rng(0).normal
    shapes = dict.fromkeys(("winner", "loser", "latents"), x)
    shapes |= {name: getattr(conditions, name) for name in ("clip", "sync", "text")}
    return {name: draw(size=leaf.shape).astype(np.float32) for name, leaf in shapes.items()}


def sizes(task: PreferenceTask, state: TrainState) -> dict[str, float]:
    """Parameters, and GB of optimiser state."""
    return {
        "trained": networks.count(state.params), "network": networks.count(task.reference),
        "optimiser_gb": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.opt_state)) / 1e9,
    }


def measure(variant: str, rank: int, batch: int) -> dict[str, float]:
    """One row, measured in this process; its resident memory is the peak of the process so far."""
    with tempfile.TemporaryDirectory() as folder:
        task = task_for(variant, rank, folder)
    key, pairs = jax.random.key(0), batch_for(task, batch)
    state = nn.unbox(jax.eval_shape(task.init, key))
    begun = time.perf_counter()
    step = jax.jit(task.step, donate_argnums=0).lower(state, pairs, key, task.frozen).compile()
    memory = step.memory_analysis()
    arguments, output = memory.argument_size_in_bytes, memory.output_size_in_bytes
    row = {"rank": rank, "batch": batch, **sizes(task, state), "compile_sec": time.perf_counter() - begun} | {
        "arguments_gb": arguments / 1e9, "output_gb": output / 1e9, "working_gb": memory.temp_size_in_bytes / 1e9,
        "peak_gb": (arguments + output - memory.alias_size_in_bytes + memory.temp_size_in_bytes) / 1e9,
    }
    if rank:
        reference = RandomBundle(bundle.VARIANTS[variant]).load("mmdit")
        state = jax.jit(lambda key: nn.unbox(task.init(key)))(key)
        for _ in range(2):  # the first run also allocates memory
            begun = time.perf_counter()
            state, metrics = step(state, pairs, key, {"reference": reference})
            row["loss"] = float(metrics["loss"])
            row["step_sec"] = time.perf_counter() - begun
    return row | {"resident_gb": rows.peak_gb()}


COLUMNS = {  # key of a row: title, width, format
    "trained": ("trained", 13, ",d"), "network": ("network", 13, ",d"), "optimiser_gb": ("optimiser", 9, ".3f"),
    "arguments_gb": ("arguments", 9, ".2f"), "output_gb": ("output", 7, ".2f"), "working_gb": ("working", 7, ".2f"),
    "peak_gb": ("peak", 7, ".2f"), "resident_gb": ("resident", 8, ".2f"), "compile_sec": ("compile", 7, ".0f"),
    "step_sec": ("step", 7, ".1f"),
}


def show(row: dict) -> str:
    name = f"lora {row['rank']}" if row["rank"] else "full"
    cells = [f"{row[key]:>{width}{form}}" if key in row else " " * width for key, (_, width, form) in COLUMNS.items()]
    return " ".join([f"{name:<8}", *cells]).rstrip()


def main(argv: list[str] | None = None) -> None:
    flags = argparse.ArgumentParser(usage=__doc__.partition("\n")[0], allow_abbrev=False)
    flags.add_argument("--variant", default="large_44k_v2", choices=sorted(presets.PRESETS.keys() & bundle.VARIANTS.keys()))
    flags.add_argument("--rank", type=int, default=16)
    flags.add_argument("--batch", type=int, default=1, help="pairs per step")
    flags.add_argument("--json", type=pathlib.Path, help="also write the rows to this file")
    flags.add_argument("--here", type=int, help=argparse.SUPPRESS)  # internal: print the row of this rank
    args = flags.parse_args(argv)
    if args.here is not None:
        print(json.dumps(measure(args.variant, args.here, args.batch)))
        return
    print(" ".join([" " * 8, *(f"{title:>{width}}" for title, width, _ in COLUMNS.values())]))
    measured = []
    for rank in (args.rank, 0):
        measured.append(rows.measure_in_subprocess(
            "benchmarks.lora", f"--variant={args.variant}", f"--batch={args.batch}", f"--here={rank}"
        ))
        print(show(measured[-1]), flush=True)
    rows.save(args.json, args.variant, measured)


if __name__ == "__main__":
    main()
