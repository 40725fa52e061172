"""The main job at the smoke preset: its files, and that finished stages are not made again."""

import html.parser
import json
import subprocess

import numpy as np
import pytest

from msg_jax.clip import TINY, ClipSpec
from msg_jax.data.features import FeatureSource
from tests.conftest import ROOT, command, environment

STAGES = (
    "prepare", "codec", "judge", "second_judge", "sf_cavp", "sound_events", "encoders", "extract", "base", "candidates",
    "avp_rpo", "avp_rpo_midway", "avp_rpo_picked", "random_pairs", "continue_cfm", "evaluate",
)
SYSTEMS = {
    "real", "reconstructed", "random_clip", "unconditional", "base", "avp_rpo", "avp_rpo_midway", "avp_rpo_picked",
    "random_pairs", "continue_cfm",
}


def _run(*arguments, **options):
    return subprocess.run(command(*arguments, **options), env=environment(), cwd=ROOT, capture_output=True, text=True)


def test_every_stage_leaves_a_finished_record(smoke_run):
    for stage in STAGES:
        record = json.loads((smoke_run / stage / "run.json").read_text())
        assert record["finished"] and len(record["digest"]) == 64, stage
        assert ClipSpec.from_dict(record["clip_spec"]) == TINY, stage
    base = json.loads((smoke_run / "base" / "run.json").read_text())
    assert base["upstream"]["extract"] == json.loads((smoke_run / "extract" / "run.json").read_text())["digest"]


def test_results_have_a_row_for_every_system_and_guidance(smoke_run):
    results = json.loads((smoke_run / "results.json").read_text())
    assert {row["system"] for row in results["rows"]} == SYSTEMS
    assert sorted(row["guidance"] for row in results["rows"] if row["system"] == "avp_rpo") == [1.0, 2.0]
    for row in results["rows"]:
        assert row["split"] == "test"
        for name in ("event_f1", "onset_f1", "class_f1", "event_f1_40ms", "onset_f1_40ms", "semantic", "dynamic", "reward"):
            assert row[name]["low"] <= row[name]["value"] <= row[name]["high"], (row["system"], name)
        for name in ("event_f1", "onset_f1"):
            assert row[f"{name}_40ms"]["value"] <= row[name]["value"]
    # One R@1 of 64 needs 64 clips, and smoke has 8: null, with the reason beside it.
    assert results["sf_cavp"]["dynamic_r1_64"] is None and "64" in results["sf_cavp"]["dynamic_r1_64_reason"]
    assert 0 <= results["sf_cavp"]["offset_accuracy_9"] <= 1


def test_what_was_rewarded_stands_beside_what_was_not(smoke_run):
    results = json.loads((smoke_run / "results.json").read_text())
    picked = [row for row in results["rounds"] if row["system"] == "avp_rpo_picked"]
    rounds = len([path for path in (smoke_run / "avp_rpo").glob("round_*") if (path / "params").is_dir()])
    assert [row["round"] for row in picked] == [None, *(n for n in range(rounds) for _ in range(4))]
    assert sum(row["picked"] for row in picked) == 1
    for row in results["rounds"]:
        assert {"reward", "reward_reconstructed", "window", "event_f1", "fd_judge", "fd_latents"} <= row.keys(), row["system"]
    whole = [row["reward"] for row in picked if row["share"] == 1]
    assert whole == pytest.approx([row["reward"] for row in results["rounds"] if row["system"] == "avp_rpo"], abs=1e-5)
    assert "Rewarded, and not rewarded" in (smoke_run / "report" / "index.html").read_text()


def test_a_round_leaves_candidates_scores_and_pairs(smoke_run):
    folder = smoke_run / "avp_rpo" / "round_0"
    scores = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    candidates = FeatureSource(smoke_run / "candidates")
    assert len(pairs) == 8 and len(scores) == 8 * 3
    inside = []
    for pair in pairs:
        steps = candidates[candidates.ids.index(pair["id"])]["step_rewards"]
        winner, loser = (steps[pair[side], np.arange(steps.shape[1])].mean() for side in ("winner", "loser"))
        assert winner >= steps.mean(axis=1).max() - 1e-5 and loser <= steps.mean(axis=1).min() + 1e-5
        assert pair["gap"] == pytest.approx(winner - loser, abs=2e-5)
        rewards = np.array([row["reward"] for row in scores if row["id"] == pair["id"]])
        inside.append((steps.mean(axis=1) - steps.mean(), rewards - rewards.mean()))
    # Per step and for whole clips, the reward finds the same differences between a video's candidates.
    assert np.corrcoef(*np.concatenate(inside, axis=1))[0, 1] > 0.95
    assert sum(pair["kept"] for pair in pairs) == 4


