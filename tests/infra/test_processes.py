"""Two processes with two devices each; benchmarks/faults.py breaks them in more ways."""

import jax
import numpy as np

from benchmarks import faults
from msg_jax.infra import logging


def test_two_processes_train_as_one_and_one_continues_their_run(tmp_path):
    """Fifteen steps on a mesh across both, the rest on one device: the parameters of one device all along."""
    ended = [faults.ends(process) for process in faults.start_two(tmp_path, "--steps=15")]
    assert [code for code, _ in ended] == [0, 0], ended
    assert ended[0] == ended[1]  # the digest that each found
    ours, theirs = faults.trained(tmp_path), faults.undisturbed()
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    steps = [row["step"] for row in logging.read_metrics(tmp_path / "metrics.jsonl")]
    assert steps == [5, 10, 15, 20, 25, 30]  # written once, by process 0
