"""Batches of one shape: a compiled program sees no other, whatever the number of rows."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from msg_jax.infra import mesh as mesh_lib


def chunks(tree: Any, size: int) -> Iterator[Any]:
    """Pieces of `size` rows of a tree of arrays (rows, ...). The last one is padded with copies of the last row."""
    rows = jax.tree.leaves(tree)[0].shape[0]
    for start in range(0, rows, size):
        index = np.minimum(np.arange(start, start + size), rows - 1)
        yield jax.tree.map(lambda a, index=index: np.asarray(a)[index], tree)


def map_batches(function: Callable, size: int, *arrays: Any, mesh: Mesh | None = None) -> Any:
    """`function` of trees of arrays (rows, ...), `size` rows at a time; its outputs (rows, ...) as numpy arrays.

    With a `mesh`, the rows of a batch are spread over its devices.
    """
    rows = jax.tree.leaves(arrays)[0].shape[0]
    outputs = []
    for batch in chunks(arrays, size):
        found = function(*(batch if mesh is None else mesh_lib.spread(batch, mesh)))
        outputs.append(jax.tree.map(np.asarray, found))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:rows], *outputs)
