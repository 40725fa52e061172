"""Augmented records: cuts, lengths and events."""

import numpy as np
import pytest

from msg_jax.clip import MMAUDIO_44K, TINY
from msg_jax.data import augment
from msg_jax.data.augment import Augmented
from msg_jax.data.scenes import MAX_EVENTS, ScenesSource
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
