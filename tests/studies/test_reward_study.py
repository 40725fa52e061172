"""The reward study: metrics of scores whose answer is known, and the whole stage on the finished stages of the smoke run."""

import json
import math
import re

import jax
import numpy as np
import pytest

from msg_jax.config.schema import StudiedReward
from msg_jax.config.tree import replace
from msg_jax.data import edits
from msg_jax.errors import UserError
from msg_jax.infra import mesh as mesh_lib
from msg_jax.programs.plan import needed, plan
from msg_jax.recipes import presets, runs
from msg_jax.run.run import Run
from msg_jax.run.stage import ensure
from msg_jax.studies import reward_study

VIDEOS, CANDIDATES = 40, 5


def _section(**changes):
    return replace(runs.reward_study("smoke").reward_study, bootstrap=200, **changes)


# Metrics of scores


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


def test_values_of_each_seed_and_of_all_seeds_pooled():
    def half(truth):  # right in the first half of the videos
        return np.where(np.arange(VIDEOS)[:, None] < VIDEOS // 2, truth, -truth)

    by_seed = {0: _scores(0, right=lambda truth: truth), 1: _scores(1, right=half), 4: _scores(2, right=lambda truth: -truth)}
    metric = _ranking(by_seed)["rewards"]["right"]["within_video_correlation"]
    assert metric["seeds"] == pytest.approx({"0": 1.0, "1": 0.0, "4": -1.0})
    assert (metric["value"], metric["mean"], metric["spread"]) == pytest.approx((0.0, 0.0, 1.0), abs=1e-9)
    # The mean over seeds is 1/3 in the first half of the videos and -1/3 in the second: deviation 1/3 / sqrt(40) of the mean.
    assert (metric["high"] - metric["low"]) / 2 == pytest.approx(1.96 / 3 / math.sqrt(VIDEOS), rel=0.3)


def test_a_metric_that_cannot_be_computed_has_its_reason():
    row = _ranking({0: _scores(0, right=np.zeros_like)})["rewards"]["right"]
    for name in ("within_video_correlation", "correlation_class_f1", "best_beats_worst"):
        assert row[name] is None and "differ" in row[f"{name}_reason"]
    assert row["headroom_share"]["value"] == pytest.approx(0.0)  # all tie: a random choice


def test_how_often_an_edit_is_preferred():
    scores = np.array([[1.0, 0.0, 1.0], [1.0, 2.0, 1.0], [1.0, 0.0, np.nan], [1.0, 0.0, 1.0]])
    found = reward_study.false_orders({"a": scores}, _section(edits=("drop", "add")), seed=0)
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
    study = dict(clips=6, candidates=2, edits=("swap", "shift_320ms"))
    return replace(runs.reward_study("smoke"), data=dict(cache=str(scenes_cache)), reward_study=study)


@pytest.fixture(scope="module")
def results(workdir, config):
    _study(workdir, config)
    return json.loads((workdir / "reward_study" / "reward_study.json").read_text())


def _run(workdir, config):
    return Run(workdir, config, mesh_lib.make_mesh((1, 1, 1), jax.devices()[:1]))


def _study(workdir, config):
    return ensure(_run(workdir, config), plan(config)["reward_study"], None, {})


def test_the_stage_measures_every_reward(results, workdir, config):
    names = set(config.reward_study.rewards)
    assert {"semantic", "dynamic", "window", "reward"} <= names
    assert [part["guidance"] for part in results["ranking"]] == list(config.reward_study.guidance_scales)
    assert all(set(part["rewards"]) == names == set(part["differences"]) | {"reward"} for part in results["ranking"])
    assert set(results["edits"]) == names | {"judge"} and results["edits_through_codec"]
    for row in results["edits"].values():
        assert set(row) == {"swap", "shift_320ms"}
        assert all(0 <= metric["low"] <= metric["value"] <= metric["high"] <= 1 for metric in row.values())
    record = json.loads((workdir / "sf_cavp" / "run.json").read_text())
    assert results["networks"] == {"": record["digest"]}
    scores = json.loads((workdir / "reward_study" / "scores" / "seed_0-2.0.json").read_text())
    assert set(scores) == names | {"event_f1", "onset_f1", "class_f1"}
    assert all(np.shape(each) == (6, 2) for each in scores.values())


def test_the_table_names_rewards_edits_and_the_codec(results, workdir):
    table = (workdir / "reward_study" / "table.txt").read_text()
    for text in ("Guidance 2, seeds 0 pooled", "6 validation clips, 2 candidates", "all after the codec",
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
    """Rewards that know the untouched sound, the first candidate; the weight `sign` is 1 or -1."""

    def __init__(self, run):
        self.seen = []

    def __call__(self, name, entry):
        def measure(frames, log_mels):
            self.seen.append((frames.shape, frames.dtype, log_mels.shape))
            return entry.weights["sign"] * -np.square(log_mels - log_mels[:, :1]).mean(axis=(2, 3))

        return measure


def test_every_edit_lowers_the_score_of_a_reward_that_knows_the_truth(workdir, config, monkeypatch):
    """A reward is any function of frames and log-mels."""
    monkeypatch.setattr(reward_study, "Cosines", _Nearness)
    rewards = {name: StudiedReward(weights={"sign": sign}) for name, sign in (("near", 1.0), ("far", -1.0))}
    changed = replace(
        config, reward_study=dict(edits=edits.KINDS, through_codec=False, baseline="near", rewards=rewards)
    )
    study = reward_study.Study(_run(workdir, changed))
    scores = study.edits()
    clip = study.run.clip
    shape = (6, clip.video_frames, clip.video_px, clip.video_px, 3)
    assert study.cosines.seen[0] == (shape, np.uint8, (6, 9, clip.mel_frames, clip.mel.bands))
    found = reward_study.false_orders(scores, changed.reward_study, seed=0)
    for kind in edits.KINDS:
        assert (found["near"][kind]["value"], found["far"][kind]["value"]) == (0.0, 1.0)
    shifts = [-scores["near"][:, 1 + edits.KINDS.index(f"shift_{ms}ms")].mean() for ms in (40, 320)]
    assert shifts[0] < shifts[1]


def test_an_ensemble_is_the_mean_of_its_members(workdir, config):
    run = _run(workdir, config)
    make = reward_study.Cosines(run)
    clip, draw = run.clip, np.random.default_rng(0)
    frames = draw.integers(0, 256, (4, clip.video_frames, clip.video_px, clip.video_px, 3), np.uint8)
    mels = draw.normal(-6, 2, (4, 3, clip.mel_frames, clip.mel.bands)).astype(np.float32)
    folder = str(workdir / "sf_cavp")
    alone, twice, weighted, other = (
        make(str(i), StudiedReward(sf_cavp=where, weights=weights))(frames, mels) for i, (where, weights) in enumerate((
            ("", dict(window=1.0)), (f"{folder}, {folder}", dict(window=2.0)), ("", dict(window=1.0, dynamic=3.0)),
            (folder, dict(dynamic=1.0)),
        ))
    )
    np.testing.assert_allclose(twice, alone, atol=1e-5)  # units of deviation: weights that scale do not matter
    assert alone.mean() == pytest.approx(0, abs=1e-5) and alone.std(axis=1).mean() == pytest.approx(1, abs=1e-5)
    plane = np.linalg.lstsq(np.stack([alone.ravel(), other.ravel()], 1), weighted.ravel())[0]
    np.testing.assert_allclose(plane[0] * alone + plane[1] * other, weighted, atol=1e-4)
    terms = make._terms("", frames, mels)
    assert make._terms("", frames, mels) is terms  # computed once for all weights


@pytest.mark.parametrize(("changes", "sentence"), [
    (dict(rewards=dict(a=dict(sf_cavp="/nowhere"))), "a.sf_cavp=/nowhere is not the folder of a finished sf_cavp"),
    (dict(rewards=dict(a=dict(weights=dict(rhythm=2.0)))), "a.weights.rhythm=2, but this run has only semantic"),
    (dict(rewards=dict(a=dict(weight={}))), "rewards.a has no field weight: did you mean weights?"),
    (dict(rewards=dict(judge={})), "rewards.judge has the name of the judge's column"),
    (dict(baseline="best"), "baseline=best is not one of the rewards: choose from semantic"),
    (dict(edits=("swap", "louder")), "edits has 'louder': choose from swap, drop"),
])
def test_a_mistake_is_one_sentence(workdir, config, changes, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)) as caught:
        reward_study.Study(_run(workdir, replace(config, reward_study=changes)))
    assert "\n" not in str(caught.value)


def test_a_reward_with_weights_of_zero_is_left_out(workdir, config):
    rewards = config.reward_study.rewards | {"window": StudiedReward(weights={"window": 0.0})}
    changed = replace(config, reward_study=dict(rewards=rewards))
    left_out = set(rewards) - set(reward_study.Study(_run(workdir, changed)).rewards)
    assert left_out == {"window"}


def test_only_its_own_recipe_makes_the_study():
    study, main_job = runs.reward_study("smoke"), runs.avp_rpo("smoke")
    assert "reward_study" in needed(plan(study), study.stages)
    assert "reward_study" not in needed(plan(main_job), main_job.stages)


def test_without_sound_events_no_reward_of_them_is_studied(monkeypatch):
    monkeypatch.setitem(presets.PRESETS, "smoke", lambda config: replace(config, sound_events=dict(kinds=0)))
    assert set(runs.reward_study("smoke").reward_study.rewards) == {"semantic", "dynamic", "window", "reward"}
