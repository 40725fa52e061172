"""Augmented records: cuts, lengths and events."""

import numpy as np
import pytest

from msg_jax.clip import MMAUDIO_44K, TINY
from msg_jax.data import augment
from msg_jax.data.augment import Augmented
from msg_jax.data.scenes import MAX_EVENTS, ScenesSource
from msg_jax.data.stretch import stretch
from msg_jax.errors import UserError


def record(value, events, clip=TINY, px=2):
    """Frame k holds value + k % 100, sample n holds value + n / 1e6."""
    rows = np.full((MAX_EVENTS, 3), -1.0, np.float32)
    rows[: len(events)] = np.reshape(events, (-1, 3))

    def frames(count):
        return np.broadcast_to((value + np.arange(count) % 100)[:, None, None, None], (count, px, px, 3)).astype(np.uint8)

    return {
        "id": f"r{value}", "video": frames(clip.video_frames), "clip_video": frames(clip.clip_video_frames),
        "waveform": (value + np.arange(clip.audio_samples) / 1e6).astype(np.float32), "caption": f"sound {value}",
        "events": rows, "has_events": True,
    }


FIRST = record(0, [(1, 0.5, 0.7), (2, 1.55, 2.0), (1, 2.5, 2.6)])
SECOND = record(100, [(3, 0.2, 0.4), (4, 1.6, 1.8), (3, 3.0, 3.1)])


def test_a_cut_is_at_the_same_instant_in_every_stream():
    joined = augment.splice(FIRST, SECOND, 1.6, 1.6, TINY)
    for name, hz in (("video", 25), ("clip_video", 6.25), ("waveform", 16_000)):
        cut = round(1.6 * hz)
        np.testing.assert_array_equal(joined[name][:cut], FIRST[name][:cut])
        np.testing.assert_array_equal(joined[name][cut:], SECOND[name][cut:])
        assert joined[name].dtype == FIRST[name].dtype
    assert joined["caption"] == "sound 0, then sound 100"


def test_events_follow_the_cut():
    events = augment.splice(FIRST, SECOND, 1.6, 1.6, TINY)["events"]
    np.testing.assert_allclose(events[:4], [(1, 0.5, 0.7), (2, 1.55, 1.6), (4, 1.6, 1.8), (3, 3.0, 3.1)], rtol=1e-6)
    assert events.shape == (MAX_EVENTS, 3) and (events[4:] == -1).all()
    later = augment.splice(FIRST, SECOND, 1.6, 0.0, TINY)["events"]  # second from its own beginning
    np.testing.assert_allclose(later[2:4], [(3, 1.8, 2.0), (-1, -1, -1)], atol=1e-6)  # at 3.2 the clip ends


@pytest.mark.parametrize("speed", [0.8, 1.25, 1.9])
@pytest.mark.parametrize("clip", [TINY, MMAUDIO_44K], ids=["tiny", "44k"])
def test_lengths_are_exact_at_any_speed(speed, clip):
    made = augment.change_speed(record(0, [], clip), record(100, [], clip), speed, clip)
    lengths = [len(made[name]) for name in ("video", "clip_video", "waveform")]
    assert lengths == [clip.video_frames, clip.clip_video_frames, clip.audio_samples]


def test_speed_moves_pictures_events_and_pitch_together():
    tone = np.sin(2 * np.pi * 500 * np.arange(TINY.audio_samples) / TINY.audio_hz).astype(np.float32)
    fast = augment.change_speed(FIRST | {"waveform": tone}, SECOND | {"waveform": 0 * tone}, 1.25, TINY)
    spectrum = np.abs(np.fft.rfft(fast["waveform"][:32_000]))
    assert spectrum.argmax() / 2 == pytest.approx(625)  # half a hertz per bin
    np.testing.assert_allclose(fast["events"][:4, 1], [0.4, 1.24, 2.0, 2.56 + 0.16], rtol=1e-5)
    assert fast["video"][10, 0, 0, 0] == 12 and fast["video"][63, 0, 0, 0] == 79 and fast["video"][64, 0, 0, 0] == 100
    slow = augment.change_speed(FIRST, SECOND, 0.8, TINY)
    np.testing.assert_allclose(slow["events"][:3, 1], [0.625, 1.9375, 3.125], rtol=1e-5)
    assert slow["video"][10, 0, 0, 0] == 8 and slow["caption"] == "sound 0"


def test_an_augmented_source_is_deterministic_and_keeps_the_original_records():
    scenes = ScenesSource(TINY, "train", 4)
    one, other = (Augmented(scenes, concat=0.5, speed=0.25, speeds=(0.8, 1.25), seed=seed) for seed in (0, 1))
    assert len(one) == 4 + 2 + 1
    np.testing.assert_array_equal(one[3]["video"], scenes[3]["video"])
    again = Augmented(scenes, concat=0.5, speed=0.25, speeds=(0.8, 1.25), seed=0)
    assert [one[i]["id"] for i in range(4, 7)] == [again[i]["id"] for i in range(4, 7)] != [other[i]["id"] for i in range(4, 7)]
    np.testing.assert_array_equal(one[4]["waveform"], again[4]["waveform"])
    assert "+" in one[5]["id"] and "@" in one[6]["id"]
    with pytest.raises(IndexError):
        one[7]


