"""The memory and the collectives of a compiled training step (`--explain_sharding`)."""

from collections.abc import Mapping
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from msg_jax.types import TrainState

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "bf16": 16}  # other type names contain their width: f32, s8, u64
_INSTRUCTION = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(")
_SHAPE = re.compile(r"\b(pred|bf16|[fsu]\d+)\[([\d,]*)\]")


def device_bytes(tree: Any) -> int:
    """Bytes per device of a tree of arrays, or of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * jax.dtypes.itemsize_bits(leaf.dtype) // 8
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else 8
        for leaf in jax.tree.leaves(tree)
    )


def collectives(hlo: str) -> Mapping[str, tuple[int, int]]:
    """Counts the collectives in the text of a compiled program: (count, bytes of the results on one device) by kind.

    A collective in a loop counts once.
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


def device_memory(compiled: jax.stages.Compiled, state: TrainState) -> dict[str, int]:
    """Bytes per device: `parameters`, `optimiser` (and EMA), `inputs` (batch, frozen networks), `temporary` (activations)."""
    memory = compiled.memory_analysis()
    if memory is None:
        raise RuntimeError("XLA gives no memory analysis for this program")
    parameters = device_bytes(state.params)
    optimiser = device_bytes(state) - parameters
    inputs = max(memory.argument_size_in_bytes - parameters - optimiser, 0)
    return {
        "parameters": parameters, "optimiser": optimiser, "inputs": inputs, "temporary": memory.temp_size_in_bytes,
    }


def describe(name: str, compiled: jax.stages.Compiled, state: TrainState, mesh: Mesh) -> str:
    """The table that `--explain_sharding` prints: memory per device, and the collectives of one step."""
    shape = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    lines = [f"{name} on {mesh.size} devices ({shape}); bytes per device:"]
    sizes = device_memory(compiled, state)
    labels = {"parameters": "parameters", "optimiser": "optimiser and EMA", "inputs": "batch and frozen networks",
              "temporary": "activations and gradients"}
    lines += [f"  {labels[kind]:<28} {size:>16,}" for kind, size in sizes.items()]
    lines.append(f"  {'total':<28} {sum(sizes.values()):>16,}")
    lines.append(f"collectives of one step:{'':<6} {'count':>7} {'bytes':>15}")
    found = [
        f"  {kind:<28} {count:>6} {size:>16,}" for kind, (count, size) in collectives(compiled.as_text() or "").items() if count
    ]
    return "\n".join(lines + (found or ["  none"]))
