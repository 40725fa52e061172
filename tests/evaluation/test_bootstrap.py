import numpy as np
import pytest

from msg_jax.evaluation import bootstrap


def test_mean_interval_has_the_normal_width():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    found = bootstrap.mean_interval(values)
    half = 1.96 * values.std() / np.sqrt(400)
    assert found["value"] == pytest.approx(values.mean())
    assert found["low"] == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found["high"] == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_f1_interval_equals_a_loop_over_resamples():
    rng = np.random.default_rng(2)
    counts = rng.integers(0, 6, size=(60, 3))
    found = bootstrap.f1_interval(counts, resamples=4000)
    draws = []
    for _ in range(4000):
        tp, fp, fn = counts[rng.integers(0, 60, 60)].sum(0)
        draws.append(2 * tp / (2 * tp + fp + fn))
    tp, fp, fn = counts.sum(0)
    assert found["value"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    np.testing.assert_allclose([found["low"], found["high"]], np.quantile(draws, [0.025, 0.975]), atol=0.005)


def test_mean_interval_covers_the_true_mean_at_its_level():
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(300):
        found = bootstrap.mean_interval(rng.exponential(size=100), level=0.8, resamples=300)
        hits += found["low"] <= 1.0 <= found["high"]
    assert 0.72 < hits / 300 < 0.86


def test_paired_difference_cancels_the_difficulty_of_clips():
    rng = np.random.default_rng(4)
    difficulty = rng.uniform(0, 1, 200)
    events = np.full(200, 20)
    base_hits = rng.binomial(events, 1 - difficulty)
    tuned_hits = np.minimum(base_hits + 1, 20)
    counts = [np.stack([hits, 20 - hits, 20 - hits], axis=1) for hits in (tuned_hits, base_hits)]
    difference = bootstrap.f1_difference_interval(*counts)
    alone = [bootstrap.f1_interval(c) for c in counts]
    assert difference["value"] == pytest.approx(alone[0]["value"] - alone[1]["value"])
    assert difference["low"] > 0.03
    assert difference["high"] - difference["low"] < 0.25 * (alone[0]["high"] - alone[0]["low"])


def test_interval_is_deterministic_in_the_seed():
    counts = np.random.default_rng(5).integers(0, 6, size=(30, 3))
    assert bootstrap.f1_interval(counts, seed=7) == bootstrap.f1_interval(counts, seed=7)
    assert bootstrap.f1_interval(counts, seed=7) != bootstrap.f1_interval(counts, seed=8)


def test_intervals_reject_no_clips_and_unpaired_counts():
    with pytest.raises(ValueError, match="at least one clip"):
        bootstrap.mean_interval(np.zeros(0))
    with pytest.raises(ValueError, match="differ in shape"):
        bootstrap.f1_difference_interval(np.ones((3, 3)), np.ones((4, 3)))


def test_jackknife_of_a_mean_has_its_standard_error():
    values = np.random.default_rng(3).normal(size=2000)
    groups = np.arange(2000) % 20
    replicates = bootstrap.jackknife(lambda kept: values[kept].mean(), groups)
    found = bootstrap.jackknife_interval(values.mean(), replicates)
    assert (found["high"] - found["low"]) / 2 == pytest.approx(1.96 / np.sqrt(2000), rel=0.35)
    assert found["value"] == values.mean()


def test_jackknife_groups_depend_on_the_name_only():
    names = [f"clip-{i}" for i in range(500)]
    groups = bootstrap.jackknife_groups(names)
    assert np.array_equal(groups[::-1], bootstrap.jackknife_groups(names[::-1]))
    assert np.bincount(groups, minlength=20).min() > 10
