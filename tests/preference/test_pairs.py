import doctest
import itertools

import numpy as np

from msg_jax.preference import pairs as pairing
from msg_jax.preference.pairs import best_path, rank_candidates, stitch_candidates


def test_rank_candidates_keeps_the_pairs_with_the_largest_gaps():
    scores = np.array([[0.1, 0.9, 0.5], [0.4, 0.4, 0.4], [0.3, 0.2, 0.25], [1.0, 0.0, 0.7]])
    pairs = rank_candidates(scores, keep_share=0.5)
    assert pairs.best.tolist() == [1, 0, 0, 0]
    assert pairs.worst.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(pairs.gap, [0.8, 0.0, 0.1, 1.0])
    assert pairs.kept.tolist() == [True, False, False, True]


def test_rank_candidates_never_keeps_a_video_whose_candidates_tie():
    assert not rank_candidates(np.ones((3, 4)), keep_share=1.0).kept.any()


def test_rank_candidates_keeps_at_least_one_pair():
    assert rank_candidates(np.array([[0.0, 1.0]] * 3), keep_share=0.01).kept.sum() == 1


def test_best_path_equals_exhaustive_search():
    scores, cost = np.random.default_rng(0).normal(size=(6, 3, 5)), 0.2
    paths = np.array(list(itertools.product(range(3), repeat=5)))
    for clip, found in zip(scores, best_path(scores, cost)):
        values = clip[paths, np.arange(5)].mean(axis=1) - cost * (np.diff(paths) != 0).sum(axis=1)
        assert found.tolist() == paths[values.argmax()].tolist()


def test_stitch_candidates_joins_the_best_and_the_worst_moments():
    scores = np.array([[[0.9, 0.9, 0.1, 0.1], [0.2, 0.2, 0.8, 0.8]], np.zeros((2, 4))])
    pairs = stitch_candidates(scores, keep_share=1.0, join_cost=0.1)
    assert pairs.best.tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]
    assert pairs.worst[0].tolist() == [1, 1, 0, 0]
    np.testing.assert_allclose(pairs.gap, [0.85 - 0.15, 0.0])
    assert pairs.kept.tolist() == [True, False]


def test_stitch_candidates_with_expensive_joins_equals_rank_candidates():
    scores = np.random.default_rng(0).normal(size=(8, 3, 5))
    whole, stitched = rank_candidates(scores.mean(axis=2), 0.5), stitch_candidates(scores, 0.5, join_cost=100.0)
    np.testing.assert_array_equal(stitched.best, np.repeat(whole.best[:, None], 5, axis=1))
    np.testing.assert_array_equal(stitched.worst, np.repeat(whole.worst[:, None], 5, axis=1))
    np.testing.assert_array_equal(stitched.kept, whole.kept)


def test_doctest():
    results = doctest.testmod(pairing)
    assert results.attempted == 2 and results.failed == 0
