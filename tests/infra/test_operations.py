"""Counted operations against values by hand and against XLA's count for the CPU."""

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import pytest

from msg_jax.infra import mesh as mesh_lib
from msg_jax.infra import operations
from msg_jax.models import attention


def counted(function, *inputs):
    return operations.count(jax.jit(function).trace(*inputs).jaxpr)


def xla(function, *inputs):
    return jax.jit(function).lower(*inputs).cost_analysis()["flops"]


A, B = jax.ShapeDtypeStruct((3, 8, 16), jnp.float32), jax.ShapeDtypeStruct((3, 16, 5), jnp.float32)
PRODUCT = 2 * 3 * 8 * 16 * 5


def test_a_batched_product():
    assert counted(jnp.matmul, A, B) == xla(jnp.matmul, A, B) == PRODUCT


def test_its_gradient_is_two_products_more():
    both = jax.grad(lambda a, b: (jnp.matmul(a, b) ** 2).sum(), argnums=(0, 1))
    assert counted(both, A, B) == 3 * PRODUCT


@pytest.mark.parametrize("options", [
    dict(window_strides=(1, 1), padding="SAME"),
    dict(window_strides=(2, 3), padding="SAME"),
    dict(window_strides=(1, 2), padding="VALID", rhs_dilation=(2, 1)),
    dict(window_strides=(1, 1), padding=((3, 2), (1, 0)), lhs_dilation=(2, 3)),  # a transposed convolution
    dict(window_strides=(1, 1), padding="SAME", feature_group_count=2),
])
def test_convolutions_and_their_gradients_are_those_that_xla_counts(options):
    groups = options.get("feature_group_count", 1)
    x, kernel = jnp.zeros((2, 9, 11, 4)), jnp.zeros((3, 5, 4 // groups, 6))

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)

    assert counted(convolve, x, kernel) == xla(convolve, x, kernel) > 0
    _, pull = jax.vjp(convolve, x, kernel)
    cotangent = jax.ShapeDtypeStruct(convolve(x, kernel).shape, jnp.float32)
    assert counted(pull, cotangent) == pytest.approx(xla(pull, cotangent), rel=1e-6)


def test_a_convolution_by_hand():
    """A kernel of 3 over 4 places with padding has 2 + 3 + 3 + 2 pairs; 5 inputs, 7 outputs, 2 items."""
    x, kernel = jnp.zeros((2, 4, 5)), jnp.zeros((3, 5, 7))
    convolve = nn.Conv(7, (3,), use_bias=False).apply
    assert counted(convolve, {"params": {"kernel": kernel}}, x) == 2 * 10 * 5 * 7 * 2


def test_a_scan_counts_every_step_and_a_loop_inside_a_loop_both():
    def powers(a, steps):
        return jax.lax.scan(lambda x, _: (x @ a, None), a, None, length=steps)[0]

    square = jnp.zeros((4, 4))
    assert counted(lambda a: powers(a, 7), square) == 7 * 2 * 4**3
    nested = jax.lax.scan
    assert counted(lambda a: nested(lambda x, _: (powers(x, 7), None), a, None, length=5)[0], square) == 35 * 2 * 4**3
    gradient = jax.grad(lambda a: powers(a, 7).sum())
    assert counted(gradient, square) == 3 * 7 * 2 * 4**3
    assert xla(lambda a: powers(a, 7), square) < 2 * 2 * 4**3  # XLA counts one


def test_rematerialised_products_count_twice_and_a_branch_at_its_dearest():
    square = jnp.zeros((4, 4))

    def block(a):
        return (jnp.sin(a @ a) @ a).sum()

    def products(function):
        return counted(jax.grad(function), square) / (2 * 4**3)

    assert products(block) == 2 + 4
    assert products(jax.checkpoint(block)) == 2 + 4 + 1  # sin needs its argument again; its product is the first
    assert counted(lambda a: jax.lax.cond(a[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, a), square) == 4 * 4**3


def test_shards_are_counted_together_and_repeated_ones_once():
    mesh = mesh_lib.make_mesh((2, 2, 2))
    product = jax.shard_map(
        lambda x: x @ x.T, mesh=mesh, in_specs=P(("fsdp", "data")), out_specs=P(("fsdp", "data"))
    )
    assert counted(product, jnp.zeros((8, 16))) == 4 * 2 * 2 * 16 * 2


def test_cudnn_attention_counts_its_products():
    """Two products of 8 x 6 x 16 for each of 2 x 3 heads; the backward pass has four, and the logits again."""
    product = 2 * 2 * 3 * 8 * 6 * 16

    class Variable:
        def __init__(self, *shape):
            self.aval = jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    class Equation:
        invars = (Variable(2, 8, 3, 16), Variable(2, 6, 3, 16), Variable(2, 6, 3, 16))
        params = ()

        def __init__(self, name):
            self.primitive = type("Primitive", (), {"name": name})

    assert operations._of_equation(Equation("dot_product_attention_fwd_wrapper")) == 2 * product
    assert operations._of_equation(Equation("dot_product_attention_bwd_wrapper")) == 5 * product


def test_operations_outside_of_kernels():
    x = jnp.zeros((1, 128, 2, 64), jnp.bfloat16)

    def attend(x):
        return attention.attend(x, x, x, implementation="flash") @ jnp.zeros((64, 3), jnp.bfloat16)

    program = jax.make_jaxpr(attend)(x)
    outside = 2 * 128 * 2 * 64 * 3
    assert operations.count(program, kernels=False) == outside
    assert operations.count(program) == outside + 2 * 2 * 2 * 128 * 128 * 64
