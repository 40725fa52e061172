import itertools

import numpy as np
import pytest

from msg_jax.evaluation import event_metrics, events

HZ = 50.0


def _list(*rows):
    return np.array(rows, np.float64).reshape(-1, 2)


def test_frame_targets_are_a_gaussian_around_the_exact_onset():
    truth = np.full((1, 4, 3), -1.0, np.float32)
    truth[0, 0] = 1, 0.21, 0.3  # the centre of frame 10
    targets = events.frame_targets(truth, frames=20, frames_hz=HZ, classes=2)
    assert targets.shape == (1, 20, 2)
    np.testing.assert_allclose(targets[0, 8:13, 1], np.exp([-2, -0.5, 0, -0.5, -2]), rtol=1e-5)
    assert not targets[0, :, 0].any()


def test_frame_targets_of_overlapping_events_stay_at_most_one():
    truth = np.array([[[0, 0.21, 0.3], [0, 0.23, 0.3]]], np.float32)
    targets = events.frame_targets(truth, 20, HZ, 1)[0, :, 0]
    np.testing.assert_allclose(targets[9:13], [np.exp(-0.5), 1, 1, np.exp(-0.5)], rtol=1e-5)


def test_decode_events_recovers_onsets_to_a_tenth_of_a_frame():
    rng = np.random.default_rng(0)
    truth = np.full((16, 12, 3), -1.0)
    for clip in truth:
        for row in range(12):
            clip[row] = row % 3, 0.1 + 0.25 * row + rng.uniform(0, 0.1), 0
    decoded = events.decode_events(events.frame_targets(truth, 160, HZ, 3), HZ, threshold=0.4, min_gap_sec=0.08)
    for true, found in zip(events.true_events(truth), decoded):
        np.testing.assert_array_equal(found[:, 0], true[:, 0])
        np.testing.assert_allclose(found[:, 1], true[:, 1], atol=0.1 / HZ)


def test_decode_events_keeps_the_higher_of_close_peaks_and_peaks_at_the_border():
    probability = np.zeros((1, 12, 2))
    probability[0, [3, 5], 0] = 0.6, 0.9
    probability[0, [0, 11], 1] = 0.8, 0.7
    close = events.decode_events(probability, HZ, threshold=0.5, min_gap_sec=0.06)[0]
    np.testing.assert_allclose(close, [[1, 0.5 / HZ], [0, 5.5 / HZ], [1, 11.5 / HZ]])
    apart = events.decode_events(probability, HZ, threshold=0.5, min_gap_sec=0.04)[0]
    np.testing.assert_allclose(apart[apart[:, 0] == 0], [[0, 3.5 / HZ], [0, 5.5 / HZ]])
    assert events.decode_events(probability, HZ, threshold=0.95, min_gap_sec=0.04)[0].shape == (0, 2)


def test_true_events_drops_unused_rows_and_sorts():
    padded = np.array([[[2, 0.9, 1.0], [-1, 0, 0], [1, 0.3, 0.5]], [[-1, -1, -1]] * 3])
    first, second = events.true_events(padded)
    np.testing.assert_array_equal(first, [[1, 0.3], [2, 0.9]])
    assert second.shape == (0, 2)


