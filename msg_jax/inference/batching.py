"""Batches of one shape: a compiled program sees no other, whatever the number of rows."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from msg_jax.infra import mesh as mesh_lib
from msg_jax.infra import progress


def chunks(tree: Any, size: int) -> Iterator[Any]:
    """Pieces of `size` rows of a tree of arrays (rows, ...). The last one is padded with copies of the last row."""
    rows = jax.tree.leaves(tree)[0].shape[0]
    for start in range(0, rows, size):
        index = np.minimum(np.arange(start, start + size), rows - 1)
        yield jax.tree.map(lambda a, index=index: np.asarray(a)[index], tree)


def interleave(a: Any, b: Any) -> Any:
    """The rows of two trees of arrays (B, ...) in turn, (2 B, ...): a[0], b[0], a[1], b[1], ...

    Unlike a concatenation, this keeps every row on its device where the batch is sharded.
    """
    return jax.tree.map(lambda x, y: jnp.stack([x, y], axis=1).reshape(-1, *x.shape[1:]), a, b)


def deinterleave(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The inverse of `interleave` for one array (2 B, ...)."""
    pairs = rows.reshape(-1, 2, *rows.shape[1:])
    return pairs[:, 0], pairs[:, 1]


def map_batches(function: Callable, size: int, *arrays: Any, mesh: Mesh | None = None) -> Any:
    """`function` of trees of arrays (rows, ...), `size` rows at a time; its outputs (rows, ...) as numpy arrays.

    With a `mesh`, the rows of a batch are spread over its devices.
    """
    rows = jax.tree.leaves(arrays)[0].shape[0]
    outputs, running = [], None
    for batch in chunks(arrays, size):
        found = function(*(batch if mesh is None else mesh_lib.spread(batch, mesh)))
        if running is not None:  # fetched only now, so that the devices never wait for the host
            outputs.append(jax.tree.map(np.asarray, running))
            progress.report(len(outputs) * size / rows)
        running = found
    outputs.append(jax.tree.map(np.asarray, running))
    progress.report(1.0)
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:rows], *outputs)
