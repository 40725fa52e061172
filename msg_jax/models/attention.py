"""Scaled dot-product attention by the kernel that suits device, type and shape.

XLA's own attention writes the logits (B, heads, T, S) in float32, forward and backward. The kernels for accelerators keep
them on the chip; that for CPUs divides the result instead of the logits, and goes through the heads one by one where all
logits together would not fit a cache. All compute softmax in float32.
"""

import contextlib
import functools
from typing import Literal

import jax
from jax.experimental.pallas.ops.tpu import flash_attention as pallas
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool, Float

from msg_jax.models.device import BATCH_AXES, platform
from msg_jax.types import Array

Implementation = Literal["xla", "cudnn", "flash", "heads"] | None
"""`xla` and `heads` run everywhere, `cudnn` on GPUs, `flash` (Pallas) on TPUs. None chooses by `suited`."""

HEAD_AXIS = "tensor"  # of a mesh
_LANES = 128  # of a TPU: lengths are padded to a multiple
_LARGEST_BLOCK = 512
_LEAST_LENGTH = 128  # shorter sequences have logits too small to matter
_MOST_FEATURES = 128  # of a head
_CACHED_LOGITS = 2**23  # of all heads: 32 MB


def suited(q: Array, k: Array) -> Implementation:
    """`heads` on CPUs; an accelerator's kernel for bfloat16, at most 128 features a head and 128 tokens or more; else `xla`."""
    if platform() == "cpu":
        return "heads"
    kernel: Implementation = {"gpu": "cudnn", "tpu": "flash"}.get(platform(), "xla")  # pyright: ignore
    fits = q.dtype == jnp.bfloat16 and q.shape[-1] <= _MOST_FEATURES and q.shape[-1] % 8 == 0
    return kernel if fits and min(q.shape[1], k.shape[1]) >= _LEAST_LENGTH else "xla"


def attend(
    q: Float[Array, "B T heads D"], k: Float[Array, "B S heads D"], v: Float[Array, "B S heads D"], *,
    causal: bool = False, mask: Bool[Array, "B 1 T S"] | None = None, implementation: Implementation = None,
) -> Float[Array, "B T heads D"]:
    """softmax(q k^T / sqrt(D)) v. float32 inputs are multiplied as float32 on every device.

    A query sees the keys where `mask` is True. The Pallas kernel takes no mask, and is replaced by XLA's attention.
    """
    implementation = implementation or suited(q, k)
    if mask is not None:
        assert not causal
        if implementation == "heads":
            return _by_heads(q, k, v, mask)
        kernel = "cudnn" if implementation == "cudnn" else "xla"
        with jax.default_matmul_precision("highest") if q.dtype == jnp.float32 else contextlib.nullcontext():
            return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=kernel)
    if implementation == "flash":
        return _flash(q, k, v, causal)
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn")
    if implementation == "heads":
        return _by_heads(q, k, v, jnp.tri(q.shape[1], k.shape[1], dtype=bool) if causal else None)
    with jax.default_matmul_precision("highest") if q.dtype == jnp.float32 else contextlib.nullcontext():
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="xla")


def _by_heads(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    """Attention with heads as a batch axis, or in a loop over rows and heads if their logits would leave the cache.

    Rows share the `mask` (T, S), or each has its own (B, 1, T, S) and the loop is not used.
    """
    (rows, length, heads, _), keys = q.shape, k.shape[1]
    exact = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    product = functools.partial(jnp.matmul, precision=exact, preferred_element_type=jnp.float32)

    def one(q: Array, k: Array, v: Array) -> Array:
        logits = product(q * q.shape[-1] ** -0.5, k.mT)
        logits = logits if mask is None else jnp.where(mask, logits, -jnp.inf)
        weights = jnp.exp(logits - logits.max(-1, keepdims=True))
        return (product(weights.astype(v.dtype), v) / weights.sum(-1, keepdims=True)).astype(v.dtype)

    by_row = mask is not None and mask.ndim > 2
    if by_row or min(length, keys) < _LEAST_LENGTH or rows * heads * length * keys < _CACHED_LOGITS or _is_spread():
        return one(*(x.swapaxes(1, 2) for x in (q, k, v))).swapaxes(1, 2)

    def of_head(i: Array) -> Array:
        return one(*(jax.lax.dynamic_slice(x, (i // heads, 0, i % heads, 0), (1, x.shape[1], 1, x.shape[3]))[0, :, 0]
                     for x in (q, k, v)))

    return jax.lax.map(of_head, jnp.arange(rows * heads)).reshape(rows, heads, length, -1).swapaxes(1, 2)


def _is_spread() -> bool:
    """Whether rows and heads may lie on several devices, which a loop would gather."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1


def _flash(q: Array, k: Array, v: Array, causal: bool) -> Array:
    """Flash attention of every device's own rows and heads: a Pallas call cannot be partitioned by the compiler."""
    mesh = jax.sharding.get_abstract_mesh()
    local = functools.partial(_flash_local, causal=causal)
    if mesh.empty:
        return local(q, k, v)
    rows = BATCH_AXES if q.shape[0] % (mesh.shape[BATCH_AXES[0]] * mesh.shape[BATCH_AXES[1]]) == 0 else None
    spec = P(rows, None, HEAD_AXIS if q.shape[2] % mesh.shape[HEAD_AXIS] == 0 else None)
    return jax.shard_map(local, in_specs=(spec, spec, spec), out_specs=spec, check_vma=False)(q, k, v)


def _flash_local(q: Array, k: Array, v: Array, causal: bool) -> Array:
    """Pad both lengths to whole blocks. Padding is another segment, so no token attends to it."""
    length, features = q.shape[1], q.shape[-1]

    def padded(x):
        return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, -x.shape[1] % _LANES), (0, 0)))

    def segments(x):
        tokens = x.shape[1] + -x.shape[1] % _LANES
        return jnp.broadcast_to((jnp.arange(tokens) >= x.shape[1]).astype(jnp.int32), (x.shape[0], tokens))

    ids = pallas.SegmentIds(segments(q), segments(k))
    q, k, v = padded(q), padded(k), padded(v)
    rows, columns = _block(q.shape[2]), _block(k.shape[2])
    blocks = pallas.BlockSizes(
        block_q=rows, block_k_major=columns, block_k=columns, block_b=1, block_q_major_dkv=rows, block_k_major_dkv=columns,
        block_k_dkv=columns, block_q_dkv=rows, block_q_dq=rows,
        block_k_major_dq=_LANES, block_k_dq=_LANES,  # this kernel reads T x block_k_major float32 values of its own making
    )
    out = pallas.flash_attention(
        q, k, v, segment_ids=ids, causal=causal, sm_scale=features**-0.5, block_sizes=blocks
    )
    return out[:, :, :length].swapaxes(1, 2)


def _block(length: int) -> int:
    """The largest multiple of the lanes that divides a padded length, within what fits the chip's memory."""
    return max(size for size in range(_LANES, _LARGEST_BLOCK + 1, _LANES) if length % size == 0)
