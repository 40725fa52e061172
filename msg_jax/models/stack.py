"""Stacks of blocks of one kind, compiled once and looped over.

A deep network unrolled is a long program, which XLA for TPUs compiles for many minutes. Every block keeps its own
parameters (`block0`, `block1`, ...), as in checkpoints. The loop stacks them when it is traced.
"""

from collections.abc import Callable, Sequence
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp

from msg_jax.models.device import platform


def run_blocks(
    blocks: Sequence[Any], step: Callable[[Any, Any], Any], carry: Any, *, remat: bool = False, scan: bool | None = None
) -> Any:
    """Return `carry` after `step(block, carry) -> carry` for each of `blocks`: bound modules with equal fields, and a `dtype`.

    Blocks in a row whose variables have equal shapes share one compiled body, so blocks with a LoRA adapter and blocks
    without alternate freely. `scan=False` unrolls them. None unrolls on a CPU, where a loop over the tiny generator's few
    blocks takes three times as long and saves no compilation (docs/LOG.md). `remat` recomputes each block in the backward
    pass.

    The stacked copy costs a block's kernels in the compute type. Smaller parameters, such as scales of norms, stay in
    float32. The copy keeps the sharding of the parameters, and every turn of the loop gathers one block.
    """
    if blocks and blocks[0].is_initializing():
        for block in blocks:
            carry = step(block, carry)
        return carry
    scan = platform() != "cpu" if scan is None else scan

    for _, group in itertools.groupby(blocks, lambda block: _shapes(block.variables)):
        carry = _run_equal(list(group), step, carry, remat, scan)
    return carry


def _run_equal(blocks: Sequence[Any], step: Callable[[Any, Any], Any], carry: Any, remat: bool, scan: bool) -> Any:
    block, looped = blocks[0].clone(parent=None, name=None), scan and len(blocks) > 1

    def apply(carry: Any, variables: Any) -> Any:
        return block.apply(variables, carry, method=step)

    if remat:
        apply = jax.checkpoint(apply, prevent_cse=not looped)
    if not looped:
        return functools.reduce(apply, (each.variables for each in blocks), carry)
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack([_cast(leaf, block.dtype) for leaf in leaves]), *(each.variables for each in blocks)
    )
    return jax.lax.scan(lambda carry, variables: (apply(carry, variables), None), carry, stacked)[0]


def _shapes(variables: Any) -> Any:
    """What the variables of two blocks must share to be stacked."""
    leaves, structure = jax.tree.flatten(variables)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _cast(leaf: Any, dtype: Any) -> Any:
    """Kernels in the compute type, in which the layers use them."""
    return leaf.astype(dtype) if leaf.ndim > 1 else leaf
