"""Floating-point operations of a traced program: those of its matrix products and convolutions, with loops counted in full.

XLA's own count is not used. Accelerators give none (PJRT's C interface), and it takes a loop's body once.
"""

from collections.abc import Iterator, Sequence
import math
from typing import Any

from jax.extend import core
import numpy as np


def count(program: core.ClosedJaxpr | core.Jaxpr, *, kernels: bool = True) -> int:
    """Operations over all devices; a multiplication and an addition count as two.

    A `scan` counts all its steps, a `while` loop one, a `cond` its dearest branch, and a `shard_map` what its shards compute
    together. Rematerialised operations count twice, as they are computed twice. `kernels=False` leaves out the kernels
    of Pallas and cuDNN, whose operations a compiled program does not show (`hlo.Module.operations`).
    """
    jaxpr = program.jaxpr if isinstance(program, core.ClosedJaxpr) else program
    return sum(_of_equation(equation, kernels) for equation in jaxpr.eqns)


def _of_equation(equation: Any, kernels: bool = True) -> int:
    name, parameters = equation.primitive.name, equation.params
    if not kernels and name in _KERNELS:
        return 0
    if name in _COUNTED:
        return _COUNTED[name](equation)
    inside = [count(each, kernels=kernels) for each in _jaxprs(parameters.values())]
    if name == "cond":
        return max(inside, default=0)
    times = 1
    if name == "scan":
        times = parameters["length"]
    elif name == "shard_map":  # shapes inside are those of one shard; devices with the same rows repeat each other
        split = {axis for spec in parameters["in_specs"] for axes in spec for axis in _tuple(axes)}
        times = math.prod(parameters["mesh"].shape[axis] for axis in split)
    elif name == "pallas_call":
        times = math.prod(parameters["grid_mapping"].grid)
    return times * sum(inside)


def _tuple(axes: Any) -> tuple:
    return axes if isinstance(axes, tuple) else () if axes is None else (axes,)


def _jaxprs(values: Any) -> Iterator[core.ClosedJaxpr | core.Jaxpr]:
    for value in values:
        if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _jaxprs(value)


def _dot(equation: Any) -> int:
    """Twice the product of all dimensions: those of the result, and those summed over."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> int:
    """Products with padding, and with the zeros between the elements of a dilated input, are left out, as XLA does."""
    parameters = equation.params
    left, right, out = (variable.aval.shape for variable in (*equation.invars[:2], equation.outvars[0]))
    numbers = parameters["dimension_numbers"]
    met = math.prod(
        pairs(left[i], right[k], out[o], stride, padding, spread, dilation)
        for i, k, o, stride, padding, spread, dilation in zip(
            numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], parameters["window_strides"],
            parameters["padding"], parameters["lhs_dilation"], parameters["rhs_dilation"],
        )
    )
    batch = out[numbers.out_spec[0]]
    return 2 * batch * right[numbers.rhs_spec[0]] * right[numbers.rhs_spec[1]] * met


def pairs(size: int, kernel: int, out: int, stride: int, padding: Sequence[int], spread: int, dilation: int) -> int:
    """Pairs of a place in a convolution's result and in its kernel that meet an element of the input, along one dimension.

    `padding` is that before and after the input, `spread` the distance of its elements, `dilation` that of the kernel's.
    """
    place = np.arange(out)[:, None] * stride + np.arange(kernel) * dilation - padding[0]
    return int(((place >= 0) & (place <= (size - 1) * spread) & (place % spread == 0)).sum())


def _attention(products: int):
    """Of cuDNN's fused attention of queries (B, T, heads, D) and keys (B, N, heads, D), which has no jaxpr."""
    def of(equation: Any) -> int:
        (batch, length, heads, width), (_, others, *_) = (variable.aval.shape for variable in equation.invars[:2])
        return products * 2 * batch * heads * length * others * width

    return of


_KERNELS = ("pallas_call", "dot_product_attention_fwd_wrapper", "dot_product_attention_bwd_wrapper")
_COUNTED = {
    "dot_general": _dot, "conv_general_dilated": _convolution,
    "dot_product_attention_fwd_wrapper": _attention(2),
    "dot_product_attention_bwd_wrapper": _attention(5),  # the logits are computed again
}
