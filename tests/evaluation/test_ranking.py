import numpy as np
import pytest
from scipy.stats import spearmanr

from msg_jax.evaluation import ranking
from msg_jax.preference.pairs import rank_candidates


def test_offset_accuracy_by_hand():
    scores = np.array([[0.1, 0.9, 0.3], [0.5, 0.4, 0.3], [0.2, 0.2, 0.1], [0.0, 1.0, 0.5]])
    assert ranking.offset_accuracy(scores, true_lag=1) == 0.5  # the tie in the third row is no success


def test_recall_at_1_by_hand():
    similarity = np.array([[[0.9, 0.1], [0.8, 0.7]], [[0.5, 0.5], [0.0, 0.2]]])
    assert ranking.recall_at_1(similarity) == 0.5
    assert ranking.recall_at_1(np.ones((1, 8, 8))) == 0.0


def test_grouped_cosine_compares_inside_groups_only():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 5)), rng.normal(size=(7, 5))
    groups = ranking.grouped_cosine(a, b, group=3)
    assert groups.shape == (2, 3, 3)
    assert groups[1, 0, 2] == pytest.approx(a[3] @ b[5] / np.linalg.norm(a[3]) / np.linalg.norm(b[5]))
    assert ranking.recall_at_1(ranking.grouped_cosine(a, 3 * a, group=3)) == 1.0
    with pytest.raises(ValueError, match="at least 64 clips, got 7"):
        ranking.grouped_cosine(a, b)


def test_within_video_correlation_by_hand():
    reward = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [5.0, 5.0, 5.0], [1.0, 2.0, 3.0], [1.0, np.nan, 3.0]])
    truth = np.array([[10.0, 20.0, 30.0], [0.0, 3.0, 0.0], [0.0, 1.0, 2.0], [4.0, 4.0, 4.0], [0.0, 1.0, 2.0]])
    assert ranking.within_video_correlation(reward, truth) == {"value": pytest.approx(0.5), "videos": 2, "ignored": 3}


def test_differences_between_videos_do_not_count():
    # Pooled, these correlate at .99; inside each video they are exactly opposed.
    reward = np.array([[0.0, 1.0], [100.0, 101.0]])
    truth = np.array([[1.0, 0.0], [101.0, 100.0]])
    assert ranking.within_video_correlation(reward, truth)["value"] == pytest.approx(-1.0)


def test_spearman_uses_ranks():
    reward, truth = np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([[1.0, 10.0, 100.0, 1e6]])
    assert ranking.within_video_correlation(reward, truth, ranks=True)["value"] == pytest.approx(1.0)
    assert ranking.within_video_correlation(reward, truth)["value"] < 0.8


def test_headroom_share_by_hand():
    truth = np.array([[0.0, 0.5, 1.0], [0.2, 0.2, 0.8]])
    reward = np.array([[0.0, 1.0, 0.5], [0.0, 0.1, 0.9]])
    # mean .45, the reward picks .5 and .8 (mean .65), the oracle 1 and .8 (mean .9)
    found = ranking.headroom_share(reward, truth)
    assert found["value"] == pytest.approx((0.65 - 0.45) / (0.9 - 0.45))
    assert (found["mean"], found["chosen"], found["oracle"]) == pytest.approx((0.45, 0.65, 0.9))
    assert ranking.headroom_share(truth, truth)["value"] == pytest.approx(1.0)


def test_a_constant_reward_takes_no_headroom():
    truth = np.random.default_rng(1).uniform(size=(20, 6))
    assert ranking.headroom_share(np.ones((20, 6)), truth)["value"] == pytest.approx(0.0)


def test_no_headroom_is_not_a_number():
    reward = np.random.default_rng(2).uniform(size=(4, 3))
    assert np.isnan(ranking.headroom_share(reward, np.full((4, 3), 0.5))["value"])
    found = ranking.headroom_share(np.full((4, 3), np.nan), reward)
    assert np.isnan(found["value"]) and found["ignored"] == 4


def test_best_beats_worst_by_hand():
    reward = np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [3.0, 3.0, 3.0]])
    truth = np.array([[0.1, 0.9, 0.2], [0.5, 0.1, 0.5], [0.9, 0.0, 0.1], [0.0, 0.5, 1.0]])
    assert ranking.best_beats_worst(reward, truth) == {"value": pytest.approx(0.5), "videos": 3, "ignored": 1}


def test_pairs_with_a_large_gap_alone():
    reward = np.array([[0.0, 1.0], [0.0, 4.0], [0.0, 2.0], [0.0, 3.0], [1.0, 1.0]])
    truth = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert ranking.best_beats_worst(reward, truth, 0.4) == {"value": pytest.approx(0.5), "videos": 2, "ignored": 3}
    # Rows: the video of gap 4 wins, that of 3 loses; round(5 * .6) = 3 adds the tie of gap 2.
    assert ranking.order_table(reward, truth, 0.6).tolist() == [[0, 0, 0], [1, 1, 1], [0.5, 1, 1], [0, 1, 1], [0, 0, 0]]
    assert ranking.best_beats_worst(reward, truth, 0.01)["videos"] == 1


def test_the_pairs_are_those_that_would_be_trained_on():
    rng = np.random.default_rng(3)
    reward = rng.integers(0, 4, (41, 3)).astype(float)
    for share in (1.0, 0.5, 0.25):
        used = ranking.order_table(reward, rng.random((41, 3)), share)[:, 2] > 0
        np.testing.assert_array_equal(used, rank_candidates(reward, share).kept)


def test_false_order_by_hand():
    untouched, edited = np.array([1.0, 1.0, 1.0, 1.0, np.nan]), np.array([0.0, 2.0, 1.0, np.nan, 3.0])
    table = ranking.false_order_table(untouched, edited)
    assert table.tolist() == [[0, 1, 1], [1, 1, 1], [0.5, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert ranking.quotient(table.sum(axis=0)) == 0.5


def test_tables_of_parts_of_the_videos_add_up():
    rng = np.random.default_rng(4)
    reward, truth = rng.random((30, 5)), rng.integers(0, 4, (30, 5)) / 4
    for name, table in ranking.ranking_tables(reward, truth).items():
        halves = [ranking.ranking_tables(reward[part], truth[part])[name] for part in (slice(11), slice(11, None))]
        np.testing.assert_allclose(table, np.concatenate(halves))
    whole = ranking.quotient(ranking.headroom_table(reward, truth).sum(axis=0))
    assert whole == pytest.approx(ranking.headroom_share(reward, truth)["value"])
    ranks = ranking.correlation_table(reward, truth, ranks=True)
    wanted = [spearmanr(x, y).statistic for x, y in zip(reward, truth)]
    np.testing.assert_allclose(ranks[:, 0], wanted)
    assert np.isnan(ranking.quotient(np.zeros(3)))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="videos, candidates"):
        ranking.headroom_share(np.ones((2, 3)), np.ones((2, 4)))
