"""Arms: which settings contradict each other, what an arm is made from, and its label."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from msg_jax import methods
from msg_jax.config import tree
from msg_jax.config.schema import Config
from msg_jax.errors import UserError
from msg_jax.evaluation import report
from msg_jax.infra import checkpoint, record
from msg_jax.methods import AvpRpo, ContinueFlow, Distill, Merge, SyncDpo
from msg_jax.methods.validation import first_of_each_video
from msg_jax.programs import checks
from msg_jax.programs.plan import plan
from msg_jax.recipes import presets, runs
from msg_jax.run.run import Run
from msg_jax.run.stage import ensure


@pytest.mark.parametrize(("arms", "sentence"), [
    ({"a": dict(kind="sync_dpo", start="b")}, r"config\.arms\.a\.start='b' is not a system: choose base or another arm"),
    ({"a": dict(kind="sync_dpo", start="b"), "b": dict(kind="avp_rpo", start="a")}, "makes a circle"),
    ({"a": dict(kind="sync_dpo", start="a")}, r"makes a circle \(a <- a\): let one of them start from base"),
    ({"a": dict(kind="sync_dpo", curriculum="steep")}, r"arms\.a\.curriculum='steep' .*'linear', 'uniform'"),
    ({"a": dict(kind="sync_dpo", winner="real")}, r"arms\.a has no field winner"),
    ({"a": dict(kind="rewards")},
     r"arms\.a\.kind='rewards' .*avp_rpo, sync_dpo, continue_flow, random_pairs, oracle, merge"),
    ({"a": dict(kind="avp_rpo", changes=dict(step=3))}, r"arms\.a\.changes has no field step: did you mean steps"),
    ({"a": dict(kind="avp_rpo", shares=dict(b=0.5)), "b": dict(kind="sync_dpo")}, r"arms\.a has no field shares"),
    ({"a": dict(kind="merge", shares=dict(b=0.5))}, r"arms\.a\.shares\.b is not a system"),
    ({"a": dict(kind="merge", shares=dict(b=0.5)), "b": dict(kind="sync_dpo", start="a")}, r"makes a circle \(a <- b <- a\)"),
    ({"a": dict(kind="merge")}, r"arms\.a\.shares is empty"),
    ({"a": dict(kind="distill", solver_steps=3)}, r"arms\.a\.solver_steps=3 must divide teacher_steps=8"),
    ({"a": dict(kind="distill"), "b": dict(kind="distill", start="a")}, r"b\.guidance=2.0 needs .* a is a student: set"),
])
def test_an_impossible_arm_is_one_sentence(arms, sentence):
    values = tree.to_dict(presets.get("smoke")) | {"arms": arms}
    with pytest.raises(UserError, match=sentence) as caught:
        methods.check(tree.from_dict(Config, values, methods.KINDS))
    assert "\n" not in str(caught.value)


def test_the_arms_of_every_recipe_and_preset_can_be_made():
    for preset in presets.PRESETS:
        methods.check(presets.get(preset))
        methods.check(runs.sync_dpo(preset))


def test_an_arm_needs_its_start_and_only_ranked_arms_need_reward_and_judge():
    stages = plan(runs.sync_dpo("smoke"))
    assert set(stages["sync_dpo"].needs) == set(stages["continue_cfm"].needs) == {"base"}
    assert set(stages["avp_rpo_sync_dpo"].needs) == {"base", "avp_rpo"}
    assert set(stages["soup"].needs) == {"base", "avp_rpo", "sync_dpo", "continue_cfm"}
    assert set(stages["avp_rpo"].needs) == {"base", "sf_cavp", "sound_events", "judge", "candidates"}
    assert tuple(methods.KINDS) == (
        "avp_rpo", "sync_dpo", "continue_flow", "random_pairs", "oracle", "merge", "picked", "distill", "diffusion_nft", "awm"
    )


@pytest.mark.parametrize(("arm", "own"), [
    (AvpRpo(), False), (AvpRpo(changes=dict(steps=3)), False), (AvpRpo(start="sync_dpo"), True),
    (AvpRpo(changes=dict(candidates=3)), True),
])
def test_an_arm_shares_the_base_model_s_candidates_unless_it_samples_otherwise(arm, own):
    config = tree.replace(presets.get("smoke"), arms={"arm": arm, "sync_dpo": SyncDpo()})
    assert ("candidates" in plan(config)["arm"].needs) == (not own)


def test_arms_that_start_from_a_student_are_sampled_as_it_is(tmp_path):
    arms = {
        "student": Distill(sampled_steps=(6, 3)), "fast": Distill(start="student", guidance=1.0, solver_steps=2),
        "tuned": AvpRpo(start="fast"), "half": Merge(start="student", shares={"tuned": 0.5}), "guided": AvpRpo(),
    }
    arms["own"] = AvpRpo(start="student", changes=dict(candidate_steps=5))
    config = tree.replace(presets.get("smoke"), arms=arms)
    methods.check(config)
    steps = {name: methods.method(config, name).student_steps(config) for name in arms}
    assert steps == {"student": (6, 3), "fast": (2,), "tuned": (2,), "half": (6, 3), "own": (6, 3), "guided": ()}
    run = Run.create(config, tmp_path)
    sections = {name: methods.Job(run, name, tmp_path, 0).preference for name in ("tuned", "guided", "own")}
    assert (sections["tuned"].candidate_guidance, sections["tuned"].candidate_steps) == (1.0, 2)
    assert (sections["own"].candidate_guidance, sections["own"].candidate_steps) == (1.0, 5)
    assert sections["guided"].candidate_guidance == config.preference.candidate_guidance != 1
    assert AvpRpo(start="student").samples_itself() and not AvpRpo(start="student", sampled="base").samples_itself()


def test_labels():
    assert AvpRpo().describe() == {"label": AvpRpo.title, "note": AvpRpo.summary}
    assert Merge(shares={"a": 0.5}, label="Half").describe() == {"label": "Half", "note": ""}
    assert ContinueFlow(note="longer").describe() == {"label": ContinueFlow.title, "note": "longer"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shrink(methods.Method):
    """A method that someone adds: every weight of `start`, times `factor`."""

    kind = "shrink"
    title = "Shrunk"
    summary = "toy"
    factor: float = 0.5

    def tune(self, job):
        return jax.tree.map(lambda x: self.factor * x, job.load(self.start))

    def check(self, name, config):
        if not 0 < self.factor < 1:
            raise UserError(f"config.arms.{name}.factor={self.factor} must lie between 0 and 1.")


def test_a_new_method_is_one_class_and_one_entry(tmp_path, monkeypatch):
    monkeypatch.setitem(methods.KINDS, "shrink", Shrink)
    values = tree.to_dict(presets.get("smoke")) | {"arms": {"mine": dict(kind="shrink", factor=0.25)}}
    config = tree.from_dict(Config, values, methods.KINDS)
    checks.check(config)
    stage = plan(config)["mine"]
    assert stage.needs == ("base",) and "mine" in plan(config)["evaluate"].needs
    run = Run.create(config, tmp_path)
    checkpoint.export(tmp_path / "base" / "params", {"w": np.full(3, 4.0, np.float32)})
    monkeypatch.setattr(Shrink, "student_steps", lambda self, config: (3, 1))
    made = ensure(run, stage, 0, {"base": "digest"})
    assert record.read_sampling(tmp_path / "mine") == {"steps": 3, "guidance_scale": 1.0}
    assert record.read_sampling(tmp_path / "base") == {}
    np.testing.assert_array_equal(checkpoint.load(tmp_path / "mine" / "params")["w"], np.ones(3))
    assert json.loads((tmp_path / "mine" / "run.json").read_text())["settings"]["arms"]["mine"]["factor"] == 0.25
    assert made == checkpoint.digest(checkpoint.load(tmp_path / "mine" / "params"))
    table = report.format_table(
        {"rows": [{"system": "mine", "guidance": 1.0, "split": "test", "seed": 0, "event_f1": 0.5}]},
        {name: methods.method(config, name).describe() for name in config.arms},
    )
    assert "Shrunk" in table
    with pytest.raises(UserError, match=r"arms\.mine\.factor=2"):
        methods.check(tree.replace(config, arms={"mine": Shrink(factor=2.0)}))


def test_one_clip_of_each_video_is_validated():
    ids = ["a.mp4@0.000", "a.mp4@8.000", "test_00003", "b@2.mp4@0.000", "b@2.mp4@8.000", "test_00004"]
    assert first_of_each_video(ids) == [0, 2, 3, 5]
