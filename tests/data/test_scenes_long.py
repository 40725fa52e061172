"""Long scenes: acts, cuts, returning stages, silence, and the exact times of their events."""

import dataclasses

import numpy as np
import pytest

from msg_jax.clip import TINY
from msg_jax.data.scenes_long import ACT_SEC, make_long_scene

CLIP = dataclasses.replace(TINY, duration_sec=60.0)
HZ = CLIP.audio_hz


@pytest.fixture(scope="module")
def scene():
    return make_long_scene(0, "test", 0, CLIP)


def test_acts_fill_the_clip(scene):
    starts, ends = [act.start_sec for act in scene.acts], [act.end_sec for act in scene.acts]
    assert starts[0] == 0 and ends[-1] == 60.0 and starts[1:] == ends[:-1] == scene.cuts_sec
    lengths = np.subtract(ends, starts)
    assert lengths.min() >= ACT_SEC[0] and lengths.max() <= ACT_SEC[1] and 12 <= len(lengths) <= 30


def test_events_are_those_of_the_acts(scene):
    expected = sorted((act.start_sec + onset, kind) for act in scene.acts for kind, performer in act.performers.items()
                      for onset, _ in performer.events)
    np.testing.assert_allclose(scene.events[:, ::-1], expected)
    for act in scene.acts:  # no source plays outside its act
        inside = (scene.events[:, 1] >= act.start_sec) & (scene.events[:, 1] < act.end_sec)
        assert set(scene.events[inside, 0]) == set(act.performers)


def test_stages_return_with_their_sources(scene):
    first = {}
    again = [act for act in scene.acts if first.setdefault(act.stage, act) is not act]
    assert len(again) >= 3
    for act in again:
        assert act.backdrop is first[act.stage].backdrop and set(act.performers) == set(first[act.stage].performers)
        played = [[onset for performer in each.performers.values() for onset, _ in performer.events]
                  for each in (act, first[act.stage])]
        assert played[0] != played[1] or not act.performers


def test_every_onset_is_heard_and_silent_acts_are_silent(scene):
    level = np.abs(scene.waveform)
    for _, onset in scene.events:
        assert level[round(onset * HZ) :][: HZ // 20].max() > 0.015, onset
    silent = [act for act in scene.acts if not act.performers]
    assert silent
    for act in silent:  # once what sounded at the cut has rung out
        assert level[round((act.end_sec - 0.2) * HZ) : round(act.end_sec * HZ)].max() < 0.015


def test_pictures_change_at_the_cuts(scene):
    frames = np.concatenate(list(scene.frames())).astype(float)
    assert len(frames) == CLIP.video_frames
    change = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
    at_cuts = [change[int(np.ceil(cut * CLIP.video_hz - 1e-9)) - 1] for cut in scene.cuts_sec]
    assert np.median(at_cuts) > 5 * np.median(change)


def test_a_scene_is_a_function_of_its_arguments(scene):
    np.testing.assert_array_equal(make_long_scene(0, "test", 0, CLIP).waveform, scene.waveform)
    assert not np.array_equal(make_long_scene(0, "test", 1, CLIP).events, scene.events)
