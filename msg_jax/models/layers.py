"""Dense and convolution layers whose parameters carry logical axis names.

A name says what a dimension is, and `infra/mesh.py` maps it to a mesh axis. Names in use: `embed` (model width), `mlp`
(feed-forward width), `heads` (attention heads times head width), `modulation` (adaLN outputs, never split over
`tensor`), `conv_in`, `conv_out`, None (replicated).

A layer adds its adapter to its output if the collection `lora` holds one (models/lora.py).
"""

from collections.abc import Callable, Sequence
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from msg_jax.models.device import platform
from msg_jax.types import AnyArray, Array


def logical(initializer: nn.initializers.Initializer, *axes: str | None) -> Callable[..., Any]:
    """Wrap an initializer so that it boxes the parameter with one logical axis name per dimension."""
    return nn.with_logical_partitioning(initializer, axes)


def precision(dtype: DTypeLike) -> jax.lax.Precision | None:
    """What a product of this type needs: float32 is float32 on every device, where TPUs and GPUs would round its inputs."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


def convolution(dtype: DTypeLike) -> Callable[..., Array] | None:
    """What `nn.Conv` calls to convolve: None is XLA's convolution.

    XLA for TPUs compiles for half a minute at each float32 convolution, so float32 windows over time are matrix products.
    """
    return unfolded_convolution if platform() == "tpu" and jnp.dtype(dtype) == jnp.float32 else None


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
    return y + jnp.matmul(down.apply({"params": {"kernel": a}}, x), b.astype(y.dtype), precision=layer.precision)


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
