"""Training checkpoints that restore onto any mesh, and exported networks with a digest (Orbax).

Each folder also holds a checksum of every file: a process sums the files that it wrote itself. Files that changed since they
were written are never used.
"""

import errno
import hashlib
import json
import os
import re
import threading
from typing import Any

from etils import epath
import grain
import jax
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding
import numpy as np
import orbax.checkpoint as ocp

from msg_jax import storage
from msg_jax.errors import UserError
from msg_jax.infra import logging, runtime
from msg_jax.infra import mesh as mesh_lib
from msg_jax.storage import Path

_SUMS = "sha256.json"  # of process 0; those of process 3 are in sha256.3.json
_MOST_KEPT = 16  # checkpoints in a folder, complete or not


class Checkpoints:
    """The training checkpoints of one stage: TrainState and the position of the input pipeline, saved together.

    Keeps the newest `keep`. Opening the folder moves damaged checkpoints to `damaged/` beside it, so that the newest sound
    one is the latest. Raises UserError if all are damaged.

    A checkpoint is written and summed in the background, one at a time.
    """

    def __init__(self, folder: str | os.PathLike, keep: int = 2):
        self.folder = storage.absolute(storage.path(folder))
        _set_aside_damaged(self.folder)
        self._manager = ocp.CheckpointManager(
            epath.Path(self.folder),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True),
        )
        self._latest = self._manager.latest_step()
        self._writing: threading.Thread | None = None
        self._step, self._failure = 0, None  # of the checkpoint that is being written

    @property
    def latest_step(self) -> int | None:
        """The step of the latest complete checkpoint; None if there is none. Waits for the one that is being written."""
        self.wait()
        return self._latest

    def save(self, step: int, state: Any, iterator: grain.DatasetIterator) -> None:
        """Copies the checkpoint of `step`, unless it exists, and begins to write it. Waits for the one before.

        A kill at any moment leaves the newest complete one as the latest. Raises UserError if the one before could not be
        written, or this one not begun.
        """
        if self.latest_step == step:
            return
        # The iterator's state is the same in every process (data/pipeline.py). Grain's handler would tie it to their number.
        data = ocp.args.JsonSave(iterator.get_state())
        self._step = step
        try:
            self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), data=data))
        except Exception as error:
            self._refuse(error)
        self._writing = threading.Thread(target=self._finish, name=f"checkpoint {step}")
        self._writing.start()

    def _finish(self) -> None:
        try:
            self._manager.wait_until_finished()
            _write_sums(self.folder / str(self._step))
        except Exception as error:  # raised again in the thread that waits
            self._failure = error

    def wait(self) -> None:
        """Waits until the last checkpoint is complete. Raises UserError if it cannot be written."""
        if self._writing is None:
            return
        self._writing.join()
        self._writing, failure, self._failure = None, self._failure, None
        if failure is not None:
            self._refuse(failure)
        self._latest = self._step

    def _refuse(self, error: Exception) -> None:
        if isinstance(error, jax.errors.JaxRuntimeError):  # a process or a device is lost: the storage is not at fault
            raise error
        kept = "there is no earlier one" if self._latest is None else f"the one of step {self._latest} stands"
        raise UserError(
            f"The checkpoint of step {self._step} cannot be written to {self.folder} ({_first_line(error)}), and {kept}: make "
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
        """Waits for the last checkpoint and closes Orbax's manager. Raises UserError if it cannot be written."""
        self.wait()
        self._manager.close()


def export(folder: str | os.PathLike, tree: Any) -> str:
    """Saves a tree of arrays as the stage's result, replacing a half-written one, and returns its digest."""
    if jax.process_count() > 1:  # Orbax takes global arrays or numpy arrays, not arrays of one process
        tree = jax.tree.map(
            lambda x: np.asarray(x) if isinstance(x, jax.Array) and x.is_fully_addressable else x, tree
        )
    folder = storage.absolute(storage.path(folder))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(epath.Path(folder), tree, force=True)
    _write_sums(folder)
    return digest(tree)


def is_complete(folder: Path) -> bool:
    """Whether an exported tree or a checkpoint is complete: a folder on a disk then has its name, one in a bucket a mark."""
    return (folder / "commit_success.txt" if storage.in_bucket(folder) else folder).exists()


def load(folder: str | os.PathLike, like: Any | None = None) -> Any:
    """Loads an exported tree, with the shardings of `like`, or by default on the first local device.

    Every process reads on its own. Raises UserError if the folder does not exist or cannot be read.
    """
    place = storage.absolute(storage.path(folder))
    path = epath.Path(place)
    if not is_complete(place):
        raise UserError(f"No network is stored at {folder}: run its stage first, or point to the folder of a finished stage.")
    try:
        if fault := _fault(place):
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


def _write_sums(folder: Path) -> None:
    """Writes the checksums of this process's files. In Orbax's format a process writes to `ocdbt.process_N`, and the first
    one all that lies elsewhere."""
    me = jax.process_index()
    files = [file.relative_to(folder).as_posix() for file in storage.files_below(folder)]
    owners = {name: int(found[1]) if (found := re.search(r"(?:^|/)ocdbt\.process_(\d+)/", name)) else 0 for name in files}
    mine = [name for name, owner in owners.items() if owner == me and not _holds_sums(name)]
    name = f"sha256.{me}.json" if me else _SUMS
    logging.write_atomically(folder / name, json.dumps(storage.checksums(folder, mine), indent=1))


def _holds_sums(name: str) -> bool:
    return re.fullmatch(r"sha256(\.\d+)?\.json", name) is not None


def _fault(folder: Path, share: slice = slice(None)) -> str | None:
    """Describes the first changed file of a `share` of them; None if there is none. Files without a sum count as sound, because
    a kill may come before the sums."""
    try:
        sums: dict[str, str] = {}
        for file in sorted(each for each in folder.glob("sha256*.json") if _holds_sums(each.name)):
            sums |= json.loads(file.read_text())
        mine = sorted(sums)[share]
        found = storage.checksums(folder, mine)
        wrong = [name for name in mine if found.get(name) != sums[name]]
    except (ValueError, TypeError, OSError) as error:
        return f"its {_SUMS} is damaged: {error}"
    return f"{wrong[0]} is not as it was written" if wrong else None


def _set_aside_damaged(folder: Path) -> None:
    """Moves damaged checkpoints to `damaged/`, newest first, until one is sound. Raises UserError if none is.

    Each process reads a share of the files.
    """
    steps = _complete_steps(folder)
    for i, step in enumerate(steps):
        fault = _fault(folder / str(step), slice(jax.process_index(), None, jax.process_count()))
        if not runtime.anywhere(fault is not None, f"checkpoint {folder}/{step} read"):
            return
        fault = fault or "another process found a file that is not as it was written"
        if i + 1 == len(steps):
            raise UserError(f"The checkpoint {folder / str(step)} cannot be restored ({fault}), and no older one is left: "
                            f"delete {folder} to start the stage again.")
        if jax.process_index() == 0:
            aside = folder.parent / "damaged"
            aside = aside / f"{step}-{len(list(aside.iterdir())) if aside.exists() else 0}"
            storage.move(folder / str(step), aside)
            logging.info("The checkpoint of step %d is damaged (%s): moved it to %s; continuing from step %d.", step, fault,
                         aside, steps[i + 1])
        runtime.barrier(f"checkpoint {folder}/{step} moved")


def _complete_steps(folder: Path) -> list[int]:
    """The steps of complete checkpoints, newest first, as process 0 sees them."""
    found = np.full(_MOST_KEPT, -1)
    if jax.process_index() == 0 and folder.exists():
        names = [path.name for path in folder.iterdir() if path.name.isdecimal() and is_complete(path)]
        steps = sorted(map(int, names), reverse=True)[:_MOST_KEPT]
        found[: len(steps)] = steps
    if jax.process_count() > 1:
        runtime.barrier(f"checkpoints {folder}")
        found = np.asarray(multihost_utils.broadcast_one_to_all(found))
    return [int(step) for step in found if step >= 0]


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
