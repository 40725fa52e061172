"""Orbax: training checkpoints that restore onto any mesh, and exported networks with a digest."""

import hashlib
import pathlib
from typing import Any

from etils import epath
import grain
import jax
from jax.sharding import SingleDeviceSharding
import numpy as np
import orbax.checkpoint as ocp

from msg_jax.errors import UserError


class Checkpoints:
    """The training checkpoints of one stage: TrainState and the position of the input, saved together."""

    def __init__(self, folder: str | pathlib.Path, keep: int = 1):
        self._manager = ocp.CheckpointManager(
            epath.Path(folder).resolve(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False),
        )

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: Any, iterator: grain.DatasetIterator) -> None:
        """Writes step `step`. A kill at any moment leaves the newest complete checkpoint as the latest."""
        if self.latest_step == step:
            return
        self._manager.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), data=grain.checkpoint.CheckpointSave(iterator))
        )

    def restore(self, state: Any, iterator: grain.DatasetIterator) -> tuple[Any, int]:
        """The latest checkpoint, laid out like `state`, with `iterator` moved to its place; `(state, 0)` if there is none.

        Raises UserError naming the folder when its files cannot be read.
        """
        step = self.latest_step
        if step is None:
            return state, 0
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(like), data=grain.checkpoint.CheckpointRestore(iterator)
                ),
            )
        except Exception as error:
            raise UserError(
                f"The checkpoint {self._manager.directory}/{step} cannot be restored ({_first_line(error)}); delete that "
                "folder to start the stage again."
            ) from error
        return restored["state"], step

    def close(self) -> None:
        self._manager.close()


def export(folder: str | pathlib.Path, tree: Any) -> str:
    """Saves a tree of arrays as the stage's result, replacing a half-written one, and returns its digest."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(epath.Path(folder).resolve(), tree, force=True)
    return digest(tree)


def load(folder: str | pathlib.Path, like: Any | None = None) -> Any:
    """An exported tree; onto the shardings of `like` if given, else whole on the first local device.

    Raises UserError if there is nothing to load or it cannot be read.
    """
    path = epath.Path(folder).resolve()
    if not path.exists():
        raise UserError(f"No network is stored at {folder}: run its stage first, or point to the folder of a finished stage.")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            if like is None:
                here = SingleDeviceSharding(jax.local_devices()[0])
                like = jax.tree.map(
                    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
                    checkpointer.metadata(path).item_metadata.tree,
                )
            return checkpointer.restore(path, like)
    except Exception as error:
        raise UserError(f"The network at {folder} cannot be read ({_first_line(error)}); delete that folder and run its "
                        "stage again.") from error


def digest(tree: Any) -> str:
    """SHA-256 over names, shapes, types and bytes of every leaf: equal only for bit-identical trees."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)}{array.shape}{array.dtype}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
