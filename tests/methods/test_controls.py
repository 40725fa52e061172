"""Merged arms, and the control without pairs, on toy parameters."""

import types

import numpy as np
import pytest
import toy_generator as toy

from msg_jax import networks
from msg_jax.config import tree
from msg_jax.methods import ContinueFlow, Merge
from msg_jax.methods.method import Job
from msg_jax.recipes import presets
from msg_jax.run.run import Run


def test_a_merge_is_its_start_plus_a_share_of_each_change():
    systems = {"base": {"w": np.array([1.0, 2.0])}, "a": {"w": np.array([3.0, 2.0])}, "b": {"w": np.array([1.0, 6.0])}}
    job = types.SimpleNamespace(load=systems.get)
    merged = Merge(shares={"a": 0.25, "b": 0.5}).tune(job)
    np.testing.assert_allclose(merged["w"], [1 + 0.25 * 2, 2 + 0.5 * 4])
    np.testing.assert_allclose(Merge(start="a", shares={"b": 0.5}).tune(job)["w"], [2.0, 4.0])


def test_continued_training_takes_as_many_steps_as_all_rounds_on_four_times_the_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "generator", lambda *_: toy.Line())
    seen = []

    def fit(self, task, section, folder, *, seed):
        seen.append((task, section))
        return types.SimpleNamespace(params=toy.variables(slope=0.7)["params"], ema_params=None)

    monkeypatch.setattr(Run, "fit", fit)
    config = tree.replace(presets.get("smoke"), arms={"arm": ContinueFlow()}, preference=dict(rounds=3, steps=5, batch_size=8))
    start = toy.variables(slope=0.4)
    job = Job(Run.create(config, tmp_path), "arm", tmp_path, 0)
    monkeypatch.setattr(Job, "load", lambda self, system: {"base": start}[system])
    monkeypatch.setattr(Job, "features", types.SimpleNamespace(dims=toy.DIMS))
    tuned = ContinueFlow().tune(job)
    ((task, section),) = seen
    assert (section.steps, section.batch_size, task.section.batch_size) == (15, 32, 32)
    assert task.pretrained is start["params"] and float(tuned["params"]["slope"]) == pytest.approx(0.7)
