"""SlowFast: the papers' shapes and size, factored and 3-D convolutions, exact receptive fields, no aliasing."""

import dataclasses
import math

from flax import linen as nn
from golden_files import relative_error
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest
from topologies import traced_for_tpu

from msg_jax.models.slowfast import (
    AUDIO_R50,
    AUDIO_TINY,
    VIDEO_R50,
    VIDEO_TINY,
    FrameNorm,
    SlowFast,
    SlowFastConfig,
    SpaceConv,
    Stem,
    TimeConv,
    low_pass_subsample,
)

SMALL = SlowFastConfig(
    depths=(1, 1), slow_width=16, beta_inv=2, expansion=1, slow_kernels=(1, 3), fast_kernels=(3, 3),
    slow_stem=(1, 3, 1), fast_stem=(5, 3, 1), spatial_kernel=(3, 1), stem_strides=(1, 2, 1),
    pool_window=(1, 1, 1), pool_strides=(1, 1, 1),
    lateral_kernel=5, factored_stem=True, slow_window=8,
)


def abstract(config, shape):
    """Return output shapes and parameter count, without computing anything."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    (slow, fast, _), params = jax.eval_shape(lambda x: SlowFast(config).init_with_output(jax.random.key(0), x), x)
    return slow, fast, sum(math.prod(p.shape) for p in jax.tree.leaves(params))


def initialised(config, shape):
    """Return parameters without zeros, so that every branch is open (residual branches start at zero)."""
    params = jax.jit(SlowFast(config).init)(jax.random.key(0), jnp.zeros(shape))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape, np.float32), params)


def test_video_r50_has_the_published_shape_and_size():
    slow, fast, parameters = abstract(VIDEO_R50, (1, 32, 224, 224, 3))
    assert slow.shape == (1, 8, 2048) and fast.shape == (1, 32, 256)
    classifier = (2048 + 256) * 400 + 400
    assert parameters + classifier == pytest.approx(34.57e6, rel=2e-3)  # SlowFast 8x8, R50, Kinetics-400


def test_audio_r50_has_the_published_shape():
    slow, fast, _ = abstract(AUDIO_R50, (1, 400, 128, 1, 1))  # 4 s at 100 Hz, 128 bands
    assert slow.shape == (1, 25, 2048) and fast.shape == (1, 100, 256)
    assert AUDIO_R50.fast_stride == 4


@pytest.mark.parametrize(
    "config,shape,positions", [(VIDEO_TINY, (1, 80, 24, 24, 3), 3 * 3), (AUDIO_TINY, (1, 160, 40, 1, 1), 5)]
)
def test_tiny_streams_of_both_modalities_run_at_the_same_rates_and_keep_positions(config, shape, positions):
    slow, fast, _ = abstract(config, shape)
    assert slow.shape == (1, 20, 128 * positions) and fast.shape == (1, 80, 32 * positions)


@pytest.mark.parametrize("stride", [1, 4])
def test_time_conv_is_a_3d_convolution(stride):
    x = jax.random.normal(jax.random.key(0), (2, 10, 3, 2, 4))
    conv = TimeConv(6, 5, stride)
    params = conv.init(jax.random.key(1), x)
    (kernel,) = jax.tree.leaves(params)
    expected = convolve_3d(x, kernel.reshape(5, 1, 1, 4, 6), (stride, 1, 1))
    np.testing.assert_allclose(conv.apply(params, x), expected, atol=1e-5)


def test_space_conv_is_a_3d_convolution():
    x = jax.random.normal(jax.random.key(0), (2, 4, 7, 6, 3))
    conv = SpaceConv(5, (3, 3), (2, 2))
    params = conv.init(jax.random.key(1), x)
    (kernel,) = jax.tree.leaves(params)
    np.testing.assert_allclose(conv.apply(params, x), convolve_3d(x, kernel[None], (1, 2, 2)), atol=1e-5)


def convolve_3d(x, kernel, strides):
    return lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=("NTHWC", "THWIO", "NTHWC"))


def test_low_pass_weighs_an_event_equally_at_every_position_of_the_grid():
    impulses = jnp.eye(32)[8:24]  # one impulse per row, at frames 8..23
    weights = low_pass_subsample(impulses, 4, 8).sum(axis=1)
    np.testing.assert_allclose(weights, 1 / 4, atol=1e-6)
    plain = low_pass_subsample(impulses, 4, 1)
    np.testing.assert_array_equal(plain, impulses[:, ::4])  # plain subsampling misses three events of four
    assert (plain.sum(axis=1) == 0).sum() == 12


@pytest.mark.parametrize("frames", [31, 32])
def test_low_pass_preserves_a_constant(frames):
    smoothed = low_pass_subsample(jnp.ones((1, frames)), 4, 8)
    np.testing.assert_allclose(smoothed, np.ones((1, 8)), atol=1e-6)


def test_fast_features_depend_exactly_on_their_receptive_field():
    x = jax.random.normal(jax.random.key(2), (1, 40, 8, 1, 1))
    params = initialised(SMALL, x.shape)
    seen = jax.jit(jax.grad(lambda x: (SlowFast(SMALL).apply(params, x)[1][0, 20] ** 2).sum()))(x)
    frames = np.flatnonzero(np.abs(seen).max(axis=(0, 2, 3, 4)))
    assert SMALL.fast_receptive_field == 5 + 2 + 2
    np.testing.assert_array_equal(frames, np.arange(20 - 4, 20 + 5))


@pytest.mark.parametrize(("network", "shape", "hz"), [
    (VIDEO_R50, (1, 48, 8, 8, 3), 25.0), (AUDIO_R50, (1, 160, 16, 1, 1), 62.5),
])
def test_local_features_of_the_large_networks_see_less_than_a_third_of_a_second(network, shape, hz):
    """Depth and width do not change what the local stream sees; the fast one sees more even at depth one."""
    config = dataclasses.replace(network, local=True, depths=(1, 1, 1, 1), slow_width=16, beta_inv=2)
    x, params = jax.random.normal(jax.random.key(2), shape), initialised(config, shape)
    step = shape[1] // config.fast_stride // 2

    def seen(stream):
        gradient = jax.jit(jax.grad(lambda x: (SlowFast(config).apply(params, x)[stream][0, step] ** 2).sum()))(x)
        frames = np.flatnonzero(np.abs(gradient).max(axis=(0, 2, 3, 4)))
        return frames[-1] - frames[0] + 1

    assert seen(2) == network.local_receptive_field < hz / 3
    assert seen(1) == config.fast_receptive_field > seen(2)
    assert dataclasses.replace(network, local=True).local_receptive_field == config.local_receptive_field


def test_lateral_connections_run_from_fast_to_slow_only():
    x = jax.random.normal(jax.random.key(2), (1, 16, 8, 1, 1))
    params = initialised(SMALL, x.shape)

    def reaching(stream):
        grads = jax.jit(jax.grad(lambda p: (SlowFast(SMALL).apply(p, x)[stream] ** 2).sum()))(params)["params"]
        return {name for name, tree in grads.items() if any(np.any(g) for g in jax.tree.leaves(tree))}

    modules = set(params["params"])
    last_fast = {"fast1_0"}  # comes after the last lateral connection
    assert reaching(0) == modules - last_fast
    assert reaching(1) == {name for name in modules if name.startswith("fast")}


def test_bfloat16_stays_near_float32():
    x = jax.random.normal(jax.random.key(2), (1, 16, 8, 1, 1))
    params = initialised(SMALL, x.shape)
    exact = jax.jit(SlowFast(SMALL).apply)(params, x)
    rounded = jax.jit(SlowFast(dataclasses.replace(SMALL, dtype="bfloat16")).apply)(params, x)
    for a, b in zip(exact, rounded):
        assert b.dtype == jnp.bfloat16
        assert float(jnp.abs(a - b).max() / jnp.abs(a).max()) < 0.05


def test_rematerialisation_keeps_the_gradient_and_saves_memory():
    """Memory is that of what the forward pass keeps for the backward pass."""
    shape, deep = (2, 16, 16, 8, 3), dataclasses.replace(SMALL, depths=(3, 3))
    x, params = jax.random.normal(jax.random.key(1), shape), initialised(deep, shape)

    def measure(remat):
        def loss(params):
            slow, fast, _ = SlowFast(dataclasses.replace(deep, remat=remat)).apply(params, x)
            return jnp.square(slow).mean() + jnp.square(fast).mean()

        kept = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
        return jax.jit(jax.grad(loss))(params), sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))

    (gradient, kept), (expected, kept_all) = measure(True), measure(False)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), gradient, expected)
    assert kept < 0.4 * kept_all


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 5e-3)])
def test_frames_are_normalised_as_group_norm_does(dtype, tolerance):
    """By groups of 8 channels, each frame for itself; values and gradients."""
    keys = jax.random.split(jax.random.key(0), 4)
    x = (3 + 2 * jax.random.normal(keys[0], (2, 3, 4, 5, 24)) * jnp.arange(1, 25)).astype(dtype)
    scale, bias = (1 + jax.random.normal(key, (24,)) for key in keys[1:3])
    weights = jax.random.normal(keys[3], x.shape)

    def norm(x, scale, bias):
        return FrameNorm().apply({"params": {"norm": {"scale": scale, "bias": bias}}}, x)

    def outcome():
        y = norm(x, scale, bias)
        return y, jax.grad(lambda *inputs: jnp.sum(weights * norm(*inputs)), argnums=(0, 1, 2))(x, scale, bias)

    ours = outcome()
    with traced_for_tpu():
        flax = outcome()
    for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(flax), strict=True):
        assert mine.dtype == theirs.dtype and relative_error(mine, theirs) < tolerance


def test_a_stem_of_few_channels_packs_four_pixels_on_a_tpu():
    """Outputs and gradients are the same, and no convolution of it has so few channels."""
    stem, x = Stem(VIDEO_R50, 8, VIDEO_R50.fast_stem), jax.random.normal(jax.random.key(2), (1, 3, 12, 16, 3))
    params = jax.tree.map(
        lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(1), leaf.shape),
        nn.unbox(stem.init(jax.random.key(0), x)),
    )

    def loss(params, x):
        y = stem.apply(params, x)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)), y

    def run():
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, x)

    expected = run()
    with traced_for_tpu():
        found, text = run(), jax.jit(stem.apply).lower(params, x).as_text()
    assert found[0][1].shape == (1, 3, 3, 4, 8)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert relative_error(ours, theirs) < 1e-5
    assert "x48x32xf32>" in text and "x8xf32>)" not in next(line for line in text.splitlines() if "convolution" in line)
    wide = Stem(VIDEO_R50, 64, VIDEO_R50.fast_stem)
    assert not wide._can_pack(jnp.zeros((1, 3, 12, 16, 3))) and not stem._can_pack(jnp.zeros((1, 3, 14, 16, 3)))