def test_every_training_logs_its_gradient_norm_and_its_loss_on_held_out_clips(smoke_run):
    trainings = sorted(str(path.parent.relative_to(smoke_run)) for path in smoke_run.rglob("metrics.jsonl"))
    held_out = {"judge", "sf_cavp", "encoders", "base", "continue_cfm/training"}
    held_out |= {f"{arm}/round_0/training" for arm in ("avp_rpo", "random_pairs")}
    assert held_out < set(trainings)
    for training in trainings:
        rows = [json.loads(line) for line in (smoke_run / training / "metrics.jsonl").read_text().splitlines()]
        assert all(row["grad_norm"] > 0 and row["learning_rate"] > 0 for row in rows[1:]), training
        last = rows[-1].get("held_out_loss")
        assert last is None if training.startswith("sound_events") else np.isfinite(last), training


def test_the_report_is_one_page_that_loads_nothing(smoke_run):
    links = []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            links.extend(value for name, value in attributes if name in ("src", "href") and value)

    Parser().feed((smoke_run / "report" / "index.html").read_text())
    assert links and all(link.startswith(("data:", "#")) for link in links)


def test_a_finished_run_is_not_run_again(smoke_run, scenes_cache):
    before = {path: path.stat().st_mtime_ns for path in smoke_run.rglob("*") if path.is_file()}
    done = _run(f"--workdir={smoke_run}", f"--config.data.cache={scenes_cache}")
    assert done.returncode == 0 and done.stdout.count("done before") == len(STAGES)
    assert {path: path.stat().st_mtime_ns for path in smoke_run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("argument", "sentence"), [
    ("--config.base.hidden=64", "base was made with config.base.hidden=32, this run has config.base.hidden=64"),
    ("--config.clip.latent_channels=16", "was made with config.clip.latent_channels=32, this run has"),
])
def test_a_run_of_other_settings_is_refused(smoke_run, scenes_cache, argument, sentence):
    done = _run(f"--workdir={smoke_run}", f"--config.data.cache={scenes_cache}", argument)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert sentence in done.stderr and "--workdir" in done.stderr


def test_verbosity_minus_1_prints_nothing(smoke_run, scenes_cache):
    done = _run(f"--workdir={smoke_run}", f"--config.data.cache={scenes_cache}", "--verbosity=-1")
    assert done.returncode == 0 and done.stdout == ""


OWN_CONFIG = """
from msg_jax.config.tree import replace
from msg_jax.recipes import runs

def get_config():
    config = runs.avp_rpo("smoke")
    return replace(config, arms={"avp_rpo": config.arms["avp_rpo"]}, stages=("avp_rpo", "evaluate"))
"""


def test_a_config_of_ones_own_on_real_videos_gives_reasons_for_missing_metrics(shared, tmp_path):
    (tmp_path / "own.py").write_text(OWN_CONFIG)
    done = _run(f"--workdir={tmp_path}", f"--config.data.source=folder:{shared}/media", config=tmp_path / "own.py")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    others = {"avp_rpo_midway", "avp_rpo_picked", "random_pairs", "continue_cfm"}
    assert {row["system"] for row in results["rows"]} == SYSTEMS - others
    for row in results["rows"]:
        assert row["event_f1"] is None and "has no event truth" in row["event_f1_reason"]
        assert row["reward"]["low"] <= row["reward"]["value"]
        assert row["fd_vggish"] is None and "vggish" in row["fd_vggish_reason"]
    late = {row["system"]: row["onset_f1_spectral_flux"]["value"] for row in results["rows"]}
    assert late["real"] == 1 > late["random_clip"]
    assert results["reward"]["headroom_share"] is None
    assert (tmp_path / "report" / "index.html").stat().st_size > 10_000
