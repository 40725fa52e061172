"""A whole system in one small file: what `load_checkpoint` reads from a run's folders, in half precision.

    python -m msg_jax.inference.packed CHECKPOINT FILE.safetensors
"""

import json
import os
import sys
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from msg_jax import networks
from msg_jax.clip import ClipSpec
from msg_jax.config import tree
from msg_jax.config.schema import Config
from msg_jax.errors import UserError
from msg_jax.inference import loading
from msg_jax.inference.system import System
from msg_jax.infra import checkpoint

_KEY, _SEPARATOR = "msg_jax", "/"


def pack(folder: str | os.PathLike, path: str | os.PathLike) -> None:
    """Write the system of a finished stage to a file, without what generating does not read.

    Raises UserError as `loading.load_checkpoint` does, and for a system with released networks.
    """
    parts = loading.read_checkpoint(folder)
    if parts.released is not None:
        raise UserError(f"{folder} uses released networks, whose weights are not packed: copy its run's folder instead.")
    arrays = {}
    variables = {name: parts.variables[name] for name in ("codec", "generator")}
    variables["encoders"] = networks.used_encoder_params(parts.config, parts.variables["encoders"])
    for name, part in variables.items():
        for place, leaf in jax.tree_util.tree_leaves_with_path(part):
            leaf, key = np.asarray(leaf), _SEPARATOR.join((name, *(str(each.key) for each in place)))
            arrays[key] = leaf.astype(np.float16) if leaf.dtype == np.float32 else leaf
    config = tree.replace(parts.config, data=dict(cache=Config().data.cache))  # a path of the machine that made the run
    facts = {"config": tree.to_dict(config), "clip": parts.clip.to_dict(), "sampling": parts.sampling,
             "digest": parts.digest}
    save_file(arrays, path, metadata={_KEY: json.dumps(facts)})


def load_packed(path: str | os.PathLike, precision: str | None = None) -> System:
    """Load a system from a file of `pack`. Its digest is that of the rounded generator.

    `precision` is that of `loading.load_checkpoint`.

    Raises UserError if the file is none, or if this version of the code has other networks.
    """
    variables: dict[str, Any] = {"encoders": {}, "codec": {}, "generator": {}}
    try:
        with safe_open(path, "np") as file:
            facts = json.loads((file.metadata() or {})[_KEY])
            for key in file.keys():  # noqa: SIM118 it is no dict
                *folders, leaf = key.split(_SEPARATOR)
                place = variables
                for folder in folders:
                    place = place.setdefault(folder, {})
                array = file.get_tensor(key)
                place[leaf] = array.astype(np.float32) if array.dtype == np.float16 else array
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} is not a packed system ({error}): make one with python -m msg_jax.inference.packed."
        ) from error
    parts = loading.Parts(
        str(path), tree.from_dict(Config, facts["config"]), ClipSpec.from_dict(facts["clip"]), facts["sampling"],
        checkpoint.digest(variables["generator"]), variables,
    )
    with networks.computing_in(precision):
        return loading.assemble(parts)


if __name__ == "__main__":
    pack(*sys.argv[1:])
