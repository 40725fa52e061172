"""Loudness and true peak against closed forms and FFmpeg's meter."""

import av
import numpy as np
import pytest

from msg_jax.data import level
from msg_jax.errors import UserError

HZ = 16_000


def _by_ffmpeg(waveform: np.ndarray, hz: int) -> tuple[float, float]:
    """Integrated loudness and true peak by FFmpeg's ebur128 filter."""
    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=hz, format="flt", layout="mono", time_base=None)
    meter, sink = graph.add("ebur128", "peak=true:metadata=1"), graph.add("abuffersink")
    source.link_to(meter)
    meter.link_to(sink)
    graph.configure()
    frame = av.AudioFrame.from_ndarray(np.asarray(waveform, np.float32)[None], format="flt", layout="mono")
    frame.sample_rate, frame.pts = hz, 0
    source.push(frame)
    source.push(None)
    found = {}
    while True:
        try:
            found |= dict(sink.pull().metadata or {})
        except (av.error.EOFError, av.error.BlockingIOError):
            return float(found["lavfi.r128.I"]), 20 * np.log10(float(found["lavfi.r128.true_peaks_ch0"]))


def _knocks(seed: int, seconds: float = 4.0) -> np.ndarray:
    """Decaying tones over quiet noise: peaks far above the loudness, as in generated sound."""
    rng, t = np.random.default_rng(seed), np.arange(int(seconds * HZ)) / HZ
    sound = 0.003 * rng.standard_normal(t.size)
    for onset in rng.uniform(0, seconds, 9):
        after = np.clip(t - onset, 0, None)
        sound += (t >= onset) * rng.uniform(0.2, 0.7) * np.exp(-12 * after) * np.sin(2 * np.pi * rng.uniform(300, 3000) * after)
    return sound.astype(np.float32)


def test_a_sine_of_full_scale_has_the_standard_s_loudness():
    t = np.arange(4 * 48_000) / 48_000
    assert level.loudness_lufs(np.sin(2 * np.pi * 997 * t), 48_000) == pytest.approx(-3.01, abs=0.05)


def test_a_peak_between_two_samples_is_found():
    t = np.arange(HZ)
    quarter = np.sin(2 * np.pi * t / 4 + np.pi / 4)  # its samples are 3 dB below its peaks
    assert np.abs(quarter).max() == pytest.approx(0.7071, abs=1e-3)
    assert level.true_peak_dbtp(quarter[2000:-2000]) == pytest.approx(0.0, abs=0.2)


@pytest.mark.parametrize("target", [-30.0, -23.0, -14.0])
def test_a_sound_gets_its_loudness_and_no_peak_above_the_ceiling(target):
    for seed in range(7):
        levelled = level.at_loudness(_knocks(seed), HZ, target)
        loudness, peak = _by_ffmpeg(levelled, HZ)
        assert loudness == pytest.approx(target, abs=0.5) and peak < level.CEILING_DBTP


def test_where_no_peak_reaches_the_ceiling_the_gain_is_constant():
    quiet = _knocks(0)
    ratio = level.at_loudness(quiet, HZ, -40.0) / np.where(quiet == 0, 1, quiet)
    np.testing.assert_allclose(ratio[np.abs(quiet) > 1e-3], ratio[np.abs(quiet).argmax()], rtol=1e-4)


def test_silence_stays_silence_and_what_cannot_be_is_said():
    np.testing.assert_array_equal(level.at_loudness(np.zeros(HZ, np.float32), HZ, -23.0), 0)
    with pytest.raises(UserError, match=r"needs a sound of at least 0\.4 s"):
        level.at_loudness(np.ones(1000, np.float32), HZ, -23.0)
    click = np.zeros(HZ, np.float32)
    click[HZ // 2] = 1.0
    with pytest.raises(UserError, match="give a lower number"):
        level.at_loudness(click, HZ, -5.0)
