import numpy as np
import pytest

from msg_jax.evaluation import waveforms

HZ = waveforms.HZ


def test_stft_distance_by_hand():
    """A window of two samples picks one sample a frame, with the same magnitude in all bins: x[0], x[2], x[4]."""
    resolution = (4, 2, 2)
    reference, found = np.array([1.0, 9.0, 2.0, 9.0, 2.0]), np.array([2.0, 7.0, 2.0, 5.0, 1.0])
    expected = np.sqrt(2 / 9) + 2 * np.log(2) / 3
    assert waveforms.stft_distance(found, reference, (resolution,)) == pytest.approx(expected)
    # Magnitudes are at least 1e-4.
    found[0] = 0.0
    expected = np.sqrt(((1 - 1e-4) ** 2 + 1) / 9) + (np.log(1e4) + np.log(2)) / 3
    assert waveforms.stft_distance(found, reference, (resolution,)) == pytest.approx(expected)


@pytest.mark.parametrize("gain", [0.5, 3.0])
def test_stft_distance_of_another_level(gain):
    noise = np.random.default_rng(0).normal(size=HZ)
    assert waveforms.stft_distance(gain * noise, noise) == pytest.approx(abs(gain - 1) + abs(np.log(gain)))
    assert waveforms.stft_distance(noise, noise) == 0


def _chirps():
    t = np.arange(HZ // 2) / HZ
    reference = np.exp(-3 * t) * np.sin(2 * np.pi * (440 * t + 200 * t**2))
    found = 0.7 * np.exp(-4 * t) * np.sin(2 * np.pi * (450 * t + 180 * t**2)) + 0.01 * np.sin(2 * np.pi * 3000 * t)
    return found, reference


def test_stft_distance_is_that_of_auraloss(monkeypatch):
    """Values of auraloss 0.4.0, MultiResolutionSTFTLoss() with torch 2.14.1 in float64."""
    found, reference = _chirps()
    assert waveforms.stft_distance(found, reference) == pytest.approx(0.9313128223075662, rel=1e-9)
    assert waveforms.stft_distance(reference, found) == pytest.approx(1.1996029927282776, rel=1e-9)
    assert waveforms.stft_distance(found, 0 * reference) == pytest.approx(37825.38789216872, rel=1e-9)
    each = [waveforms.stft_distance(found, reference, (resolution,)) for resolution in waveforms.RESOLUTIONS]
    assert each == pytest.approx([0.8843640994388103, 0.8360381078673746, 1.0735362596165137], rel=1e-9)
    single = waveforms.stft_distance(np.float32(found), np.float32(reference))
    assert single == pytest.approx(0.9313128223075662, rel=1e-5)
    monkeypatch.setattr(waveforms, "_FRAMES_AT_ONCE", 7)
    assert waveforms.stft_distance(found, reference) == pytest.approx(0.9313128223075662, rel=1e-9)


# PESQ


def _speech(seconds=4.0):
    """A voice of harmonics under one formant, with a syllable every .9 s."""
    t = np.arange(round(seconds * HZ)) / HZ
    phase = 2 * np.pi * 120 * t - 4.5 * np.cos(1.4 * np.pi * t)
    voice = sum(np.sin(k * phase) / k * np.exp(-(((k * 120 - 600) / 800) ** 2)) for k in range(1, 25))
    return np.float32(0.2 * voice * np.sqrt(np.clip(np.sin(2.2 * np.pi * t), 0, 1)))


def _bursts(seconds, period, length):
    t = np.arange(round(seconds * HZ)) / HZ
    return np.float32(np.random.default_rng(0).normal(size=t.shape) * (t % period < length))


@pytest.fixture
def library():
    return pytest.importorskip("pesq", reason="the extra `pesq` is not installed")


def test_pesq_is_the_librarys(library):
    clean = _speech()
    noisy = clean + np.float32(2e-3) * np.random.default_rng(0).normal(size=clean.shape).astype(np.float32)
    value = waveforms.pesq(noisy, clean)
    assert value == library.pesq(HZ, clean, noisy, "wb") != library.pesq(HZ, noisy, clean, "wb")
    assert value == pytest.approx(1.6498, abs=1e-3)
    assert waveforms.pesq(clean, clean) == pytest.approx(4.6439, abs=1e-4)  # the top of P.862.2's scale


def test_pesq_says_why_it_is_undefined(library):
    clean = _speech(1.0)
    silence = np.zeros_like(clean)
    for found, reference, reason in (
        (clean, silence, "the reference sound is silent"), (silence, clean, "the generated sound is silent"),
        (clean[:3999], clean[:3999], "the clip is shorter than 0.25 s"),
        (np.ones(20 * HZ), np.ones(20 * HZ), "the clip is longer than 19 s"),
        (clean, _bursts(1.0, 0.5, 0.05), "the reference has no utterance"),  # steps: too short for an utterance
    ):
        with pytest.raises(ValueError, match=reason):
            waveforms.pesq(np.float32(found), np.float32(reference))


def test_pesq_survives_as_many_utterances_as_fit(library):
    """Beyond 50 utterances the library would crash."""
    bursts = _bursts(waveforms.PESQ_LONGEST_SEC, 0.4, 0.196)
    assert 1 <= waveforms.pesq(bursts, bursts) <= 4.65
