"""The kernels of attention against XLA's. TPU kernels run in Pallas's interpreter."""

import functools

from golden_files import relative_error
import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from msg_jax.infra import mesh as mesh_lib
from msg_jax.models import attention


def qkv(batch, length, keys, heads, features, dtype=jnp.float32):
    draw = np.random.default_rng(0).normal
    shapes = ((batch, length, heads, features), *[(batch, keys, heads, features)] * 2)
    return tuple(jnp.asarray(draw(size=shape), dtype) for shape in shapes)


def value_and_gradients(implementation, causal, q, k, v):
    def loss(q, k, v):
        out = attention.attend(q, k, v, causal=causal, implementation=implementation)
        return jnp.sum(jnp.sin(3 * out.astype(jnp.float32))), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return out, *gradients


@pytest.mark.parametrize("length, keys, causal", [(130, 150, False), (140, 140, True)])
def test_flash_attention_equals_xlas(length, keys, causal):
    """Padded to 256 keys, with a gradient; lengths differ where the last joint block has queries of one stream alone."""
    inputs = qkv(2, length, keys, 1, 8)
    expected = value_and_gradients("xla", causal, *inputs)
    with pltpu.force_tpu_interpret_mode():
        found = value_and_gradients("flash", causal, *inputs)
    for a, b in zip(found, expected):
        assert a.shape == b.shape and relative_error(a, b) < 1e-5


@pytest.mark.parametrize("cached", [0, 2**23])
@pytest.mark.parametrize("length, keys, causal", [(130, 150, False), (140, 140, True), (1, 150, False)])
def test_attention_by_heads_equals_xlas(length, keys, causal, cached, monkeypatch):
    """In a loop over rows and heads, or all at once; a single query is never worth a loop."""
    monkeypatch.setattr(attention, "_CACHED_LOGITS", cached)
    inputs = qkv(2, length, keys, 3, 8)
    found = value_and_gradients("heads", causal, *inputs)
    loops = str(jax.make_jaxpr(functools.partial(attention.attend, implementation="heads"))(*inputs)).count("scan[")
    assert loops == (cached == 0 and length > 1)
    for a, b in zip(found, value_and_gradients("xla", causal, *inputs)):
        assert a.shape == b.shape and relative_error(a, b) < 1e-6


def test_attention_by_heads_multiplies_bfloat16_and_sums_float32():
    inputs = qkv(1, 130, 130, 1, 8)
    halves = [x.astype(jnp.bfloat16) for x in inputs]
    exact, xla, heads = (
        attention.attend(*x, implementation=name)
        for x, name in ((inputs, "xla"), (halves, "xla"), (halves, "heads"))
    )
    assert heads.dtype == jnp.bfloat16
    assert relative_error(heads.astype(jnp.float32), exact) < 1.2 * relative_error(xla.astype(jnp.float32), exact)


def test_flash_attention_in_bfloat16_is_as_near_to_float32_as_xlas():
    inputs = qkv(1, 130, 130, 1, 8)
    halves = [x.astype(jnp.bfloat16) for x in inputs]
    exact, xla = attention.attend(*inputs, implementation="xla"), attention.attend(*halves, implementation="xla")
    with pltpu.force_tpu_interpret_mode():
        flash = jax.jit(functools.partial(attention.attend, implementation="flash"))(*halves)
    assert flash.dtype == xla.dtype == jnp.bfloat16
    assert relative_error(flash.astype(jnp.float32), exact) < 1.2 * relative_error(xla.astype(jnp.float32), exact)


def test_every_device_attends_over_its_own_rows_and_heads():
    assert (P(attention.BATCH_AXES), attention.HEAD_AXIS) == (mesh_lib.BATCH, mesh_lib.RULES["heads"])
    mesh = mesh_lib.make_mesh((2, 2, 2))
    inputs = qkv(4, 128, 128, 2, 8)
    expected = attention.attend(*inputs, implementation="xla")
    with jax.set_mesh(mesh), pltpu.force_tpu_interpret_mode():
        spec = P(("fsdp", "data"), None, "tensor")
        placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x in inputs]
        compiled = jax.jit(functools.partial(attention.attend, implementation="flash")).lower(*placed).compile()
        found = compiled(*placed)
    assert found.sharding.spec == spec and "all-gather" not in compiled.as_text()
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("platform, kernel", {"tpu": "flash", "cuda": "cudnn", "cpu": "heads"}.items())
def test_the_device_type_and_shape_choose_the_kernel(platform, kernel):
    device = jax.sharding.AbstractDevice(device_kind="", num_cores=1, platform=platform)
    mesh = jax.sharding.AbstractMesh((1,), ("data",), (jax.sharding.AxisType.Auto,), abstract_device=device)

    def chosen(length, features, dtype):
        q = jnp.zeros((1, length, 1, features), dtype)
        return attention.suited(q, q)

    with jax.sharding.use_abstract_mesh(mesh):
        assert chosen(486, 64, jnp.bfloat16) == chosen(730, 80, jnp.bfloat16) == kernel
        other = "heads" if platform == "cpu" else "xla"
        assert chosen(486, 64, jnp.float32) == chosen(9, 64, jnp.bfloat16) == chosen(486, 1536, jnp.bfloat16) == other


@pytest.mark.parametrize("length", [6, 130])
@pytest.mark.parametrize("implementation", ["xla", "heads", "flash"])
def test_a_mask_of_each_row(implementation, length):
    """Against softmax by hand; the kernel for TPUs takes none, so there XLA's is used."""
    q, k, v = qkv(2, length, length, 2, 4)
    mask = np.random.default_rng(1).random((2, 1, length, length)) < 0.5
    mask |= np.eye(length, dtype=bool)
    found = jax.jit(functools.partial(attention.attend, implementation=implementation))(q, k, v, mask=jnp.asarray(mask))
    logits = np.where(mask, np.einsum("bqhd,bkhd->bhqk", q, k) / 2, -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    expected = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(axis=-1, keepdims=True), v)
    assert relative_error(found, expected) < 1e-5
