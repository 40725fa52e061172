"""Errors per step, from scripted detections."""

import numpy as np

from msg_jax.clip import TINY
from msg_jax.inference.scorer import CodecAndJudge


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