def test_a_speed_that_two_clips_cannot_fill_is_refused():
    with pytest.raises(UserError, match="speeds"):
        Augmented(ScenesSource(TINY, "train", 4), concat=0, speed=0.5, speeds=(2.5,), seed=0)


def test_a_continuous_range_of_speeds():
    scenes = ScenesSource(TINY, "train", 4)
    source = Augmented(scenes, concat=0, speed=8.0, speeds=(0.8,), speed_range=(0.7, 1.4), seed=0)
    speeds = [float(source[i]["id"].split("@")[1]) for i in range(4, len(source))]
    assert len(set(speeds)) == 32 and 0.7 <= min(speeds) < 0.8 and 1.2 < max(speeds) <= 1.4
    assert 10 <= sum(speed < 1 for speed in speeds) <= 22  # as many slower as faster: uniform in the logarithm
    for bad in ((0.4, 1.0), (1.2, 0.8), (1.1,)):
        with pytest.raises(UserError, match=r"config\.augment\.speed_range"):
            Augmented(scenes, concat=0, speed=1.0, speeds=(), speed_range=bad, seed=0)


@pytest.mark.parametrize("speed", [0.7, 1.0, 1.3])
def test_another_speed_at_the_same_pitch(speed):
    """A tone keeps its 430 Hz and its level, clicks come at their times divided by the speed, and speed 1 changes nothing."""
    hz = TINY.audio_hz
    tone = np.sin(2 * np.pi * 430 * np.arange(2 * hz) / hz).astype(np.float32)
    fast = stretch(tone, speed, hz)
    assert len(fast) == int(np.ceil(len(tone) / speed))
    middle = fast[: hz][hz // 10 : -hz // 10]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert spectrum.argmax() * hz / len(middle) == pytest.approx(430, abs=1.3)
    assert np.abs(middle).reshape(-1, hz // 20).max(axis=1) == pytest.approx(1, abs=0.05)
    clicks = np.zeros(2 * hz, np.float32)
    times = np.array([0.3, 0.9, 1.6])
    for time in times:
        clicks[round(time * hz) : round(time * hz) + 80] = np.hanning(80)
    heard = stretch(clicks, speed, hz)
    for time in times / speed:
        near = heard[round((time - 0.06) * hz) : round((time + 0.06) * hz)]
        assert abs(near.argmax() / hz - 0.06) < 0.03 and near.max() > 0.5
    if speed == 1:
        np.testing.assert_allclose(heard, clicks, atol=1e-6)
        np.testing.assert_allclose(fast, tone, atol=1e-6)


def test_pitch_is_kept_on_request():
    tone = np.sin(2 * np.pi * 500 * np.arange(TINY.audio_samples) / TINY.audio_hz).astype(np.float32)
    fast = augment.change_speed(FIRST | {"waveform": tone}, SECOND | {"waveform": 0 * tone}, 1.25, TINY, keep_pitch=True)
    assert np.abs(np.fft.rfft(fast["waveform"][:32_000])).argmax() / 2 == pytest.approx(500, abs=1)
    np.testing.assert_allclose(fast["events"][:4, 1], [0.4, 1.24, 2.0, 2.56 + 0.16], rtol=1e-5)


class Edge(np.random.Generator):
    """Draws the first start of a crop, or the last."""

    def __init__(self, last):
        super().__init__(np.random.PCG64(0))
        self.last = last

    def integers(self, high):
        return high - 1 if self.last else 0


def test_a_crop_begins_the_clip_and_silence_follows():
    """Half of 20 frames at 6.25 Hz is 1.6 s, and the last start 1.6 s."""
    made = augment.crop(FIRST, 0.5, Edge(last=True), TINY)
    np.testing.assert_array_equal(made["video"][:40], FIRST["video"][40:])
    np.testing.assert_array_equal(made["video"][40:], FIRST["video"][-1:].repeat(40, axis=0))
    np.testing.assert_array_equal(made["waveform"][:25_600], FIRST["waveform"][25_600:])
    assert not made["waveform"][25_600:].any()
    np.testing.assert_allclose(made["events"][:2], [(1, 0.9, 1.0), (-1, -1, -1)], atol=1e-6)
    assert made["id"] == "r0[1.6:3.2]" and made["video"].shape == FIRST["video"].shape
    early = augment.crop(FIRST, 0.5, Edge(last=False), TINY)  # the second event is cut off, the third left out
    np.testing.assert_allclose(early["events"][:3], [(1, 0.5, 0.7), (2, 1.55, 1.6), (-1, -1, -1)], atol=1e-6)


def test_crops_of_several_lengths():
    scenes = ScenesSource(TINY, "train", 4)
    source = Augmented(scenes, concat=0.25, speed=0.25, speeds=(0.8,), seed=0, crop=4.0)
    assert len(source) == 4 + 1 + 1 + 16
    spans = [source[i]["id"].split("[")[1].rstrip("]").split(":") for i in range(6, 22)]
    assert {round(float(end) - float(start), 6) for start, end in spans} == {0.8, 1.6, 2.4}
    with pytest.raises(UserError, match=r"config\.augment\.crop_shares"):
        Augmented(scenes, concat=0, speed=0, speeds=(), seed=0, crop=1.0, crop_shares=(1.0,))
