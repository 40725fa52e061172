"""Sync metrics by hand."""

import numpy as np

from msg_jax.evaluation import events, sync

SEEN = [np.array([[0, 1.0], [0, 2.0], [3, 2.5]]), np.array([[1, 0.5]]), np.zeros((0, 2))]
HEARD = [np.array([[0, 1.05], [0, 2.03], [2, 2.5]]), np.array([[1, 0.2]]), np.array([[4, 1.0]])]


def test_events_match_in_class_and_time():
    counts = sync.counts(SEEN, HEARD)
    np.testing.assert_array_equal(counts["sync_f1"], [[2, 1, 1], [0, 1, 1], [0, 1, 0]])
    np.testing.assert_array_equal(counts["sync_f1_40ms"], [[1, 2, 2], [0, 1, 1], [0, 1, 0]])
    assert events.micro_f1(counts["sync_f1"].sum(axis=0)) == 4 / 9  # 2 * 2 / (2 * 2 + 3 + 2)


def test_offsets_are_those_of_matched_events_and_positive_where_the_sound_is_late():
    np.testing.assert_allclose(sync.offsets(SEEN, HEARD), [0.05, 0.03])
    np.testing.assert_allclose(sync.offsets(SEEN[1:2], HEARD[1:2], tolerance_sec=0.4), [-0.3])
    assert sync.offsets([], []).shape == (0,)


def test_agreement_with_the_caption_is_of_classes():
    np.testing.assert_array_equal(sync.agreement([{0, 3}, {1, 2}, set()], HEARD), [[1, 1, 1], [1, 0, 1], [0, 1, 0]])
