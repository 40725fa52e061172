"""Dense and convolution layers whose parameters carry logical axis names.

A name says what a dimension is, and `infra/mesh.py` maps it to a mesh axis. Names in use: `embed` (model width), `mlp`
(feed-forward width), `heads` (attention heads times head width), `modulation` (adaLN outputs, never split over
`tensor`), `conv_in`, `conv_out`, None (replicated).

A layer adds its adapter to its output if the collection `lora` holds one (models/lora.py).
"""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any, cast

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from msg_jax.models.device import platform
from msg_jax.types import AnyArray, Array

_FEW_CHANNELS = 8
_SEQUENCE_AXES = 3  # (B, N, D): a mesh may split two of them, which a reshape would join


def logical(initializer: nn.initializers.Initializer, *axes: str | None) -> Callable[..., Any]:
    """Wrap an initializer so that it boxes the parameter with one logical axis name per dimension."""
    return nn.with_logical_partitioning(initializer, axes)


def precision(dtype: DTypeLike) -> jax.lax.Precision | None:
    """What a product of this type needs: float32 is float32 on every device, where TPUs and GPUs would round its inputs.

    On TPUs it takes three passes of bfloat16 instead of six: half the time, two fifths of the compilation, and an error of
    1e-5 where one pass has 5e-3 (docs/LOG.md).
    """
    if jnp.dtype(dtype) != jnp.float32:
        return None
    return jax.lax.Precision.HIGH if platform() == "tpu" else jax.lax.Precision.HIGHEST


def product(dtype: DTypeLike) -> Callable[..., Array] | None:
    """What `nn.Dense` calls to multiply: None is XLA's product.

    On CPUs a product of bfloat16 arrays is float32 and rounded afterwards, which takes half the time of float32. XLA's
    product into bfloat16 takes longer than float32. Maps become matrices first, or the gradient of the kernel takes two to
    four times as long.
    """
    return _cpu_product if platform() == "cpu" else None


def _cpu_product(x: Array, kernel: Array, dimension_numbers: Any, **options: Any) -> Array:
    if x.ndim > _SEQUENCE_AXES:
        flat = _cpu_product(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **options)
        return flat.reshape(*x.shape[:-1], -1)
    options["preferred_element_type"] = jnp.float32
    return jax.lax.dot_general(x, kernel, dimension_numbers, **options).astype(x.dtype)


def convolution(dtype: DTypeLike) -> Callable[..., Array] | None:
    """What `nn.Conv` calls to convolve: None is XLA's convolution.

    On TPUs a strided window over a picture of few channels takes its pixels as channels, because XLA pads channels to 128.
    float32 windows over time are matrix products, because XLA compiles for half a minute at each float32 convolution.
    """
    return functools.partial(_tpu_convolution, jnp.dtype(dtype) == jnp.float32) if platform() == "tpu" else None


def _tpu_convolution(exact: bool, x: Array, kernel: Array, strides: Any, padding: Any, **options: Any) -> Array:
    if x.shape[-1] <= _FEW_CHANNELS and any(stride > 1 for stride in strides):
        return space_to_depth_convolution(x, kernel, strides, padding, **options)
    plain = unfolded_convolution if exact else jax.lax.conv_general_dilated
    return plain(x, kernel, strides, padding, **options)


