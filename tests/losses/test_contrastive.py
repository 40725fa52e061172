"""Contrastive losses: hand-computed values, lags, and global negatives on one device and on eight."""

import doctest
import math
import types

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from msg_jax.losses import contrastive
from msg_jax.losses.contrastive import (
    dynamic_info_nce,
    lagged_cosines,
    sf_cavp_loss,
    symmetric_info_nce,
    window_info_nce,
)

LAGS = (-2, 2, 3)
WEIGHTS = {"semantic": 1.0, "dynamic": 0.5, "window": 0.25}


def unit(key, *shape):
    x = jax.random.normal(jax.random.key(key), shape)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def test_symmetric_info_nce_by_hand():
    # cosines [[1, 0], [0.6, 0.8]]: rows give ln(1+e^-1), ln(1+e^-.2); columns ln(1+e^-.4), ln(1+e^-.8)
    video, audio = jnp.eye(2), jnp.array([[1.0, 0.0], [0.6, 0.8]])
    terms = [math.log(1 + math.exp(-gap)) for gap in (1 - 0.6, 0.8 - 0.0, 1 - 0.0, 0.8 - 0.6)]
    loss, accuracy = symmetric_info_nce(video, audio, 1.0)
    assert float(loss) == pytest.approx(sum(terms) / 4, abs=1e-6)
    assert float(accuracy) == 1.0


def test_accuracy_counts_both_directions():
    video = jnp.eye(2)
    audio = jnp.array([[0.8, 0.6], [0.8, -0.6]])
    assert float(symmetric_info_nce(video, audio, 1.0)[1]) == pytest.approx((1 / 2 + 1 / 2) / 2)


def test_lagged_cosines_find_a_delay():
    video = unit(0, 3, 12, 5)
    audio = jnp.pad(video, ((0, 0), (4, 0), (0, 0)))[:, :12]  # the audio lags by four steps
    cosines = lagged_cosines(video, audio, (-4, 0, 4))
    np.testing.assert_allclose(cosines[:, 2], 1.0, atol=1e-5)
    assert float(jnp.abs(cosines[:, :2]).max()) < 0.6


def test_dynamic_info_nce_counts_shifts_as_negatives():
    # one clip with identical steps: the cosine is 1 at every lag, so the clip ties with its three shifts
    same = jnp.ones((1, 4, 1))
    loss, _ = dynamic_info_nce(same, same, 7.0, (-1, 1, 2))
    assert float(loss) == pytest.approx(math.log(4), abs=1e-6)
    assert float(dynamic_info_nce(same, same, 7.0, ())[0]) == pytest.approx(0.0, abs=1e-6)


def test_dynamic_info_nce_without_lags_ranks_time_averaged_cosines():
    video, audio = unit(0, 4, 6, 3), unit(1, 4, 6, 3)
    cosines = np.einsum("itd,jtd->ij", video, audio) / 6
    rows, columns = (np.log(np.exp(5 * x).sum(1)) - 5 * np.diag(x) for x in (cosines, cosines.T))
    assert float(dynamic_info_nce(video, audio, 5.0, ())[0]) == pytest.approx((rows + columns).mean() / 2, rel=1e-5)


def test_window_info_nce_ranks_against_the_windows_of_all_clips():
    # two clips with the same two orthogonal windows: every window ties with its twin in the other clip
    windows = jnp.stack([jnp.eye(2)] * 2)
    assert float(window_info_nce(windows, windows, 1.0)[0]) == pytest.approx(math.log(2 + 2 * math.exp(-1)), abs=1e-6)


def loss_of(features, axis_name=None):
    video, audio = (types.SimpleNamespace(**features[name]) for name in ("video", "audio"))
    return sf_cavp_loss(video, audio, features["scales"], WEIGHTS, LAGS, axis_name)


@pytest.mark.parametrize("axes", ["data", ("fsdp", "data")])
def test_global_batch_on_eight_devices_equals_one_device(axes):
    features = {
        name: {"semantic": unit(k, 16, 8), "dynamic": unit(k + 1, 16, 10, 8), "local": unit(k + 2, 16, 3, 8)}
        for k, name in ((0, "video"), (10, "audio"))
    }
    features["scales"] = {"semantic": jnp.float32(14.0), "dynamic": jnp.float32(9.0), "window": jnp.float32(5.0)}
    shape, names = ((8,), ("data",)) if axes == "data" else ((4, 2), ("data", "fsdp"))
    mesh = jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,) * len(names))
    specs = {"video": P(axes), "audio": P(axes), "scales": P()}
    sharded = jax.shard_map(lambda f: loss_of(f, axes), mesh=mesh, in_specs=(specs,), out_specs=P())

    (one, metrics_one), grad_one = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(features)
    (many, metrics_many), grad_many = jax.jit(jax.value_and_grad(sharded, has_aux=True))(features)
    assert float(many) == pytest.approx(float(one), abs=1e-5)
    for name, value in metrics_one.items():
        assert float(metrics_many[name]) == pytest.approx(float(value), abs=1e-5), name
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grad_many, grad_one)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grad_one["video"])) > 1e-3  # not trivially equal


def test_total_is_the_weighted_sum_of_the_logged_terms():
    features = types.SimpleNamespace(semantic=unit(0, 4, 8), dynamic=unit(1, 4, 5, 8), local=unit(2, 4, 3, 8))
    other = types.SimpleNamespace(semantic=unit(3, 4, 8), dynamic=unit(4, 4, 5, 8), local=unit(5, 4, 3, 8))
    loss, metrics = sf_cavp_loss(features, other, dict.fromkeys(WEIGHTS, 3.0), WEIGHTS, LAGS)
    total = sum(weight * float(metrics[f"loss_{name}"]) for name, weight in WEIGHTS.items())
    assert float(loss) == pytest.approx(total, rel=1e-6)


def test_doctests():
    results = doctest.testmod(contrastive)
    assert results.attempted == 4 and results.failed == 0
