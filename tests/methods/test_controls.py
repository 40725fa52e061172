"""Merged arms, and the control without pairs, on toy parameters."""

import types

import numpy as np
import pytest
import toy_generator as toy

from msg_jax import networks
from msg_jax.config import tree
from msg_jax.methods import ContinueFlow, Merge, cost
from msg_jax.methods.method import Job
from msg_jax.recipes import presets
from msg_jax.run import operations
from msg_jax.run.run import Run


def test_a_merge_is_its_start_plus_a_share_of_each_change():
    systems = {"base": {"w": np.array([1.0, 2.0])}, "a": {"w": np.array([3.0, 2.0])}, "b": {"w": np.array([1.0, 6.0])}}
    job = types.SimpleNamespace(load=systems.get)
    merged = Merge(shares={"a": 0.25, "b": 0.5}).tune(job)
    np.testing.assert_allclose(merged["w"], [1 + 0.25 * 2, 2 + 0.5 * 4])
    np.testing.assert_allclose(Merge(start="a", shares={"b": 0.5}).tune(job)["w"], [2.0, 4.0])


def _continued(arm, tmp_path, monkeypatch):
    """The task and section that `fit` gets from a control, and what the control returns."""
    monkeypatch.setattr(networks, "generator", lambda *_: toy.Line())
    seen = []

    def fit(self, task, section, folder, *, seed):
        seen.append((task, section))
        return types.SimpleNamespace(params=toy.variables(slope=0.7)["params"], ema_params=None)

    monkeypatch.setattr(Run, "fit", fit)
    config = tree.replace(presets.get("smoke"), arms={"arm": arm}, preference=dict(rounds=3, steps=5, batch_size=8))
    start = toy.variables(slope=0.4)
    job = Job(Run.create(config, tmp_path), "arm", tmp_path, 0)
    monkeypatch.setattr(Job, "load", lambda self, system: {"base": start}[system])
    monkeypatch.setattr(Job, "features", types.SimpleNamespace(dims=toy.DIMS))
    tuned = arm.tune(job)
    ((task, section),) = seen
    assert task.pretrained is start["params"]
    return task, section, tuned


def test_continued_training_takes_as_many_steps_as_all_rounds_on_four_times_the_batch(tmp_path, monkeypatch):
    task, section, tuned = _continued(ContinueFlow(), tmp_path, monkeypatch)
    assert (section.steps, section.batch_size, task.section.batch_size) == (15, 32, 32)
    assert float(tuned["params"]["slope"]) == pytest.approx(0.7)


def test_continued_training_that_matches_an_arm_spends_its_total_cost(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "total", lambda run, system, seed: {"tuned": 800.0, "base": 100.0}[system])
    monkeypatch.setattr(operations, "of_step", lambda task: 2 * task.section.batch_size)  # 64
    task, section, _ = _continued(ContinueFlow(matches="tuned"), tmp_path, monkeypatch)
    assert section.steps == task.section.steps == 11  # (800 - 100) / 64 = 10.9
