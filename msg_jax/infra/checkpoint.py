"""Training checkpoints that restore onto any mesh, and exported networks with a digest (Orbax).

Each folder also holds the SHA-256 of every file. Files that changed since they were written are never used.
"""

import errno
import hashlib
import json
import os
import pathlib
from typing import Any

from etils import epath
import grain
import jax
from jax.sharding import SingleDeviceSharding
import numpy as np
import orbax.checkpoint as ocp

from msg_jax.errors import UserError
from msg_jax.infra import logging, runtime
from msg_jax.infra import mesh as mesh_lib

_SUMS = "sha256.json"


class Checkpoints:
    """The training checkpoints of one stage: TrainState and the position of the input pipeline, saved together.

    Keeps the newest `keep`. Opening the folder moves damaged checkpoints to `damaged/` beside it, so that the newest sound
    one is the latest. Raises UserError if all are damaged.
    """

    def __init__(self, folder: str | pathlib.Path, keep: int = 2):
        self.folder = pathlib.Path(folder).resolve()
        runtime.first_process_alone(lambda: _set_aside_damaged(self.folder), f"checkpoints {folder}")
        self._manager = ocp.CheckpointManager(
            epath.Path(self.folder),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False),
        )

    @property
    def latest_step(self) -> int | None:
        """The step of the latest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, iterator: grain.DatasetIterator) -> None:
        """Saves the checkpoint of `step`, unless it exists. A kill at any moment leaves the newest complete one as the latest.

        Raises UserError if it cannot be written.
        """
        before = self.latest_step
        if before == step:
            return
        # The iterator's state is the same in every process (data/pipeline.py). Grain's handler would tie it to their number.
        data = ocp.args.JsonSave(iterator.get_state())
        try:
            self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), data=data))
            if jax.process_index() == 0:
                _write_sums(self.folder / str(step))
        except jax.errors.JaxRuntimeError:  # a process or a device is lost: the storage is not at fault
            raise
        except Exception as error:
            kept = "there is no earlier one" if before is None else f"the one of step {before} stands"
            raise UserError(
                f"The checkpoint of step {step} cannot be written to {self.folder} ({_first_line(error)}), and {kept}: make "
                "room or make the folder writable, then run the same command to continue."
            ) from error

    def restore(self, state: Any, iterator: grain.DatasetIterator) -> tuple[Any, int]:
        """Restores the latest checkpoint, sharded like `state`, and moves `iterator` to its position.

        Returns the state and its step; `(state, 0)` if there is no checkpoint. Raises UserError, naming the folder, if it
        cannot be restored.
        """
        step = self.latest_step
        if step is None:
            return state, 0
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardRestore(like), data=ocp.args.JsonRestore()),
            )
            iterator.set_state(restored["data"])
        except jax.errors.JaxRuntimeError:
            raise
        except Exception as error:
            raise UserError(
                f"The checkpoint {self._manager.directory}/{step} cannot be restored ({_first_line(error)}); delete that "
                "folder to start the stage again."
            ) from error
        return restored["state"], step

    def close(self) -> None:
        """Closes Orbax's manager."""
        self._manager.close()


def export(folder: str | pathlib.Path, tree: Any) -> str:
    """Saves a tree of arrays as the stage's result, replacing a half-written one, and returns its digest."""
    if jax.process_count() > 1:  # Orbax takes global arrays or numpy arrays, not arrays of one process
        tree = jax.tree.map(
            lambda x: np.asarray(x) if isinstance(x, jax.Array) and x.is_fully_addressable else x, tree
        )
    folder = pathlib.Path(folder).resolve()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(epath.Path(folder), tree, force=True)
    if jax.process_index() == 0:
        _write_sums(folder)
    return digest(tree)


def load(folder: str | pathlib.Path, like: Any | None = None) -> Any:
    """Loads an exported tree, with the shardings of `like`, or by default on the first local device.

    Every process reads on its own. Raises UserError if the folder does not exist or cannot be read.
    """
    path = epath.Path(folder).resolve()
    if not path.exists():
        raise UserError(f"No network is stored at {folder}: run its stage first, or point to the folder of a finished stage.")
    try:
        if fault := _fault(pathlib.Path(path)):
            raise ValueError(fault)
        options = ocp.options.MultiprocessingOptions()
        if jax.process_count() > 1:
            me = jax.process_index()
            options = ocp.options.MultiprocessingOptions(me, active_processes={me}, barrier_sync_key_prefix=f"load_{me}")
        with ocp.StandardCheckpointer(multiprocessing_options=options) as checkpointer:
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


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _SUMS)


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_sums(folder: pathlib.Path) -> None:
    sums = {path.relative_to(folder).as_posix(): _sha256(path) for path in _files(folder)}
    logging.write_atomically(folder / _SUMS, json.dumps(sums, indent=1))


def _fault(folder: pathlib.Path) -> str | None:
    """Describes the first changed file; None for a sound folder, and for one without sums (a kill came before them)."""
    if not (folder / _SUMS).exists():
        return None
    try:
        sums = json.loads((folder / _SUMS).read_text())
        wrong = [name for name, sum_ in sums.items() if not (folder / name).is_file() or _sha256(folder / name) != sum_]
    except (ValueError, AttributeError, OSError) as error:
        return f"its {_SUMS} is damaged: {error}"
    return f"{wrong[0]} is not as it was written" if wrong else None


def _set_aside_damaged(folder: pathlib.Path) -> None:
    """Moves damaged checkpoints to `damaged/`, newest first, until one is sound. Raises UserError if none is."""
    steps = sorted((int(path.name) for path in folder.glob("*") if path.name.isdecimal()), reverse=True)
    for i, step in enumerate(steps):
        fault = _fault(folder / str(step))
        if fault is None:
            return
        if i + 1 == len(steps):
            raise UserError(f"The checkpoint {folder / str(step)} cannot be restored ({fault}), and no older one is left: "
                            f"delete {folder} to start the stage again.")
        aside = folder.parent / "damaged" / f"{step}-{len(list(folder.parent.glob('damaged/*')))}"
        aside.parent.mkdir(exist_ok=True)
        (folder / str(step)).rename(aside)
        logging.info("The checkpoint of step %d is damaged (%s): moved it to %s; continuing from step %d.", step, fault, aside,
                     steps[i + 1])


def digest(tree: Any) -> str:
    """SHA-256 over the path, shape, dtype and bytes of every leaf: equal only for bit-identical trees."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = mesh_lib.to_host(leaf)
        sha.update(f"{jax.tree_util.keystr(path)}{array.shape}{array.dtype}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def _first_line(error: Exception) -> str:
    full = os.strerror(errno.ENOSPC)
    if full in str(error):  # TensorStore puts it at the end of a long line
        return full
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:400]
