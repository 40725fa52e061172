"""Dense and convolution layers whose parameters carry logical axis names.

A name says what a dimension is, and `infra/mesh.py` maps it to a mesh axis. Names in use: `embed` (model width), `mlp`
(feed-forward width), `heads` (attention heads times head width), `modulation` (adaLN outputs, never split over
`tensor`), `conv_in`, `conv_out`, None (replicated).

A layer adds its adapter to its output if the collection `lora` holds one (models/lora.py).
"""

from collections.abc import Callable, Sequence
from typing import Any

from flax import linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from msg_jax.types import AnyArray, Array


def logical(initializer: nn.initializers.Initializer, *axes: str | None) -> Callable[..., Any]:
    """Wrap an initializer so that it boxes the parameter with one logical axis name per dimension."""
    return nn.with_logical_partitioning(initializer, axes)


def _adapted(module: nn.Module, layer: nn.Dense | nn.Conv, x: AnyArray) -> Array:
    """Return layer(x), plus (x A) B if `module` has an adapter; A is the kernel of the same layer with `rank` outputs."""
    y = layer(x)
    if not module.has_variable("lora", "a"):
        return y
    a, b = (module.get_variable("lora", name) for name in "ab")
    down = layer.clone(features=a.shape[-1], use_bias=False, parent=None, name=None)
    return y + down.apply({"params": {"kernel": a}}, x) @ b.astype(y.dtype)


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
            self.features, use_bias=self.use_bias, dtype=self.dtype, name="dense",
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
            dtype=self.dtype, name="conv",
            kernel_init=logical(self.kernel_init, *spatial, *self.axes),
            bias_init=logical(nn.initializers.zeros_init(), self.axes[1]),
        ), x)
