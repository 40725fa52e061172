"""Errors per step, from scripted detections, and the sum of rewards, from scripted networks."""

import dataclasses

import numpy as np
import pytest

from msg_jax.clip import MMAUDIO_16K, TINY
from msg_jax.config.schema import Reward
from msg_jax.inference.desync import DeSync
from msg_jax.inference.scorer import CodecAndJudge, CosineScorer, RewardScorer, SynchformerScorer, stretched


class Scripted(CodecAndJudge):
    """Detects the given events, whatever the sound."""

    def __init__(self, found):
        self._found, self._clip = found, TINY

    def detect(self, log_mels):
        assert len(log_mels) == len(self._found)
        return self._found, None


def test_errors_are_counted_at_their_steps_for_every_candidate():
    truth = [np.array([(0, 0.5), (1, 2.0)]), np.array([(2, 3.19)])]
    found = [
        np.array([(0, 0.52), (1, 2.0)]),  # all right
        np.array([(0, 0.5), (3, 2.0)]),  # one of another class: one missed and one too many
        np.array([(2, 3.19)]), np.zeros((0, 2)),
    ]
    log_mels = np.zeros((2, 2, 4, 3), np.float32)
    errors = Scripted(found).step_errors(truth, log_mels, steps=40, tolerance_sec=0.08)  # a step is 80 ms
    assert errors.shape == (2, 2, 40) and not errors[0, 0].any() and not errors[1, 0].any()
    assert errors[0, 1, 25] == 2 and errors[0, 1].sum() == 2
    assert errors[1, 1, 39] == 1 and errors[1, 1].sum() == 1


class Offsets(DeSync):
    """Features are means, the offset is their distance, and segments have the cosines 1, 0 and 2 times the sound's mean."""

    def __init__(self):
        pass

    def encode_video(self, frames):
        return frames.mean()[None]

    def encode_audio(self, waveform):
        return waveform.mean()[None]

    def expected_sec(self, video, audio):
        return float(abs(video - audio)[0])

    def segment_cosines(self, video, audio):
        return np.array([1.0, 0.0, 2.0]) * audio


class Cosines(CosineScorer):
    """In the place of SF-CAVP, the candidates' means at every step."""

    def __init__(self):
        self.terms = ("window",)

    def embed_video(self, video):
        return {"local": np.zeros((len(video), 3))}

    def score_steps(self, video, log_mels):
        assert video["local"].shape == (len(log_mels), 3)
        steps = log_mels.mean(axis=3)
        return {"window": steps.mean(axis=2), "reward": steps.mean(axis=2)}, steps


@pytest.mark.parametrize("cosines", [Cosines(), None])
def test_synchformer_s_terms_are_weighed_and_added_to_the_reward_and_to_its_steps(cosines):
    """Two clips of brightness 1 and 3, three candidates each, whose waveforms are their log-mels' first band, at 16 kHz.

    Three segments are four steps of .32 s; the last one also has what is left of the clip.
    """
    log_mels = np.arange(2 * 3 * 4 * 2, dtype=np.float64).reshape(2, 3, 4, 2) / 10
    clip = dataclasses.replace(MMAUDIO_16K, duration_sec=4 * 0.32)
    weights = Reward(desync=0.5, segments=0.25)
    synchformer = SynchformerScorer(Offsets(), lambda mels: mels[..., 0].mean(axis=1)[:, None].repeat(50, 1), clip, weights)
    scorer = RewardScorer(cosines, synchformer)
    assert scorer.terms == (*(("window",) if cosines else ()), "desync", "segments")
    video = scorer.embed_video(np.stack([np.full((5, 2, 2, 3), value, np.uint8) for value in (1, 3)]))
    scores, steps = scorer.score_steps(video, log_mels)
    offsets = -np.abs(np.array([[1.0], [3.0]]) - log_mels[..., 0].mean(axis=2))
    np.testing.assert_allclose(scores["desync"], offsets, atol=1e-6)
    shares = log_mels[..., 0].mean(axis=2)[..., None] * np.array([1.0, 0.5, 1.0, 2.0])
    np.testing.assert_allclose(scores["segments"], shares.mean(axis=-1), atol=1e-6)
    own = log_mels.mean(axis=3) if cosines else 0
    np.testing.assert_allclose(steps, own + 0.5 * offsets[..., None] + 0.25 * shares, atol=1e-6)
    np.testing.assert_allclose(steps.mean(axis=-1), scores["reward"], atol=1e-6)
    np.testing.assert_array_equal(scorer.score(video, log_mels)["reward"], scores["reward"])


def test_steps_are_stretched_by_what_each_part_of_the_clip_covers():
    np.testing.assert_allclose(stretched(np.array([[1.0, 2.0, 6.0]]), 2), [[4 / 3, 14 / 3]])
    np.testing.assert_allclose(stretched(np.array([1.0, 5.0]), 4), [1, 1, 5, 5])
    unequal = stretched(np.array([1.0, 5.0]), 2, np.array([0, 0.25, 1]))
    np.testing.assert_allclose(unequal, [3, 5])
