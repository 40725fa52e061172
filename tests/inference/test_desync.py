"""DeSync by the released architecture at toy widths, and as a score of sounds."""

import golden_files
import numpy as np
import pytest
from torch_files import write_state

from msg_jax.clip import MMAUDIO_16K
from msg_jax.convert import synchformer_full
from msg_jax.data import frontends
from msg_jax.errors import UserError
from msg_jax.inference.desync import DeSync
from msg_jax.inference.ranking import DeSyncRanker


@pytest.fixture
def weights(tmp_path, monkeypatch):
    arrays, tensors, config = golden_files.full_synchformer()
    write_state(tmp_path / "synchformer_state_dict.pth", tensors)
    monkeypatch.setattr(synchformer_full, "PRESETS", {"released": config})
    return tmp_path / "synchformer_state_dict.pth", arrays


def test_offsets_of_reference_features(weights):
    """Of 4.8 s, so that the first and the last window are one."""
    path, arrays = weights
    video, audio = (np.float32(arrays[f"in/{side}_features"][0]) for side in ("video", "audio"))
    logits, grid = arrays["out/offset_logits"][0].astype(np.float64), np.linspace(-2, 2, 21)
    network = DeSync(path)
    np.testing.assert_allclose(network.offsets_sec(video, audio), [grid[logits.argmax()]] * 2, atol=1e-6)
    share = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert network.expected_sec(video, audio) == pytest.approx((share * np.abs(grid)).sum(), rel=1e-4)


def test_each_window_is_compared_with_the_sound_of_its_time(weights, monkeypatch):
    path, _ = weights
    ranker, heard = DeSyncRanker(path, MMAUDIO_16K), []
    frames = np.zeros((125, ranker._network.video_px, ranker._network.video_px, 3), np.uint8)
    embedding = ranker.embed(frames)
    assert embedding[1] == 5.0 and len(embedding[0]) == 14  # segments of .64 s, .32 s apart
    monkeypatch.setattr(ranker._network, "encode_audio", lambda sound: heard.append(sound) or len(heard))
    monkeypatch.setattr(ranker._network, "expected_sec", lambda video, audio: 0.25 * audio)
    hz, latent = MMAUDIO_16K.audio_hz, MMAUDIO_16K.latent_samples
    waveform = np.repeat([0.1, 0.2], 5 * hz).astype(np.float32)
    starts = [0, 5 * hz // latent]
    assert ranker.score([embedding, embedding], starts, waveform) == pytest.approx(-0.375)
    assert [len(sound) for sound in heard] == [5 * frontends.SYNCHFORMER_HZ] * 2
    assert [float(np.median(sound)) for sound in heard] == pytest.approx([0.1, 0.2], abs=1e-3)


def test_a_short_video_cannot_be_ranked(weights):
    path, _ = weights
    with pytest.raises(UserError, match=r"--best_of ranks sounds by DeSync, which needs 4\.8 s, and the video has 4\.00 s"):
        DeSyncRanker(path, MMAUDIO_16K).embed(np.zeros((100, 8, 8, 3), np.uint8))


def test_the_cosine_of_a_segment_is_that_of_its_mean_features(weights):
    """The second segment of the sound is turned by 60 degrees; its steps differ, and only their mean counts."""
    video = np.array([[[2.0, 0.0]] * 8, [[3.0, 0.0]] * 8])
    audio = np.array([[[1.0, 5.0], [1.0, -5.0]], [[0.5, np.sqrt(0.75)]] * 2, [[9.0, 9.0]] * 2])
    np.testing.assert_allclose(DeSync(weights[0]).segment_cosines(video, audio), [1, 0.5], atol=1e-9)
