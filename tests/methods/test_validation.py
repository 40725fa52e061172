"""What is measured on held-out clips, and the network that is picked by it."""

import json

import jax
import numpy as np
import pytest
import toy_generator as toy

from msg_jax.config.tree import replace
from msg_jax.errors import UserError
from msg_jax.infra import checkpoint
from msg_jax.methods import AvpRpo, Picked, SyncDpo, check, picked
from msg_jax.methods.candidates import CandidatePool
from msg_jax.methods.method import Job
from msg_jax.methods.validation import Validation, unrewarded
from msg_jax.recipes import presets
from msg_jax.run.run import Run


def test_metrics_are_those_of_the_network_s_sound_for_held_out_clips(smoke_run):
    config = replace(presets.get("smoke"), data=dict(cache=str(smoke_run.parent / "scenes")))
    run = Run.create(config, smoke_run)
    validation = Validation(CandidatePool(run, config.preference, 0))
    found, real = validation.metrics(run.load("base", 0)), validation._of_real
    assert found["reward_reconstructed"] == real["reward"] != found["reward"] and found["fd_latents"] > 0.1
    assert real["fd_latents"] == pytest.approx(0, abs=1e-6) and real["fd_judge"] == pytest.approx(0, abs=1e-3)
    weights = config.reward
    assert found["reward"] == pytest.approx(weights.window * found["window"] + weights.events * found["events"], abs=1e-4)
    # Latents that are .5 larger everywhere have means that are, and equal deviations.
    channels = validation._latents.shape[2]
    assert validation._measured(validation._latents + 0.5)["fd_latents"] == pytest.approx(0.25 * channels, rel=1e-3)


def test_a_held_out_reward_is_that_of_a_second_sf_cavp(smoke_run, monkeypatch):
    """In its place the first one's parameters, so that it has the value of the first one's window term."""
    config = replace(
        presets.get("smoke"), data=dict(cache=str(smoke_run.parent / "scenes")), preference=dict(held_out_reward=True)
    )
    load, asked = Run.load, []

    def stand_in(self, stage, seed=None):
        asked.append(stage)
        return load(self, "sf_cavp" if stage == "held_out_sf_cavp" else stage, seed)

    monkeypatch.setattr(Run, "load", stand_in)
    run = Run.create(config, smoke_run)
    found = Validation(CandidatePool(run, config.preference, 0)).metrics(run.load("base", 0))
    assert "held_out_sf_cavp" in asked and found["held_out_reward"] == pytest.approx(found["window"], abs=1e-5)
    assert "held_out_sf_cavp" in AvpRpo().needs(config)
    assert "held_out_sf_cavp" not in AvpRpo().needs(replace(config, preference=dict(held_out_reward=False)))


def test_truth_is_asked_first_and_the_reward_never():
    metrics = dict(reward=9.0, fd_latents=3.0)
    assert unrewarded(metrics) == -3
    assert unrewarded(metrics | dict(held_out_reward=0.2)) == 0.2
    assert unrewarded(metrics | dict(held_out_reward=0.2, event_f1=0.7)) == 0.7


@pytest.fixture
def pick(tmp_path, monkeypatch):
    """Picks between a start of slope .5 and rounds of slope 1.2 and 2.1, where event F1 is highest at `best`."""

    def made(best):
        class Scripted:
            def __init__(self, pool):
                pass

            def metrics(self, variables):
                slope = float(variables["params"]["slope"])
                return {"reward": slope, "event_f1": 1 - (slope - best) ** 2}

        monkeypatch.setattr(picked, "Validation", Scripted)
        monkeypatch.setattr(picked, "CandidatePool", lambda *_: None)
        monkeypatch.setattr(Job, "load", lambda self, system: toy.variables())
        for number, slope in enumerate((1.2, 2.1)):
            folder = tmp_path / "avp_rpo" / f"round_{number}" / "params"
            if not folder.exists():
                checkpoint.export(folder, jax.tree.map(lambda x, slope=slope: np.full_like(x, slope), toy.variables()))
        config = replace(presets.get("smoke"), arms={"avp_rpo": AvpRpo(), "mine": Picked(shares=(0.5, 1.0))})
        run = Run.create(config, tmp_path)
        variables = Picked(shares=(0.5, 1.0)).tune(Job(run, "mine", tmp_path / "mine", 0))
        rows = [json.loads(line) for line in (tmp_path / "mine" / "validation.jsonl").read_text().splitlines()]
        return float(variables["params"]["slope"]), rows

    return made


def test_the_network_with_the_best_unrewarded_metric_is_picked(pick):
    slope, rows = pick(best=1.35)
    assert [row["reward"] for row in rows] == pytest.approx([0.5, 0.85, 1.2, 1.3, 2.1])
    assert slope == pytest.approx(1.3)
    assert [(row["round"], row["share"]) for row in rows if row["picked"]] == [(1, 0.5)]


def test_nothing_is_tuned_where_nothing_is_better(pick):
    slope, rows = pick(best=0.3)
    assert slope == 0.5 and [row["share"] for row in rows if row["picked"]] == [0]


@pytest.mark.parametrize(("arm", "message"), [
    (Picked(start="sync_dpo"), r"config\.arms\.mine\.start=sync_dpo has no rounds"),
    (Picked(start="base"), r"config\.arms\.mine\.start=base has no rounds"),
    (Picked(shares=(0.5, 1.5)), r"config\.arms\.mine\.shares=\(0\.5, 1\.5\) must be shares"),
    (Picked(shares=()), r"config\.arms\.mine\.shares=\(\) must be shares"),
])
def test_what_cannot_be_picked_is_refused(arm, message):
    config = replace(presets.get("smoke"), arms={"avp_rpo": AvpRpo(), "sync_dpo": SyncDpo(), "mine": arm})
    with pytest.raises(UserError, match=message):
        check(config)
