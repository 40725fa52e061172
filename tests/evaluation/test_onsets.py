import itertools

import numpy as np
import pytest

from msg_jax.clip import TINY
from msg_jax.data import scenes
from msg_jax.evaluation import onsets

HZ = onsets.MEL.audio_hz


def _bursts(seconds, length_sec=4.0):
    rng = np.random.default_rng(0)
    waveform = 1e-3 * rng.normal(size=round(length_sec * HZ))
    decay = np.exp(-np.arange(HZ // 5) / (0.03 * HZ))
    for second in seconds:
        start = round(second * HZ)
        waveform[start : start + len(decay)] += 0.3 * decay * rng.normal(size=len(decay))
    return waveform.astype(np.float32)


def _list(*seconds, strengths=None):
    return np.stack([np.array(seconds, float), np.ones(len(seconds)) if strengths is None else np.array(strengths)], axis=1)


def test_sound_onsets_are_at_the_start_of_bursts():
    seconds = [0.4, 0.93, 1.5, 2.21, 3.4]
    found = onsets.sound_onsets(onsets.flux(onsets.log_mel(_bursts(seconds))))
    assert found[:, 0] == pytest.approx(seconds, abs=0.012)
    assert found[:, 1].max() == 1 and found[:, 1].min() > 0.5


def test_silence_and_a_still_image_have_no_onset():
    assert len(onsets.sound_onsets(onsets.flux(onsets.log_mel(np.zeros(HZ, np.float32))))) == 0
    assert len(onsets.motion_onsets(onsets.motion_energy(np.zeros((25, 8, 8, 3), np.uint8)))) == 0


def test_motion_onset_of_a_flash_is_when_its_frame_appears():
    frames = np.zeros((50, 8, 8, 3), np.uint8)
    frames[20], frames[40:] = 255, 128
    motion = onsets.motion_energy(frames)
    assert motion[19] == motion[20] == 1 and motion[39] == pytest.approx(128 / 255)
    assert onsets.motion_onsets(motion)[:, 0] == pytest.approx([20 / 25, 40 / 25], abs=0.0401)


def test_counts_by_hand():
    """Onsets are apart by 0, 0.09 and 0.3 s; there is one false positive."""
    counts = onsets.counts(_list(0.5, 1.0, 2.0), _list(0.5, 1.09, 2.3, 3.5))
    assert counts.tolist() == [[1, 3, 2], [2, 2, 1], [2, 2, 1], [3, 1, 0], [3, 1, 0]]
    assert onsets.f1(counts) == pytest.approx(np.mean([2 / 7, 4 / 7, 4 / 7, 6 / 7, 6 / 7]))


def test_average_precision_by_hand():
    """By strength: a miss far away, a hit, a second match of the same reference onset, a hit."""
    reference = _list(1.0, 3.0)
    found = _list(1.0, 1.01, 3.0, 10.0, strengths=[0.8, 0.6, 0.4, 1.0])
    assert onsets.average_precision(reference, found) == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert onsets.average_precision(reference, reference) == 1
    assert onsets.average_precision(reference, _list()) == 0
    assert np.isnan(onsets.average_precision(_list(), found))


def test_av_align_by_hand():
    video, sound = _list(1.0, 2.0), _list(1.03, 2.5, 3.5)
    assert onsets.av_align(video, sound, (0.04,)) == pytest.approx(1 / 4)
    assert onsets.av_align(video, sound, (0.04, 0.6)) == pytest.approx((1 / 4 + 2 / 3) / 2)
    assert onsets.av_align(video, _list()) == 0 and np.isnan(onsets.av_align(_list(), _list()))


@pytest.mark.parametrize("steps", [-37, 0, 12, 150])
def test_lag_sec_is_the_delay(steps):
    noise = np.random.default_rng(1).normal(size=2000)
    assert onsets.lag_sec(noise[500:1500], noise[500 - steps : 1500 - steps], 100.0) == pytest.approx(steps / 100)


def test_lag_sec_of_a_constant_is_nan():
    assert np.isnan(onsets.lag_sec(np.ones(100), np.arange(100.0), 100.0))


DELAYS_SEC = (0.0, 0.08, 0.16, 0.32, 0.64)


@pytest.fixture(scope="module")
def delayed():
    """The metrics of 48 scenes with delayed sound, one row per delay."""
    records = [scenes.make_scene(0, "test", index, TINY) for index in range(48)]
    motion = [onsets.motion_energy(record["video"]) for record in records]
    real = [onsets.flux(onsets.log_mel(record["waveform"])) for record in records]
    rows = []
    for delay_sec in DELAYS_SEC:
        late = [np.pad(record["waveform"], (round(delay_sec * HZ), 0))[: TINY.audio_samples] for record in records]
        fluxes = [onsets.flux(onsets.log_mel(waveform)) for waveform in late]
        pairs = [(onsets.sound_onsets(a), onsets.sound_onsets(b)) for a, b in zip(real, fluxes)]
        rows.append({
            "onset_f1": onsets.f1(sum(onsets.counts(*pair) for pair in pairs)),
            "onset_ap": np.mean([onsets.average_precision(*pair) for pair in pairs]),
            "av_align": np.mean([
                onsets.av_align(onsets.motion_onsets(m), sound) for m, (_, sound) in zip(motion, pairs)]),
            "desync_sound": -np.mean([abs(onsets.lag_sec(a, b, onsets.FLUX_HZ)) for a, b in zip(real, fluxes)]),
            "desync_motion": -np.mean([abs(onsets.motion_lag_sec(m, f)) for m, f in zip(motion, fluxes)]),
        })
    return rows


@pytest.mark.parametrize("name", ["onset_f1", "onset_ap", "av_align", "desync_sound", "desync_motion"])
def test_every_metric_falls_with_the_delay(delayed, name):
    values = [row[name] for row in delayed]
    assert all(later < sooner for sooner, later in itertools.pairwise(values)), values


def test_no_delay_is_perfect_and_desync_equals_the_delay(delayed):
    assert delayed[0]["onset_f1"] == delayed[0]["onset_ap"] == 1 and delayed[0]["desync_sound"] == 0
    assert [-row["desync_sound"] for row in delayed] == pytest.approx(DELAYS_SEC, abs=0.03)
