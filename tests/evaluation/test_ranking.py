import numpy as np
import pytest
from scipy.stats import spearmanr

from msg_jax.evaluation import ranking
from msg_jax.preference.pairs import rank_candidates


def _metric(table):
    """The metric of a table, and how many videos it uses."""
    return float(ranking.metric_of(table.sum(axis=0))), int(table[:, 2].sum())


def test_offset_accuracy_by_hand():
    scores = np.array([[0.1, 0.9, 0.3], [0.5, 0.4, 0.3], [0.2, 0.2, 0.1], [0.0, 1.0, 0.5]])
    assert ranking.offset_accuracy(scores, true_lag=1) == 0.5  # the tie in the third row is a failure


def test_recall_at_1_by_hand():
    similarity = np.array([[[0.9, 0.1], [0.8, 0.7]], [[0.5, 0.5], [0.0, 0.2]]])
    assert ranking.recall_at_1(similarity) == 0.5
    assert ranking.recall_at_1(np.ones((1, 8, 8))) == 0.0


def test_grouped_cosine_compares_within_groups_only():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 5)), rng.normal(size=(7, 5))
    groups = ranking.grouped_cosine(a, b, group=3)
    assert groups.shape == (2, 3, 3)
    assert groups[1, 0, 2] == pytest.approx(a[3] @ b[5] / np.linalg.norm(a[3]) / np.linalg.norm(b[5]))
    assert ranking.recall_at_1(ranking.grouped_cosine(a, 3 * a, group=3)) == 1.0
    with pytest.raises(ValueError, match="at least 64 clips, got 7"):
        ranking.grouped_cosine(a, b)


def test_correlation_table_by_hand():
    reward = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [5.0, 5.0, 5.0], [1.0, 2.0, 3.0], [1.0, np.nan, 3.0]])
    truth = np.array([[10.0, 20.0, 30.0], [0.0, 3.0, 0.0], [0.0, 1.0, 2.0], [4.0, 4.0, 4.0], [0.0, 1.0, 2.0]])
    table = ranking.correlation_table(reward, truth)
    np.testing.assert_allclose(table, [[1, 1, 1], [0, 1, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]], atol=1e-12)
    assert _metric(table) == (pytest.approx(0.5), 2)


def test_correlation_ignores_differences_between_videos():
    # Pooled, these correlate at .99; within each video they are exactly opposed.
    reward = np.array([[0.0, 1.0], [100.0, 101.0]])
    truth = np.array([[1.0, 0.0], [101.0, 100.0]])
    assert _metric(ranking.correlation_table(reward, truth)) == (pytest.approx(-1.0), 2)


def test_correlation_of_ranks_is_spearmans():
    reward, truth = np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([[1.0, 10.0, 100.0, 1e6]])
    assert _metric(ranking.correlation_table(reward, truth, ranks=True)) == (pytest.approx(1.0), 1)
    assert _metric(ranking.correlation_table(reward, truth))[0] < 0.8


def test_headroom_table_by_hand():
    truth = np.array([[0.0, 0.5, 1.0], [0.2, 0.2, 0.8]])
    reward = np.array([[0.0, 1.0, 0.5], [0.0, 0.1, 0.9]])
    # Means .5 and .4; the reward picks .5 and .8, the oracle 1 and .8.
    table = ranking.headroom_table(reward, truth)
    np.testing.assert_allclose(table, [[0.5 - 0.5, 1.0 - 0.5, 1], [0.8 - 0.4, 0.8 - 0.4, 1]], atol=1e-12)
    assert _metric(table) == (pytest.approx((0.65 - 0.45) / (0.9 - 0.45)), 2)
    assert _metric(ranking.headroom_table(truth, truth)) == (pytest.approx(1.0), 2)


def test_a_constant_reward_gains_no_headroom():
    truth = np.random.default_rng(1).uniform(size=(20, 6))
    assert _metric(ranking.headroom_table(np.ones((20, 6)), truth)) == (pytest.approx(0.0), 20)


def test_headroom_share_without_headroom_is_nan():
    reward = np.random.default_rng(2).uniform(size=(4, 3))
    assert _metric(ranking.headroom_table(reward, np.full((4, 3), 0.5))) == (pytest.approx(np.nan, nan_ok=True), 4)
    assert _metric(ranking.headroom_table(np.full((4, 3), np.nan), reward)) == (pytest.approx(np.nan, nan_ok=True), 0)


def test_order_table_by_hand():
    reward = np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [3.0, 3.0, 3.0]])
    truth = np.array([[0.1, 0.9, 0.2], [0.5, 0.1, 0.5], [0.9, 0.0, 0.1], [0.0, 0.5, 1.0]])
    table = ranking.best_beats_worst_table(reward, truth)
    assert table.tolist() == [[1, 1, 1], [0.5, 1, 1], [0, 1, 1], [0, 0, 0]]
    assert _metric(table) == (pytest.approx(0.5), 3)


def test_order_table_keeps_the_largest_gaps():
    reward = np.array([[0.0, 1.0], [0.0, 4.0], [0.0, 2.0], [0.0, 3.0], [1.0, 1.0]])
    truth = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    # The video of gap 4 wins, that of 3 loses; round(5 * .6) = 3 adds the tie of gap 2.
    fewer, more = (ranking.best_beats_worst_table(reward, truth, share).tolist() for share in (0.4, 0.6))
    assert fewer == [[0, 0, 0], [1, 1, 1], [0, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert more == [[0, 0, 0], [1, 1, 1], [0.5, 1, 1], [0, 1, 1], [0, 0, 0]]
    assert _metric(ranking.best_beats_worst_table(reward, truth, 0.01)) == (1.0, 1)


def test_order_table_uses_the_pairs_that_training_uses():
    rng = np.random.default_rng(3)
    reward = rng.integers(0, 4, (41, 3)).astype(float)
    for share in (1.0, 0.5, 0.25):
        used = ranking.best_beats_worst_table(reward, rng.random((41, 3)), share)[:, 2] > 0
        np.testing.assert_array_equal(used, rank_candidates(reward, share).kept)


def test_false_order_table_by_hand():
    untouched, edited = np.array([1.0, 1.0, 1.0, 1.0, np.nan]), np.array([0.0, 2.0, 1.0, np.nan, 3.0])
    table = ranking.false_order_table(untouched, edited)
    assert table.tolist() == [[0, 1, 1], [1, 1, 1], [0.5, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert _metric(table) == (0.5, 3)


def test_tables_of_subsets_concatenate():
    rng = np.random.default_rng(4)
    reward, truth = rng.random((30, 5)), rng.integers(0, 4, (30, 5)) / 4
    for name, table in ranking.ranking_tables(reward, truth).items():
        halves = [ranking.ranking_tables(reward[part], truth[part])[name] for part in (slice(11), slice(11, None))]
        np.testing.assert_allclose(table, np.concatenate(halves))
    ranks = ranking.correlation_table(reward, truth, ranks=True)
    np.testing.assert_allclose(ranks[:, 0], [spearmanr(x, y).statistic for x, y in zip(reward, truth)])


def test_quotient_of_no_videos_is_nan():
    assert np.isnan(ranking.metric_of(np.zeros(3)))


def test_tables_reject_different_shapes():
    with pytest.raises(ValueError, match="videos, candidates"):
        ranking.headroom_table(np.ones((2, 3)), np.ones((2, 4)))
