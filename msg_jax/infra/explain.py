"""The memory and the collectives of a compiled training step (`--explain_sharding`)."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from msg_jax.infra import hlo
from msg_jax.types import TrainState

LARGEST = 5  # tensors that `describe` names


def device_bytes(tree: Any) -> int:
    """Bytes per device of a tree of arrays, or of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * jax.dtypes.itemsize_bits(leaf.dtype) // 8
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else 8
        for leaf in jax.tree.leaves(tree)
    )


def collectives(found: Sequence[hlo.Collective]) -> Mapping[str, tuple[int, int]]:
    """Count and bytes by kind: a collective in a loop counts as often as it runs, with the bytes of its whole tensor."""
    totals = {kind: (0, 0) for kind in hlo.COLLECTIVES}
    for each in found:
        count, size = totals[each.kind]
        totals[each.kind] = count + each.times, size + each.bytes * each.times
    return totals


def tensors(found: Sequence[hlo.Collective]) -> list[tuple[str, str, int, int]]:
    """(kind, tensor, count, bytes) of the collectives, the largest first."""
    totals: dict[tuple[str, str], tuple[int, int]] = {}
    for each in found:
        count, size = totals.get((each.kind, each.tensor), (0, 0))
        totals[each.kind, each.tensor] = count + each.times, size + each.bytes * each.times
    return sorted(((*key, *value) for key, value in totals.items()), key=lambda row: -row[3])


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
    found = hlo.parse(compiled.as_text() or "", mesh.size).collectives()
    rows = [(kind, count, size) for kind, (count, size) in collectives(found).items() if count]
    lines += [f"  {kind:<28} {count:>6} {size:>16,}" for kind, count, size in rows] or ["  none"]
    lines += [f"    {kind} of {tensor}: {count} x, {size:,} bytes" for kind, tensor, count, size in tensors(found)[:LARGEST]]
    return "\n".join(lines)
