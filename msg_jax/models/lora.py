"""Low-rank adaptation (Hu et al., arXiv 2106.09685) of networks made of models/layers.py.

The adapters are a collection of variables beside `params`. That of a layer whose kernel W is (..., in, out) are A
(..., in, rank) and B (rank, out), and the layer computes x W + (x A) B: no merged copy of W is made while they are trained,
and the network without them is the same tree without the collection. A convolution's A spans its window, B is pointwise;
W + A B is its kernel as well.

The optimiser holds A and B; `attach` scales B. The scale is the paper's alpha / rank: alpha = 32 at rank 16 is scale 2.
"""

import re
import zlib

from flax import linen as nn
from flax import traverse_util
from flax.core import meta
import jax
import jax.numpy as jnp

from msg_jax.errors import UserError
from msg_jax.models.layers import logical
from msg_jax.types import Array, Params

_KERNELS = (("dense", "kernel"), ("conv", "kernel"))  # of layers.Dense and layers.Conv, below the layer's own path


def init(rng: Array, params: Params, rank: int, targets: str) -> Params:
    """Float32 adapters of the layers in whose path (`joint_0/latent/qkv`) the regular expression `targets` is found.

    A is He normal and B zero, so that the adapted network starts as the network itself. `params` may be shapes; where
    they are boxed with logical axis names, A has the names of the kernel's inputs and B that of its outputs.

    Raises UserError if `targets` is no regular expression or is found in no layer, or if `rank` is less than 1.
    """
    if rank < 1:
        raise UserError(f"lora_rank={rank}: give the rank of the adapters, or 0 to train all parameters.")
    kernels = {path[:-2]: leaf for path, leaf in traverse_util.flatten_dict(params).items() if path[-2:] in _KERNELS}
    try:
        chosen = {path: leaf for path, leaf in kernels.items() if re.search(targets, "/".join(path))}
    except re.error as error:
        raise UserError(f"lora_targets={targets!r} is not a regular expression ({error}).") from error
    if not chosen:
        raise UserError(f"lora_targets={targets!r} is found in the name of no layer; one is called {'/'.join(min(kernels))}.")
    adapters = {}
    for path, kernel in chosen.items():
        boxed = isinstance(kernel, meta.AxisMetadata)
        shape, names = (kernel.value.shape, kernel.names) if boxed else (kernel.shape, (None,) * kernel.ndim)
        key = jax.random.fold_in(rng, zlib.crc32("/".join(path).encode()))
        a, b = logical(nn.initializers.he_normal(), *names[:-1], None), logical(nn.initializers.zeros, None, names[-1])
        adapters[*path, "a"] = a(key, (*shape[:-1], rank), jnp.float32)
        adapters[*path, "b"] = b(key, (rank, shape[-1]), jnp.float32)
    return traverse_util.unflatten_dict(adapters)


def attach(variables: Params, adapters: Params, scale: float) -> Params:
    """`variables` of a network with the collection `lora` of these adapters: what `apply` takes."""
    applied = {path: scale * leaf if path[-1] == "b" else leaf for path, leaf in traverse_util.flatten_dict(adapters).items()}
    return variables | {"lora": traverse_util.unflatten_dict(applied)}


def merge(variables: Params) -> Params:
    """Variables of the same network without the collection `lora`: W + A B in place of W; all else is the same arrays."""
    rest = {name: tree for name, tree in variables.items() if name != "lora"}
    if "lora" not in variables:
        return rest
    params, adapters = traverse_util.flatten_dict(rest["params"]), traverse_util.flatten_dict(variables["lora"])
    for layer in {path[:-1] for path in adapters}:
        (kernel,) = (path for path in ((*layer, *end) for end in _KERNELS) if path in params)
        change = jnp.matmul(adapters[*layer, "a"], adapters[*layer, "b"], precision=jax.lax.Precision.HIGHEST)
        params[kernel] = params[kernel] + change
    return rest | {"params": traverse_util.unflatten_dict(params)}
