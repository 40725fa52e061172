"""Edits of scenes change the intended event and nothing else."""

import dataclasses

import numpy as np
import pytest

from msg_jax.clip import TINY
from msg_jax.data import edits
from msg_jax.data.scenes import CLASS_NAMES, PERFORMERS, make_scene, record_sound

HZ = TINY.audio_hz
SHIFTS = {"shift_40ms": 0.04, "shift_80ms": 0.08, "shift_160ms": 0.16, "shift_320ms": 0.32}
SUSTAINED = {label for label, performer in enumerate(PERFORMERS) if performer.sustained}


@pytest.fixture(scope="module")
def recordings():
    return [record_sound(0, "train", index, TINY) for index in range(24)]


def _edited(recordings, kind):
    """Yields (recording, untouched sound, edited sound, events before, events after) for every scene with this edit."""
    for index, recording in enumerate(recordings):
        made = edits.edit(recording, kind, np.random.default_rng(index))
        if made is not None:
            before = recording.events(recording.takes)
            yield recording, recording.waveform(recording.takes), made[0], _rows(before), _rows(made[1])


def _rows(events):
    return {tuple(row) for row in events[events[:, 0] >= 0].tolist()}


def test_a_recording_is_the_sound_of_its_scene():
    for index in range(4):
        scene, recording = make_scene(3, "test", index, TINY), record_sound(3, "test", index, TINY)
        np.testing.assert_array_equal(recording.waveform(recording.takes), scene["waveform"])
        np.testing.assert_array_equal(recording.events(recording.takes), scene["events"])


@pytest.mark.parametrize("kind", edits.KINDS)
def test_an_edit_is_a_function_of_its_arguments(recordings, kind):
    recording = recordings[5]
    untouched = recording.waveform(recording.takes)
    first, again, other = (edits.edit(recording, kind, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert first[0].shape == (TINY.audio_samples,) and first[0].dtype == np.float32
    assert np.array_equal(first[0], other[0]) == (kind == "reversed")  # which draws nothing
    np.testing.assert_array_equal(recording.waveform(recording.takes), untouched)


@pytest.mark.parametrize(("kind", "fewer", "more"), [
    ("swap", 1, 1), ("drop", 1, 0), ("add", 0, 1), *((kind, 1, 1) for kind in SHIFTS),
])
def test_exactly_one_event_differs(recordings, kind, fewer, more):
    count = 0
    for _, _, _, before, after in _edited(recordings, kind):
        gone, new = before - after, after - before
        assert (len(gone), len(new)) == (fewer, more)
        count += 1
        if kind in ("swap", *SHIFTS):
            (old,), (now,) = gone, new
            moved = abs(now[1] - old[1])
            assert moved == pytest.approx(SHIFTS.get(kind, 0.0), abs=1e-6)
            assert (now[0] == old[0]) == (kind != "swap")
    assert count >= 20


@pytest.mark.parametrize("kind", ["swap", "drop", "add", *SHIFTS])
def test_only_the_sound_of_that_event_differs(recordings, kind):
    for recording, untouched, edited, before, after in _edited(recordings, kind):
        onsets = [row[1] for row in before ^ after]
        first, last = round(min(onsets) * HZ), round(max(onsets) * HZ)
        differs = np.flatnonzero(untouched != edited)
        longest = max(take.sound.size for take in recording.takes)
        assert first - 1 <= differs[0] <= first + HZ // 100  # a sound begins with its onset
        assert differs[-1] <= last + max(longest, 1.4 * HZ)
        noise = np.abs(recording.noise).max()
        assert np.abs((untouched - edited)[differs]).max() > 3 * noise


@pytest.mark.parametrize("kind", SHIFTS)
def test_a_moved_event_keeps_its_sound(recordings, kind):
    compared = 0
    for recording, untouched, edited, before, after in _edited(recordings, kind):
        (old,), (new,) = before - after, after - before
        rest = recording.waveform([take for take in recording.takes if (take.kind, np.float32(take.onset)) != old[:2]])
        starts = [round(float(row[1]) * HZ) for row in (old, new)]
        size = TINY.audio_samples - max(starts)
        was, now = ((sound - rest)[start : start + size] for sound, start in zip((untouched, edited), starts))
        # the recording's times are float64, those of an event list float32: allow one sample to either side
        fits = [np.dot(was, np.roll(now, by)) / np.sqrt(np.dot(was, was) * np.dot(now, now)) for by in (-1, 0, 1)]
        assert max(fits) > 0.999
        compared += 1
    assert compared >= 20


@pytest.mark.parametrize("kind", ["swap", "add", *SHIFTS])
def test_a_new_event_obeys_the_rules_of_scenes(recordings, kind):
    for recording, _, edited, before, after in _edited(recordings, kind):
        ((label, onset, offset),) = after - before
        assert np.float32(0.1) <= onset <= np.float32(TINY.duration_sec - 0.1)
        if kind in ("swap", "add"):
            assert offset < TINY.duration_sec  # it ends before the clip does
        alike = [row for row in after if row[0] == label and row[1] != onset]
        assert all(abs(row[1] - onset) > 0.16 for row in alike)
        if label in SUSTAINED:
            assert all(row[2] <= onset or offset <= row[1] for row in alike)
        loudest = np.abs(recording.waveform(recording.takes)).max()
        assert np.abs(edited).max() <= max(loudest, 0.95 + np.abs(recording.noise).max())


def test_an_added_event_ends_without_a_click(recordings):
    """It ends 34 dB below its peak, or 25 dB if the clip truncates it: events decay by 30 dB before the clip ends."""
    for _, untouched, edited, _, _ in _edited(recordings, "add"):
        new = np.abs(edited - untouched)
        last = np.flatnonzero(new > 1e-7)[-1]
        assert new[last] < (0.02 if last < new.size - 1 else 0.056) * new.max()


def test_swaps_and_additions_use_every_class(recordings):
    for kind in ("swap", "add"):
        new = {row[0] for seed in range(2) for recording in recordings
               for made in [edits.edit(recording, kind, np.random.default_rng((seed, round(1000 / recording.level))))]
               for row in _rows(made[1]) - _rows(recording.events(recording.takes))}
        assert new == set(range(len(CLASS_NAMES)))


def test_reversed_events_are_mirrored(recordings):
    count = 0
    for _, _, _, before, after in _edited(recordings, "reversed"):
        count += 1
        assert sorted(row[0] for row in before) == sorted(row[0] for row in after)
        for label, onset, offset in before:
            # a struck event starts at its mirrored onset, a sustained one at its mirrored offset, but not before 0.1 s
            wanted = TINY.duration_sec - onset if label not in SUSTAINED else max(TINY.duration_sec - offset, 0.1)
            assert min(abs(other[1] - wanted) for other in after if other[0] == label) < 1e-5
    assert count >= 20


def test_an_impossible_edit_is_none_and_an_unknown_one_raises(recordings):
    alone = dataclasses.replace(recordings[0], takes=recordings[0].takes[:1])
    assert edits.edit(alone, "drop", np.random.default_rng(0)) is None
    assert edits.edit(alone, "shift_3000ms", np.random.default_rng(0)) is None
    with pytest.raises(ValueError, match=r"no edit 'louder'.*swap, drop, add, shift_40ms"):
        edits.edit(alone, "louder", np.random.default_rng(0))
