"""Dense and convolution layers whose parameters carry logical axis names.

The names say what a dimension is; `infra/mesh.py` says on which mesh axis it lies. Names in use: `embed` (model width),
`mlp` (feed-forward width), `heads` (attention heads times head width), `modulation` (adaLN outputs, never split over
`tensor`), `conv_in`, `conv_out`, None (replicated).

A layer for which the collection `lora` holds an adapter adds it to its output (models/lora.py).
"""

from collections.abc import Sequence

from flax import linen as nn
import jax.numpy as jnp

from msg_jax.types import Array


def logical(initializer, *axes: str | None):
    """`initializer` whose parameter is annotated with one logical axis name per dimension."""
    return nn.with_logical_partitioning(initializer, axes)


def _adapted(module: nn.Module, layer: nn.Dense | nn.Conv, x: Array) -> Array:
    """layer(x), plus (x A) B where `module` has an adapter: A is the kernel of such a layer with `rank` outputs."""
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
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: Array) -> Array:
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
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        spatial = (None,) * len(self.kernel_size)
        return _adapted(self, nn.Conv(
            self.features, tuple(self.kernel_size), strides=self.strides, padding=self.padding, use_bias=self.use_bias,
            dtype=self.dtype, name="conv",
            kernel_init=logical(self.kernel_init, *spatial, *self.axes),
            bias_init=logical(nn.initializers.zeros_init(), self.axes[1]),
        ), x)
