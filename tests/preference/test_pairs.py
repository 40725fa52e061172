import numpy as np

from msg_jax.preference.pairs import rank_candidates


def test_best_worst_and_the_largest_gaps_are_kept():
    scores = np.array([[0.1, 0.9, 0.5], [0.4, 0.4, 0.4], [0.3, 0.2, 0.25], [1.0, 0.0, 0.7]])
    pairs = rank_candidates(scores, keep_share=0.5)
    assert pairs.best.tolist() == [1, 0, 0, 0]
    assert pairs.worst.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(pairs.gap, [0.8, 0.0, 0.1, 1.0])
    assert pairs.kept.tolist() == [True, False, False, True]


def test_videos_whose_candidates_tie_are_never_kept():
    assert not rank_candidates(np.ones((3, 4)), keep_share=1.0).kept.any()


def test_at_least_one_pair_is_kept():
    assert rank_candidates(np.array([[0.0, 1.0]] * 3), keep_share=0.01).kept.sum() == 1
