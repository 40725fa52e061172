"""python -m benchmarks.heap [--items=sf_cavp,base,...] [--preset=tiny] [--rounds=3] [--json=FILE]

How much faster a step on a CPU is when freed memory is kept for it (`runtime.keep_heap`).

Each item, a training step or a sample of the preset, is measured in processes of its own, alternately without and with.
Columns, medians of the rounds:

    before, after    seconds
    times            how many times as fast, with the range of the rounds
    faults           pages that the system clears for a step, before and after
    peak             peak resident memory in GB, before and after
"""

import argparse
import json
import pathlib
import resource
import statistics
import time

import jax

from benchmarks import rows
from benchmarks.accelerator import compiled_row, example
from msg_jax import compile as compiling
from msg_jax.config import tree
from msg_jax.infra import runtime
from msg_jax.recipes import presets

BATCHES = {"sf_cavp": 64, "base": 32, "avp_rpo": 8, "sampler": 32}
_REPEATS = 10


def measure(preset: str, item: str, keep: bool) -> dict[str, float]:
    """One row, measured in this process."""
    if keep:
        runtime.keep_heap()
    runtime.use_compile_cache()
    config = tree.replace(presets.get(preset), mesh=(1, 1, 1), preference=dict(candidates=1))
    program = compiling.Programs(config, jax.devices()[:1], BATCHES[item]).trace(item)
    call, _ = compiled_row(program)
    inputs, _ = program.traced.in_avals
    inputs = list(example(inputs))

    def run():
        output = jax.block_until_ready(call(*inputs))
        if program.state is not None:  # a training step consumes its state
            inputs[0] = output[0]

    run()
    begun, faults = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(_REPEATS):
        run()
    seconds = (time.perf_counter() - begun) / _REPEATS
    faults = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / _REPEATS
    return {"seconds": seconds, "faults": faults, "peak_gb": rows.peak_gb()}


def measure_both(preset: str, item: str) -> list[dict[str, float]]:
    """Rows before and after, each from its own process."""
    flags = f"--row={item}", f"--preset={preset}"
    return [rows.measure_in_subprocess("benchmarks.heap", *flags, *keep) for keep in ((), ("--keep",))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=lambda text: text.split(","), default=list(BATCHES))
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--row", help=argparse.SUPPRESS)  # measure one row in this process
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(measure(args.preset, args.row, args.keep)))
        return
    found = []
    print(f"{'':10} {'before':>8} {'after':>8} {'times':>18} {'faults':>15} {'peak':>12}")
    for item in args.items:
        rounds = [measure_both(args.preset, item) for _ in range(args.rounds)]
        before, after = ({name: statistics.median(row[name] for row in side) for name in side[0]} for side in zip(*rounds))
        times = sorted(first["seconds"] / second["seconds"] for first, second in rounds)
        found.append({"item": item, "before": before, "after": after, "times": times})
        print(f"{item:10} {before['seconds']:8.3f} {after['seconds']:8.3f} {statistics.median(times):6.2f} ({times[0]:.2f} to "
              f"{times[-1]:.2f}) {before['faults']:8.0f} {after['faults']:6.0f} {before['peak_gb']:6.2f} "
              f"{after['peak_gb']:5.2f}", flush=True)
    rows.save(args.json, args.preset, found)


if __name__ == "__main__":
    main()