def space_to_depth_convolution(
    x: Array, kernel: Array, strides: Sequence[int], padding: str | Sequence[tuple[int, int]], *,
    dimension_numbers: Any, precision: jax.lax.PrecisionLike, **options: Any,
) -> Array:
    """`lax.conv_general_dilated` (undilated) with stride 1 over blocks of `strides` positions, whose pixels are channels.

    The window grows to whole blocks; its new weights are zero.
    """
    *window, channels, features = kernel.shape
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:-1], window, strides, padding)
    blocks, pads = [], []
    for size, width, stride, (before, after) in zip(x.shape[1:-1], window, strides, padding):
        blocks.append(-(-width // stride))
        steps = (size + before + after - width) // stride + 1
        pads.append((before, stride * (steps - 1 + blocks[-1]) - size - before, 0))
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    grown = [(0, count * stride - width) for count, stride, width in zip(blocks, strides, window)]
    kernel = jnp.pad(kernel, [*grown, (0, 0), (0, 0)])

    def merge(array: Array, leading: tuple[int, ...], trailing: tuple[int, ...]) -> Array:
        """(*leading, n0 s0, n1 s1, ..., channels, *trailing) -> (*leading, n0, n1, ..., s0 s1 ... channels, *trailing)."""
        first, space = len(leading), len(strides)
        split = [n for size, stride in zip(array.shape[first:], strides) for n in (size // stride, stride)]
        array = array.reshape(*leading, *split, channels, *trailing)
        outer, inner = (list(range(first + start, first + 2 * space, 2)) for start in (0, 1))
        rest = list(range(first + 2 * space, array.ndim))
        array = array.transpose(*range(first), *outer, *inner, *rest)
        return array.reshape(*leading, *array.shape[first : first + space], math.prod(strides) * channels, *trailing)

    return jax.lax.conv_general_dilated(
        merge(x, (len(x),), ()), merge(kernel, (), (features,)), (1,) * len(strides), "VALID",
        dimension_numbers=dimension_numbers, precision=precision,
    )


def unfolded_convolution(
    x: Array, kernel: Array, strides: Sequence[int], padding: str | Sequence[tuple[int, int]], *,
    rhs_dilation: Sequence[int], precision: jax.lax.PrecisionLike, **options: Any,
) -> Array:
    """`lax.conv_general_dilated` as one matrix product of shifted copies, if only the last axis of space has a window."""
    *flat, taps, channels, features = kernel.shape
    if any(size != 1 for size in (*flat, *strides)):
        return jax.lax.conv_general_dilated(
            x, kernel, strides, padding, rhs_dilation=rhs_dilation, precision=precision, **options
        )
    dilation = rhs_dilation[-1]
    if isinstance(padding, str):
        window = [(size - 1) * step + 1 for size, step in zip(kernel.shape[:-2], rhs_dilation)]
        padding = jax.lax.padtype_to_pads(x.shape[1:-1], window, strides, padding)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    length = x.shape[-2] - (taps - 1) * dilation
    copies = [jax.lax.slice_in_dim(x, i * dilation, i * dilation + length, axis=-2) for i in range(taps)]
    return jnp.matmul(jnp.concatenate(copies, axis=-1), kernel.reshape(taps * channels, features), precision=precision)


def _adapted(module: nn.Module, layer: nn.Dense | nn.Conv, x: AnyArray) -> Array:
    """Return layer(x), plus (x A) B if `module` has an adapter; A is the kernel of the same layer with `rank` outputs."""
    y = layer(x)
    if not module.has_variable("lora", "a"):
        return y
    a, b = (module.get_variable("lora", name) for name in "ab")
    down = layer.clone(features=a.shape[-1], use_bias=False, parent=None, name=None)
    low_rank = cast(Array, down.apply({"params": {"kernel": a}}, x))
    return y + jnp.matmul(low_rank, b.astype(y.dtype), precision=layer.precision)


class Dense(nn.Module):
    """`nn.Dense` with logical axis names (input, output) on its kernel."""

    features: int
    axes: tuple[str | None, str | None] = ("embed", "mlp")
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: Float[AnyArray, "*batch D"]) -> Float[Array, "*batch features"]:
        return _adapted(self, nn.Dense(
            self.features, use_bias=self.use_bias, dtype=self.dtype, name="dense", precision=precision(self.dtype),
            dot_general=product(self.dtype),
            kernel_init=logical(self.kernel_init, *self.axes),
            bias_init=logical(nn.initializers.zeros_init(), self.axes[1]),
        ), x)


class Conv(nn.Module):
    """`nn.Conv` (channels last, any number of spatial dimensions) with logical axis names on its kernel."""

    features: int
    kernel_size: Sequence[int]
    strides: Sequence[int] | None = None
    padding: str | Sequence[tuple[int, int]] = "SAME"
    axes: tuple[str | None, str | None] = ("conv_in", "conv_out")
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: Float[AnyArray, "B *space C"]) -> Float[Array, "B *strided features"]:
        spatial = (None,) * len(self.kernel_size)
        return _adapted(self, nn.Conv(
            self.features, tuple(self.kernel_size), strides=self.strides, padding=self.padding, use_bias=self.use_bias,
            dtype=self.dtype, name="conv", precision=precision(self.dtype), conv_general_dilated=convolution(self.dtype),
            kernel_init=logical(self.kernel_init, *spatial, *self.axes),
            bias_init=logical(nn.initializers.zeros_init(), self.axes[1]),
        ), x)