@pytest.mark.parametrize(
    ("true", "predicted", "aware", "agnostic"),
    [
        (_list((0, 1.0), (1, 2.0)), _list((0, 1.05), (1, 2.1)), (1, 1, 1), (1, 1, 1)),
        (_list((0, 1.0)), _list((1, 1.0)), (0, 1, 1), (1, 0, 0)),
        (_list((0, 1.0)), _list((0, 0.98), (0, 1.02)), (1, 1, 0), (1, 1, 0)),  # a true event matches once
        # A greedy matching would pair 1.07 with 1.05 and leave 1.12 unmatched.
        (_list((0, 1.0), (0, 1.05)), _list((0, 1.07), (0, 1.12)), (2, 0, 0), (2, 0, 0)),
        (_list((0, 1.0)), _list((0, 1.08)), (1, 0, 0), (1, 0, 0)),  # the tolerance is inclusive
        (_list((0, 1.0)), _list((0, 1.081)), (0, 1, 1), (0, 1, 1)),
        (_list(), _list((0, 1.0)), (0, 1, 0), (0, 1, 0)),
        (_list((0, 1.0)), _list(), (0, 0, 1), (0, 0, 1)),
        (_list(), _list(), (0, 0, 0), (0, 0, 0)),
    ],
)
def test_match_by_hand(true, predicted, aware, agnostic):
    assert events.match(true, predicted, 0.08) == aware
    assert events.match(true, predicted, 0.08, class_aware=False) == agnostic


def test_assign_returns_index_pairs():
    true, predicted = _list((0, 1.0), (1, 1.0), (0, 1.05)), _list((0, 1.12), (0, 1.07), (1, 0.95))
    assert sorted(map(tuple, events.assign(true, predicted, 0.08))) == [(0, 1), (1, 2), (2, 0)]


def test_errors_are_false_negatives_and_false_positives():
    true, predicted = np.array([(0, 1.0), (0, 1.5), (2, 2.0)]), np.array([(0, 1.05), (1, 2.0), (0, 3.0)])
    assert sorted(events.unmatched_onsets(true, predicted).tolist()) == [1.5, 2.0, 2.0, 3.0]


def test_match_equals_exhaustive_search():
    rng = np.random.default_rng(1)
    for _ in range(40):
        true, predicted = (np.stack([rng.integers(0, 2, 4), rng.uniform(0, 0.4, 4)], axis=1) for _ in range(2))
        near = (np.abs(true[:, None, 1] - predicted[None, :, 1]) <= 0.08) & (true[:, None, 0] == predicted[None, :, 0])
        best = max(sum(near[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(4)))
        assert events.match(true, predicted, 0.08) == (best, 4 - best, 4 - best)


def test_clip_counts_and_micro_f1_by_hand():
    true = [_list((0, 1.0), (1, 2.0)), _list((2, 0.5))]
    predicted = [_list((0, 1.0), (0, 2.0)), _list()]
    counts = events.clip_counts(true, predicted)
    np.testing.assert_array_equal(counts["event_f1"], [[1, 1, 1], [0, 0, 1]])
    np.testing.assert_array_equal(counts["onset_f1"], [[2, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(counts["class_f1"], [[1, 0, 1], [0, 0, 1]])
    scores = {name: float(events.micro_f1(rows.sum(0))) for name, rows in counts.items()}
    assert scores == pytest.approx({"event_f1": 2 / 5, "onset_f1": 4 / 5, "class_f1": 2 / 4})
    np.testing.assert_allclose(events.micro_f1(counts["event_f1"]), [0.5, 0.0])


def test_micro_f1_without_any_event_is_nan():
    assert np.isnan(events.micro_f1(np.zeros(3)))
    np.testing.assert_array_equal(events.micro_f1(np.array([[0, 0, 0], [1, 0, 0]])), [np.nan, 1.0])


def test_clip_counts_rejects_different_numbers_of_clips():
    with pytest.raises(ValueError, match="zip"):
        events.clip_counts([_list()], [])


def test_event_metrics_have_the_run_s_tolerance_and_40_ms():
    true, predicted = [_list((0, 1.0), (1, 2.0))], [_list((0, 1.03), (1, 2.07))]
    counts = event_metrics.counts(true, predicted, 0.08)
    assert tuple(counts) == event_metrics.EVENT_METRICS
    np.testing.assert_array_equal(counts["event_f1"], [[2, 0, 0]])
    np.testing.assert_array_equal(counts["event_f1_40ms"], [[1, 1, 1]])
    np.testing.assert_array_equal(counts["onset_f1_40ms"], [[1, 1, 1]])
