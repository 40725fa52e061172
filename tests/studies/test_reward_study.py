"""The reward study: figures of scores whose answer is known, and the whole stage on the finished stages of the smoke run."""

import json
import math
import re

import jax
from ml_collections import ConfigDict
import numpy as np
import pytest

from configs import avp_rpo
from configs import reward_study as study_config
from msg_jax import stages
from msg_jax.clip import ClipSpec
from msg_jax.data import edits
from msg_jax.errors import UserError
from msg_jax.infra import mesh as mesh_lib
from msg_jax.stages import reward_study
from msg_jax.stages.common import Run, ensure

VIDEOS, CANDIDATES = 40, 5


def _section(**changes):
    section = study_config.get_config("smoke").reward_study
    section.update(bootstrap=200, **changes)
    return section


# Figures of scores


def _scores(seed, **rewards):
    """Truths of 40 x 5 candidates, all different, and rewards made of them."""
    truth = np.random.default_rng(seed).permuted(np.tile(np.linspace(0.1, 0.9, CANDIDATES), (VIDEOS, 1)), axis=1)
    return {"event_f1": truth, "onset_f1": truth**2, "class_f1": np.ones_like(truth)} | {
        name: make(truth) for name, make in rewards.items()
    }


def _ranking(by_seed, baseline="right"):
    rewards = [name for name in by_seed[0] if not name.endswith("_f1")]
    return reward_study.ranking_results(by_seed, rewards, _section(baseline=baseline), seed=0)


def test_a_perfect_and_a_perverse_reward():
    found = _ranking({0: _scores(0, right=lambda truth: truth, wrong=lambda truth: 3 - 2 * truth)})
    right, wrong = found["rewards"]["right"], found["rewards"]["wrong"]
    for name in ("within_video_correlation", "within_video_rank_correlation", "rank_correlation_onset_f1"):
        assert (right[name]["value"], wrong[name]["value"]) == pytest.approx((1.0, -1.0))
    for name in ("best_beats_worst", "best_beats_worst_half", "best_beats_worst_quarter"):
        assert (right[name]["value"], wrong[name]["value"]) == (1.0, 0.0)
    assert [right[f"best_beats_worst{share}"]["videos"] for share in ("", "_half", "_quarter")] == [40, 20, 10]
    assert right["headroom_share"]["value"] == pytest.approx(1.0)
    assert wrong["headroom_share"]["value"] == pytest.approx(-1.0)  # its choice is the worst, as far below the mean
    assert (found["event_f1"]["value"], found["event_f1_best"]["value"]) == pytest.approx((0.5, 0.9))
    gap = found["differences"]["wrong"]["within_video_correlation"]
    assert (gap["value"], gap["low"], gap["high"]) == pytest.approx((-2.0, -2.0, -2.0))


