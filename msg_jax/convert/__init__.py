"""Conversion of PyTorch checkpoints to Flax modules and variables."""

import importlib
from typing import Any

from flax import linen as nn

from msg_jax.convert.weights import Tensors
from msg_jax.errors import UserError
from msg_jax.types import Params

CONVERTERS = {
    "mmdit": "msg_jax.convert.mmdit",
    "vae": "msg_jax.convert.vae",
    "bigvgan": "msg_jax.convert.bigvgan",
    "clip": "msg_jax.convert.clip",
    "synchformer": "msg_jax.convert.synchformer",
    "synchformer_full": "msg_jax.convert.synchformer_full",
    "vjepa2": "msg_jax.convert.vjepa2",
    "panns": "msg_jax.convert.panns",
    "vggish": "msg_jax.convert.vggish",
}
"""Kind of network -> module with its `from_tensors(tensors, config, source)`."""


def from_torch(kind: str, tensors: Tensors, config: Any = None, source: str = "checkpoint") -> tuple[nn.Module, Params]:
    """Convert the tensors of `weights.read_checkpoint` to a Flax module and its variables.

    `config` goes to the kind's `from_tensors`; `source` names the file in error messages. Raises UserError for an unknown
    kind, and with one sentence that lists every missing, unknown or misshaped tensor.
    """
    if kind not in CONVERTERS:
        raise UserError(f"unknown kind of network {kind!r}: choose one of {', '.join(CONVERTERS)}")
    return importlib.import_module(CONVERTERS[kind]).from_tensors(tensors, config, source)
