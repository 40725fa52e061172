"""What a compiled step needs of each device, and what the devices say to each other."""

from collections.abc import Mapping
import math
import re
from typing import Any

import jax
from jax.sharding import Mesh

from msg_jax.types import TrainState

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "bf16": 16}  # the others have their width in their names: f32, s8, u64
_INSTRUCTION = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(")
_SHAPE = re.compile(r"\b(pred|bf16|[fsu]\d+)\[([\d,]*)\]")


def device_bytes(tree: Any) -> int:
    """Bytes that one device holds of a tree of arrays or shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * jax.dtypes.itemsize_bits(leaf.dtype) // 8
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else 8
        for leaf in jax.tree.leaves(tree)
    )


def collectives(hlo: str) -> Mapping[str, tuple[int, int]]:
    """How often each kind of collective stands in a compiled program, and the bytes of its results on one device.

    What stands in a loop counts once.
    """
    found = {kind: (0, 0) for kind in COLLECTIVES}
    for shapes, kind in _INSTRUCTION.findall(hlo):
        sizes = [
            _BITS.get(dtype, int(re.sub(r"\D", "", dtype) or 0)) // 8 * math.prod(int(n) for n in dims.split(",") if n)
            for dtype, dims in _SHAPE.findall(shapes)
        ]
        count, total = found[kind]
        found[kind] = count + 1, total + sum(sizes)
    return found


def figures(compiled: jax.stages.Compiled, state: TrainState) -> dict[str, int]:
    """Bytes of one device: `parameters`, `optimiser` (with the EMA), `inputs` beside the state, `temporary`."""
    memory = compiled.memory_analysis()
    beside = device_bytes(state) - device_bytes(state.params)
    held = {"parameters": device_bytes(state.params), "optimiser": beside}
    inputs = max(memory.argument_size_in_bytes - sum(held.values()), 0)
    return held | {"inputs": inputs, "temporary": memory.temp_size_in_bytes}


def describe(name: str, compiled: jax.stages.Compiled, state: TrainState, mesh: Mesh) -> str:
    """The table that `--explain_sharding` prints."""
    shape = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    lines = [f"{name} on {mesh.size} devices ({shape}); bytes of one device:"]
    sizes = figures(compiled, state)
    words = {"parameters": "parameters", "optimiser": "optimiser and EMA", "inputs": "batch and frozen networks",
             "temporary": "activations and gradients"}
    lines += [f"  {words[kind]:<28} {size:>16,}" for kind, size in sizes.items()]
    lines.append(f"  {'together':<28} {sum(sizes.values()):>16,}")
    lines.append(f"collectives of one step:{'':<6} {'count':>7} {'bytes':>15}")
    found = [
        f"  {kind:<28} {count:>6} {size:>16,}" for kind, (count, size) in collectives(compiled.as_text()).items() if count
    ]
    return "\n".join(lines + (found or ["  none"]))