def test_seeds_are_told_apart_and_together():
    def half(truth):  # right in the first half of the videos
        return np.where(np.arange(VIDEOS)[:, None] < VIDEOS // 2, truth, -truth)

    by_seed = {0: _scores(0, right=lambda truth: truth), 1: _scores(1, right=half), 4: _scores(2, right=lambda truth: -truth)}
    figure = _ranking(by_seed)["rewards"]["right"]["within_video_correlation"]
    assert figure["seeds"] == pytest.approx({"0": 1.0, "1": 0.0, "4": -1.0})
    assert (figure["value"], figure["mean"], figure["spread"]) == pytest.approx((0.0, 0.0, 1.0), abs=1e-9)
    # The mean over seeds is 1/3 in the first half of the videos and -1/3 in the second: deviation 1/3 / sqrt(40) of the mean.
    assert (figure["high"] - figure["low"]) / 2 == pytest.approx(1.96 / 3 / math.sqrt(VIDEOS), rel=0.3)


def test_what_cannot_be_told_says_why():
    row = _ranking({0: _scores(0, right=np.zeros_like)})["rewards"]["right"]
    for name in ("within_video_correlation", "correlation_class_f1", "best_beats_worst"):
        assert row[name] is None and "differ" in row[f"{name}_reason"]
    assert row["headroom_share"]["value"] == pytest.approx(0.0)  # all tie: a random choice


def test_how_often_an_edit_is_preferred():
    said = np.array([[1.0, 0.0, 1.0], [1.0, 2.0, 1.0], [1.0, 0.0, np.nan], [1.0, 0.0, 1.0]])
    found = reward_study.false_orders({"a": said}, _section(edits=("drop", "add")), seed=0)
    assert found["a"]["drop"]["value"] == 0.25 and found["a"]["drop"]["videos"] == 4
    assert found["a"]["add"]["value"] == 0.5 and found["a"]["add"]["videos"] == 3


# The stage


@pytest.fixture(scope="module")
def workdir(smoke_run, tmp_path_factory):
    """A run whose stages are those of the smoke run."""
    folder = tmp_path_factory.mktemp("reward_study")
    for path in smoke_run.iterdir():
        if path.is_dir():
            (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def config(scenes_cache):
    config = study_config.get_config("smoke")
    config.data.cache = str(scenes_cache)
    config.reward_study.update(clips=6, candidates=2, edits=("swap", "shift_320ms"))
    return config


@pytest.fixture(scope="module")
def results(workdir, config):
    _study(workdir, config)
    return json.loads((workdir / "reward_study" / "reward_study.json").read_text())


def _run(workdir, config):
    return Run(workdir, config, ClipSpec.from_dict(config.clip.to_dict()), mesh_lib.make_mesh((1, 1, 1), jax.devices()[:1]))


def _study(workdir, config):
    return ensure(_run(workdir, config), stages.plan(config)["reward_study"], None, {})


def test_the_stage_tells_of_every_reward(results, workdir, config):
    names = set(config.reward_study.rewards)
    assert {"semantic", "dynamic", "window", "reward"} <= names
    assert [part["guidance"] for part in results["ranking"]] == list(config.reward_study.guidance_scales)
    assert all(set(part["rewards"]) == names == set(part["differences"]) | {"reward"} for part in results["ranking"])
    assert set(results["edits"]) == names | {"judge"} and results["edits_through_codec"]
    for row in results["edits"].values():
        assert set(row) == {"swap", "shift_320ms"}
        assert all(0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1 for figure in row.values())
    record = json.loads((workdir / "sf_cavp" / "run.json").read_text())
    assert results["networks"] == {"": record["digest"]}
    scores = json.loads((workdir / "reward_study" / "scores" / "seed_0-2.0.json").read_text())
    assert set(scores) == names | {"event_f1", "onset_f1", "class_f1"}
    assert all(np.shape(said) == (6, 2) for said in scores.values())


def test_the_table_names_rewards_edits_and_what_they_were_heard_through(results, workdir):
    table = (workdir / "reward_study" / "table.txt").read_text()
    for text in ("Guidance 2, seeds 0 together", "6 validation clips, 2 candidates", "all heard through the codec",
                 "Headroom share", "minus reward", "shift 320ms", "dynamic", "judge"):
        assert text in table


def test_a_study_that_was_killed_ends_the_same(results, workdir, config):
    folder = workdir / "reward_study"
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"finished": False}))
    for name in ("reward_study.json", "scores/seed_0-2.0.json"):
        (folder / name).unlink()
    assert _study(workdir, config) == record["digest"]


class _Nearness:
    """A reward of another kind, which knows the untouched sound: the first candidate."""

    def __init__(self, run):
        self.seen = []

    def __call__(self, name, entry):
        def measure(frames, log_mels):
            self.seen.append((frames.shape, frames.dtype, log_mels.shape))
            return entry.sign * -np.square(log_mels - log_mels[:, :1]).mean(axis=(2, 3))

        return measure


