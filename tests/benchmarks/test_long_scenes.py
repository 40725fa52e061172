"""benchmarks/long_scenes.py hears long sound window by window, and counts events by where they are."""

import numpy as np

from benchmarks import long_scenes

HZ, SIZE = 100, 400


class Clicks:
    """A judge that finds every 1 in a waveform, as class 0, but none within half a second of a window's edge."""

    def detect(self, waveforms):
        found = [np.flatnonzero(each) / HZ for each in waveforms]
        return [np.array([(0, time) for time in each if 0.5 <= time < SIZE / HZ - 0.5]).reshape(-1, 2) for each in found]


def test_every_event_of_a_long_sound_is_heard_once():
    times = np.array([0.6, 1.0, 2.0, 2.99, 3.0, 5.5, 7.01, 10.3])
    waveform = np.zeros(1075)
    waveform[np.round(times * HZ).astype(int)] = 1
    found = long_scenes.heard(Clicks(), waveform, SIZE, HZ)
    np.testing.assert_allclose(found, [(0, time) for time in times])


def test_counts_by_place():
    true = np.array([(0, 1.0), (1, 2.0), (0, 61.0)])
    found = np.array([(0, 1.05), (0, 2.0), (0, 70.0)])  # a hit; a wrong class: one extra, one missed; one extra, one missed
    by = {name: long_scenes.counts(true, found, lambda times, keep=keep: keep(times, joins=[2.1], cuts=[0.9, 69.8])).tolist()
          for name, keep in long_scenes.measures(2).items()}
    assert by["all"] == [1, 2, 2] and by["minute 1"] == [1, 1, 1] and by["minute 2"] == [0, 1, 1]
    assert by["joins"] == [0, 1, 1] and by["elsewhere"] == [1, 1, 1]
    assert by["after cuts"] == [1, 1, 0] and by["not after"] == [0, 1, 2]
