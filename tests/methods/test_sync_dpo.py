"""SyncDPO on the finished stages of the smoke run: its files, its metrics, and an exact resume."""

import collections
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from msg_jax.config.tree import preference_of, replace
from msg_jax.data.features import FeatureSource
from msg_jax.inference import loading
from msg_jax.infra import checkpoint, logging
from msg_jax.infra import mesh as mesh_lib
from msg_jax.methods import sync_dpo
from msg_jax.preference import distortions
from msg_jax.recipes import runs
from msg_jax.run.run import Run
from tests.conftest import ROOT, environment

RULES = distortions.make_rules(3.2)
STEPS, BATCH = 8, 8  # two rounds of four steps


@pytest.fixture(scope="module")
def workdir(smoke_run, tmp_path_factory):
    """A run whose stages up to avp_rpo are those of the smoke run, and whose SyncDPO arms were made here."""
    folder = tmp_path_factory.mktemp("sync_dpo")
    for path in smoke_run.iterdir():
        if path.name not in ("evaluate", "report", "continue_cfm", "random_pairs") and path.is_dir():
            (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def arms(workdir, scenes_cache):
    subprocess.run(
        [sys.executable, "-m", "msg_jax.main", "--config=configs/sync_dpo.py:smoke", f"--workdir={workdir}",
         f"--config.data.cache={scenes_cache}", "--config.stages=('sync_dpo', 'avp_rpo_sync_dpo', 'avp_rpo_and_sync_dpo')"],
        env=environment(), cwd=ROOT, check=True,
    )
    return workdir


def _rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_pair_is_written_with_its_rule_and_strength(arms):
    rows = _rows(arms / "sync_dpo" / "pairs.jsonl")
    assert len(rows) == STEPS * BATCH
    assert [(row["step"], row["item"]) for row in rows] == [(s, i) for s in range(1, STEPS + 1) for i in range(BATCH)]
    levels = [{RULES[row["rule"]].level for row in rows if row["step"] == step} for step in (1, STEPS)]
    assert levels == [{"coarse"}, {"fine"}]
    for row in rows:
        if row["rule"].endswith("shift"):
            assert 0.08 <= row["strength"] <= 1.6


def test_metrics_count_the_pairs_of_each_rule(arms):
    written = collections.Counter(row["rule"] for row in _rows(arms / "sync_dpo" / "pairs.jsonl"))
    metrics = logging.read_metrics(arms / "sync_dpo" / "training" / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [2, 4, 6, 8]
    for rule in RULES:
        assert sum(row[f"pairs/{rule}"] for row in metrics) == written[rule]
        for row in metrics:
            if row[f"pairs/{rule}"]:
                hits = row[f"accuracy/{rule}"] * row[f"pairs/{rule}"]
                assert 0 <= hits <= row[f"pairs/{rule}"] and hits == pytest.approx(round(hits), abs=1e-4)
            else:
                assert row[f"accuracy/{rule}"] is None and row[f"margin/{rule}"] is None


def test_rules_json_sums_up_every_rule_and_level(arms):
    summed = json.loads((arms / "sync_dpo" / "rules.json").read_text())
    assert list(summed["rules"]) == list(RULES) and list(summed["levels"]) == list(distortions.LEVELS)
    assert sum(rule["pairs"] for rule in summed["rules"].values()) == STEPS * BATCH
    assert sum(level["pairs"] for level in summed["levels"].values()) == STEPS * BATCH
    for name, rule in summed["rules"].items():
        assert rule["level"] == RULES[name].level
        assert rule["validation"]["pairs"] == 8 and 0 <= rule["validation"]["accuracy"] <= 1
        assert (rule["training"]["accuracy"] is None) == (rule["training"]["pairs"] == 0)
    assert summed["levels"]["coarse"]["training"] == {"pairs": 0, "accuracy": None, "margin": None}
    assert summed["levels"]["fine"]["validation"]["pairs"] == 24


def test_the_summary_weighs_the_last_third_by_pairs():
    rules = {name: RULES[name] for name in ("reversal", "shuffle", "fine_shift", "time_warp")}

    def row(step, **of):
        values = {f"{metric}/{rule}": None for metric in sync_dpo.RULE_METRICS for rule in rules}
        for rule in rules:
            for metric, value in zip(sync_dpo.RULE_METRICS, of.get(rule, (0, None, None))):
                values[f"{metric}/{rule}"] = value
        return {"step": step} | values

    rows = [
        row(20, reversal=(5, 0.2, -1.0)), row(25, fine_shift=(4, 0.5, 2.0)),
        row(30, fine_shift=(12, 1.0, 6.0), time_warp=(4, 0.0, -4.0)),
    ]
    unseen = {name: np.array([1.0, -1.0]) for name in rules} | {"fine_shift": np.array([2.0, 4.0])}
    summed = sync_dpo.summary(rules, rows, unseen | {"time_warp": np.array([-3.0, 5.0])})
    assert summed["rules"]["reversal"]["pairs"] == 5 and summed["rules"]["reversal"]["training"]["pairs"] == 0
    assert summed["rules"]["fine_shift"]["training"] == {"pairs": 16, "accuracy": 0.875, "margin": 5.0}
    assert summed["levels"]["fine"]["training"] == {"pairs": 20, "accuracy": 0.7, "margin": 3.2}
    assert summed["levels"]["fine"]["validation"] == {"pairs": 4, "accuracy": 0.75, "margin": 2.0}


def test_an_arm_made_from_others_can_be_generated_from(arms):
    record = json.loads((arms / "avp_rpo_sync_dpo" / "run.json").read_text())
    start = json.loads((arms / "avp_rpo" / "run.json").read_text())
    assert record["upstream"]["avp_rpo"] == start["digest"]
    merged = json.loads((arms / "avp_rpo_and_sync_dpo" / "run.json").read_text())
    assert set(merged["upstream"]) == {"base", "avp_rpo", "sync_dpo"}
    for name, digest in (("avp_rpo_sync_dpo", record["digest"]), ("avp_rpo_and_sync_dpo", merged["digest"])):
        assert loading.load_checkpoint(arms / name).digest == digest


def test_a_merged_arm_adds_its_share_of_each_change(arms):
    base, avp, sync, merged = (
        jax.tree.leaves(checkpoint.load(arms / name / "params"))
        for name in ("base", "avp_rpo", "sync_dpo", "avp_rpo_and_sync_dpo")
    )
    assert any(np.abs(a - b).max() > 1e-4 for a, b in zip(avp, base))
    for start, one, other, found in zip(base, avp, sync, merged, strict=True):
        np.testing.assert_allclose(found, start + 0.5 * (one - start) + 0.5 * (other - start), atol=1e-6)


# The task itself


def _task(workdir, name="sync_dpo"):
    config = runs.sync_dpo("smoke")
    run = Run(workdir, config, mesh_lib.make_mesh((1, 1, 1), jax.devices()[:1]))
    section = replace(preference_of(config, name), steps=STEPS)
    features = FeatureSource(workdir / "extract" / "train")
    return sync_dpo.SyncDPOTask(
        run, features, section, 0, run.load("base", 0), features.dims, name, curriculum=config.arms[name].curriculum,
    )


def _fit(task, folder, steps):
    return task.run.fit(task, replace(task.section, steps=steps), folder, seed=0)


def test_a_resumed_run_ends_with_the_same_bits(workdir, tmp_path):
    whole = _fit(_task(workdir), tmp_path / "whole", STEPS)
    _fit(_task(workdir), tmp_path / "cut", 3)  # between two logged rows, whose sums must continue
    resumed = _fit(_task(workdir), tmp_path / "cut", STEPS)
    assert checkpoint.digest(resumed) == checkpoint.digest(whole)
    rows = [
        [{name: row[name] for name in row if "/" in name or name in ("step", "loss")}
         for row in logging.read_metrics(tmp_path / run / "metrics.jsonl") if row["step"] > 3]
        for run in ("whole", "cut")
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 3


def test_rules_and_strengths_depend_on_seed_arm_and_step_alone(workdir):
    task, again, uniform = _task(workdir), _task(workdir), _task(workdir, "sync_dpo_uniform")
    drawn = jax.jit(task.drawn)
    for step, (index, strength) in enumerate(zip(*jax.jit(jax.vmap(again.drawn))(np.arange(STEPS)))):
        np.testing.assert_array_equal(drawn(step)[0], index)
        np.testing.assert_allclose(drawn(step)[1], strength, rtol=1e-6)
    levels = {RULES[row["rule"]].level for row in uniform.pairs() if row["step"] <= 2}
    assert levels == set(distortions.LEVELS)
