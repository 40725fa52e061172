"""Low-rank adaptation (Hu et al., arXiv 2106.09685) of networks built from models/layers.py.

The adapters are the variable collection `lora`, beside `params`. A layer with kernel W (..., in, out) has the adapter A
(..., in, rank), B (rank, out) and computes x W + (x A) B. Training makes no merged copy of W. Without the collection, the
same variables are the unadapted network. A convolution's A spans its window and B is pointwise, so that W + A B is the
merged kernel here too.

The optimiser updates A and B; `attach` scales B. The scale is the paper's alpha / rank: alpha = 32 at rank 16 is scale 2.
"""

import re
from typing import Any
import zlib

from flax import linen as nn
from flax import traverse_util
from flax.core import meta
import jax
import jax.numpy as jnp
from jaxtyping import Key

from msg_jax.errors import UserError
from msg_jax.models.layers import logical
from msg_jax.types import Array, Params

_KERNELS = (("dense", "kernel"), ("conv", "kernel"))  # of layers.Dense and layers.Conv, below the layer's own path
_Leaves = dict[tuple[str, ...], Any]  # of a flattened parameter tree, by path


def init(rng: Key[Array, ""], params: Params, rank: int, targets: str) -> Params:
    """Create float32 adapters for the layers whose path (`joint_0/latent/qkv`) matches the regular expression `targets`.

    A is He normal and B zero, so the adapted network starts equal to the original. `params` may hold shapes. If they are
    boxed with logical axis names, A gets the names of the kernel's inputs and B the name of its outputs.

    Raises UserError if `targets` is not a regular expression or matches no layer, or if `rank` is less than 1.
    """
    if rank < 1:
        raise UserError(f"lora_rank={rank}: give the rank of the adapters, or 0 to train all parameters.")
    leaves: _Leaves = traverse_util.flatten_dict(params)
    kernels = {path[:-2]: leaf for path, leaf in leaves.items() if path[-2:] in _KERNELS}
    try:
        chosen = {path: leaf for path, leaf in kernels.items() if re.search(targets, "/".join(path))}
    except re.error as error:
        raise UserError(f"lora_targets={targets!r} is not a regular expression ({error}).") from error
    if not chosen:
        raise UserError(f"lora_targets={targets!r} matches no layer; one of them is {'/'.join(min(kernels))}.")
    adapters = {}
    for path, kernel in chosen.items():
        if isinstance(kernel, meta.Partitioned):
            shape, names = kernel.value.shape, kernel.names
        else:
            shape, names = kernel.shape, (None,) * kernel.ndim
        key = jax.random.fold_in(rng, zlib.crc32("/".join(path).encode()))
        a, b = logical(nn.initializers.he_normal(), *names[:-1], None), logical(nn.initializers.zeros, None, names[-1])
        adapters[*path, "a"] = a(key, (*shape[:-1], rank), jnp.float32)
        adapters[*path, "b"] = b(key, (rank, shape[-1]), jnp.float32)
    return traverse_util.unflatten_dict(adapters)


def attach(variables: Params, adapters: Params, scale: float) -> Params:
    """Add the adapters to a network's variables as the collection `lora`, ready for `apply`."""
    leaves: _Leaves = traverse_util.flatten_dict(adapters)
    applied = {path: scale * leaf if path[-1] == "b" else leaf for path, leaf in leaves.items()}
    return variables | {"lora": traverse_util.unflatten_dict(applied)}


def merge(variables: Params) -> Params:
    """Replace every adapted W by W + A B and drop the collection `lora`; all other arrays are shared."""
    rest = {name: tree for name, tree in variables.items() if name != "lora"}
    if "lora" not in variables:
        return rest
    params: _Leaves = traverse_util.flatten_dict(rest["params"])
    adapters: _Leaves = traverse_util.flatten_dict(variables["lora"])
    for layer in {path[:-1] for path in adapters}:
        (kernel,) = (path for path in ((*layer, *end) for end in _KERNELS) if path in params)
        change = jnp.matmul(adapters[*layer, "a"], adapters[*layer, "b"], precision=jax.lax.Precision.HIGHEST)
        params[kernel] = params[kernel] + change
    return rest | {"params": traverse_util.unflatten_dict(params)}