def test_another_kind_of_reward_is_one_line(workdir, config, monkeypatch):
    monkeypatch.setitem(reward_study.KINDS, "nearness", _Nearness)
    changed = ConfigDict(config.to_dict())
    changed.reward_study.update(edits=edits.KINDS, through_codec=False, baseline="near")
    changed.reward_study.rewards = ConfigDict(dict(near=dict(nearness="", sign=1.0), far=dict(nearness="", sign=-1.0)))
    study = reward_study.Study(_run(workdir, changed))
    said = study.edits()
    clip = study.run.clip
    shape = (6, clip.video_frames, clip.video_px, clip.video_px, 3)
    assert study.makers["nearness"].seen[0] == (shape, np.uint8, (6, 9, clip.mel_frames, clip.mel.bands))
    found = reward_study.false_orders(said, changed.reward_study, seed=0)
    for kind in edits.KINDS:  # every edit is heard
        assert (found["near"][kind]["value"], found["far"][kind]["value"]) == (0.0, 1.0)
    shifts = [-said["near"][:, 1 + edits.KINDS.index(f"shift_{ms}ms")].mean() for ms in (40, 320)]
    assert shifts[0] < shifts[1]


def test_an_ensemble_is_the_mean_of_its_members(workdir, config):
    run = _run(workdir, config)
    make = reward_study.Cosines(run)
    clip, draw = run.clip, np.random.default_rng(0)
    frames = draw.integers(0, 256, (4, clip.video_frames, clip.video_px, clip.video_px, 3), np.uint8)
    mels = draw.normal(-6, 2, (4, 3, clip.mel_frames, clip.mel.bands)).astype(np.float32)
    folder = str(workdir / "sf_cavp")
    alone, twice, weighted, other = (
        make(str(i), study_config.reward(where, **weights))(frames, mels) for i, (where, weights) in enumerate((
            ("", dict(window=1.0)), (f"{folder}, {folder}", dict(window=2.0)), ("", dict(window=1.0, dynamic=3.0)),
            (folder, dict(dynamic=1.0)),
        ))
    )
    np.testing.assert_allclose(twice, alone, atol=1e-5)  # units of deviation: weights that scale do not matter
    assert alone.mean() == pytest.approx(0, abs=1e-5) and alone.std(axis=1).mean() == pytest.approx(1, abs=1e-5)
    plane = np.linalg.lstsq(np.stack([alone.ravel(), other.ravel()], 1), weighted.ravel())[0]
    np.testing.assert_allclose(plane[0] * alone + plane[1] * other, weighted, atol=1e-4)
    terms = make._terms("", frames, mels)
    assert make._terms("", frames, mels) is terms  # heard once for all weights


@pytest.mark.parametrize(("changes", "sentence"), [
    (dict(rewards=dict(a=dict(sf_cavp="/nowhere", weights={}))), "a.sf_cavp=/nowhere is no folder of a finished sf_cavp"),
    (dict(rewards=dict(a=dict(sf_cavp="", weights=dict(rhythm=2.0)))), "a.weights.rhythm=2, and this run has only semantic"),
    (dict(rewards=dict(a=dict(weights={}))), "rewards.a is no reward: it needs one of the fields sf_cavp"),
    (dict(rewards=dict(judge=dict(sf_cavp="", weights={}))), "another name than judge"),
    (dict(baseline="best"), "baseline=best is none of the rewards: choose from dynamic"),
    (dict(edits=("swap", "louder")), "edits has 'louder': choose from swap, drop"),
])
def test_a_mistake_is_one_sentence(workdir, config, changes, sentence):
    changed = config.to_dict()
    changed["reward_study"] |= changes
    with pytest.raises(UserError, match=re.escape(sentence)):
        reward_study.Study(_run(workdir, ConfigDict(changed)))


def test_a_reward_with_weights_of_zero_is_left_out(workdir, config):
    changed = ConfigDict(config.to_dict())
    changed.reward_study.rewards.window.weights.window = 0.0
    assert "window" not in reward_study.Study(_run(workdir, changed)).rewards


def test_other_configs_have_no_such_stage():
    assert "reward_study" in stages.plan(study_config.get_config("smoke"))
    assert "reward_study" not in stages.plan(avp_rpo.get_config("smoke"))
