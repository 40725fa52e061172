import dataclasses
import re

import numpy as np
import pytest

from msg_jax.clip import TINY, MelSpec
from msg_jax.data.scene_performers import Glass, Metal, Motor, Slot, Thud, Wood
from msg_jax.data.scenes import CLASS_NAMES, MAX_EVENTS, ScenesSource, make_scene


@pytest.fixture(scope="module")
def records():
    return [make_scene(0, "train", index, TINY) for index in range(160)]


def _events(record):
    return record["events"][record["events"][:, 0] >= 0]


def test_a_scene_depends_on_seed_split_and_index_alone(records):
    again = make_scene(0, "train", 7, TINY)
    for name, value in records[7].items():
        np.testing.assert_array_equal(again[name], value)
    assert len({record["waveform"].tobytes() for record in records}) == len(records)
    others = [make_scene(0, "test", 7, TINY), make_scene(1, "train", 7, TINY)]
    for other in others:
        assert np.abs(other["waveform"] - again["waveform"]).max() > 0.1
        assert other["id"] != again["id"]


@pytest.mark.parametrize(
    "clip",
    [TINY, dataclasses.replace(TINY, duration_sec=8.0, video_px=48, mel=MelSpec(audio_hz=44_100, hop_samples=512))],
)
def test_shapes_and_ranges_follow_the_clip(clip):
    for index in range(3):
        record = make_scene(3, "validation", index, clip)
        assert record["video"].shape == (clip.video_frames, clip.video_px, clip.video_px, 3)
        assert record["clip_video"].shape == (clip.clip_video_frames, clip.clip_video_px, clip.clip_video_px, 3)
        assert record["video"].dtype == record["clip_video"].dtype == np.uint8
        assert record["waveform"].shape == (clip.audio_samples,) and record["waveform"].dtype == np.float32
        assert 0.4 < np.abs(record["waveform"]).max() <= 1.0
        assert record["events"].shape == (MAX_EVENTS, 3)


def test_both_video_streams_show_the_same_moments(records):
    # 25 Hz / 6.25 Hz: every fourth frame is at the same time
    np.testing.assert_array_equal(records[0]["clip_video"], records[0]["video"][::4])


def test_events_are_ordered_inside_the_clip_and_apart(records):
    for record in records:
        events = _events(record)
        assert len(events) >= 1 and np.all(np.diff(events[:, 1]) >= 0)
        assert np.all(events[:, 1] < events[:, 2]) and np.all(events[:, 2] <= np.float32(TINY.duration_sec))
        for kind in np.unique(events[:, 0]):
            assert np.all(np.diff(events[events[:, 0] == kind, 1]) > 0.16)


def test_the_caption_names_exactly_the_classes_of_the_events(records):
    for record in records:
        named = re.split(r", then |, | and ", record["caption"])
        assert set(named) == {CLASS_NAMES[int(kind)] for kind in _events(record)[:, 0]}
        if ", then " in record["caption"]:
            last = CLASS_NAMES.index(named[-1])
            assert _events(record)[_events(record)[:, 0] == last, 1].min() > 0.42 * TINY.duration_sec


def test_statistics(records):
    events = np.concatenate([_events(record) for record in records])
    counts = np.bincount(events[:, 0].astype(int), minlength=len(CLASS_NAMES))
    assert counts.max() < 2.5 * counts.min()  # 2 on average
    assert 6.0 < len(events) / len(records) < 9.0
    assert 0.27 < np.mean([", then " in record["caption"] for record in records]) < 0.47


def test_it_is_silent_until_the_first_onset(records):
    hz = TINY.audio_hz
    for record in records:
        onset = round(float(_events(record)[0, 1]) * hz)
        before, after = record["waveform"][:onset], record["waveform"][onset : onset + hz // 40]
        assert np.abs(before).max() < 0.02  # noise at -52 dB at most
        assert np.abs(after).max() > 2.5 * np.abs(before).max()


@pytest.mark.parametrize("material", [Wood, Metal, Glass, Thud])
def test_balls_fall_ballistically_and_sound_when_they_hit_the_floor(material):
    for seed in range(10):
        ball = material(np.random.default_rng(seed), Slot(0.5, 0.0, 8.0))
        onsets = np.array([onset for onset, _ in ball.events])
        np.testing.assert_allclose(ball.height(onsets), 0.0, atol=1e-9)
        grid = np.arange(0.0, 8.0, 0.001)
        height = ball.height(grid)
        assert height.min() > -1e-9
        touching = grid[1:][(height[1:] < 1e-3) & (height[:-1] >= 1e-3)]  # reaches the floor
        assert all(np.abs(onsets - time).min() < 0.002 for time in touching if time < ball.last_onset)
        falling = ball.height(onsets[0] - np.array([0.2, 0.1, 0.0]))
        np.testing.assert_allclose(np.diff(falling, 2) / 0.1**2, -6.25, rtol=1e-6)
        assert np.all(np.array(ball.speeds) <= np.sqrt(2 * 6.25 * 0.65) + 1e-9)


def test_the_motor_hums_at_a_pitch_set_by_its_speed():
    motor = Motor(np.random.default_rng(1), Slot(0.5, 0.0, 8.0))
    hz = 16_000
    for event, ((onset, offset), turns) in enumerate(zip(motor.events, motor.turns)):
        sound = motor.sound(event, hz)
        steady = sound[int(0.15 * hz) : int((offset - onset - 0.2) * hz)]
        spectrum = np.abs(np.fft.rfft(steady * np.hanning(steady.size), 2**16))
        assert spectrum.argmax() * hz / 2**16 == pytest.approx(motor.idle_hz + motor.hz_per_turn * turns, abs=3.0)
        assert motor.speed(np.array([onset - 0.01, offset + 0.01])).max() == 0.0


def test_the_lamp_is_bright_while_it_beeps():
    seen = 0
    for index in range(60):
        record = make_scene(5, "train", index, TINY)
        if record["caption"] != "lamp":
            continue
        seen += 1
        times = np.arange(TINY.video_frames) / TINY.video_hz
        onsets, offsets = _events(record)[:, 1:].T[:, :, None]
        lit = ((times > onsets + 0.02) & (times < offsets - 0.02)).any(0)
        dark = ((times < onsets - 0.02) | (times > offsets + 0.02)).all(0)
        brightness = np.sort(record["video"].astype(float).max(-1).reshape(len(times), -1))[:, -20:].mean(1)
        assert brightness[lit].min() > brightness[dark].max()
    assert seen >= 1


def test_source_is_random_access():
    source = ScenesSource(TINY, "validation", size=5, seed=2)
    assert len(source) == 5 and source.class_names == CLASS_NAMES
    assert source[4]["id"] == make_scene(2, "validation", 4, TINY)["id"]
    with pytest.raises(IndexError):
        source[5]
