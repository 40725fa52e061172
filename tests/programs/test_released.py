"""Training on released networks: the whole chain at toy widths, what it refuses, and the size of the presets."""

import json
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from released_files import write_released
import released_run

from msg_jax import networks, programs
from msg_jax.config.tree import replace
from msg_jax.convert.bundle import DOCUMENT, VARIANTS, Bundle
from msg_jax.data import media
from msg_jax.data.features import FeatureSource
from msg_jax.errors import UserError
from msg_jax.inference import frozen, loading
from msg_jax.inference.generate import Settings, generate
from msg_jax.infra import checkpoint
from msg_jax.methods.candidates import SCORES
from msg_jax.models.mmdit import example_inputs
from msg_jax.programs import checks, plan
from msg_jax.recipes import presets, runs
from msg_jax.run.run import Run
from msg_jax.stages.extract import Extractor, reader
from msg_jax.stages.sf_cavp import SFCAVPTask
from tests.conftest import ROOT, environment

STAGES = ("prepare", "codec", "judge", "sf_cavp", "sound_events", "encoders", "extract", "base", "candidates", "avp_rpo",
          "evaluate")
TRAIN = ["a.mp4", "d.mp4", "e.mp4", "f.mp4"]  # how the six videos are divided


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Folders of released files and of videos; of the four for training one cannot be decoded and one is silent."""
    weights, videos = tmp_path_factory.mktemp("weights"), tmp_path_factory.mktemp("videos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, released_run.NAME, write_released(weights))
        patch.setitem(presets.PRESETS, released_run.NAME, released_run.preset)
        released_run.write_videos(videos)
        released_run.damage(videos / "d.mp4")
        released_run.silence(videos / "e.mp4")
        (videos / "captions.csv").write_text("file,caption\na.mp4,dog\n")
        yield weights, videos


@pytest.fixture(scope="module")
def run_folder(inputs, tmp_path_factory):
    """The main job; `base` is fine-tuned for two steps."""
    workdir = tmp_path_factory.mktemp("released_run") / "run"
    _main_job(*inputs, workdir)
    return workdir


def _main_job(weights, videos, workdir, *flags):
    """From the command line, in its own process."""
    subprocess.run([
        sys.executable, "tests/released_run.py", f"--config=configs/avp_rpo.py:{released_run.NAME}", f"--workdir={workdir}",
        f"--config.weights={weights}", f"--config.data.source=folder:{videos}", *flags,
    ], env=environment(), cwd=ROOT, check=True)


def _config(inputs, targets=("avp_rpo",), **changes):
    weights, videos = inputs
    config = replace(presets.get(released_run.NAME), stages=targets, weights=str(weights), data=dict(source=f"folder:{videos}"))
    return replace(config, **changes)


def _rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_stage_is_made_and_records_the_files_it_read(run_folder, inputs):
    records = {stage: json.loads((run_folder / stage / "run.json").read_text()) for stage in STAGES}
    assert all(record["finished"] for record in records.values())
    files = Bundle(inputs[0], VARIANTS[released_run.NAME])
    for stage, kinds in {"codec": ("vae", "bigvgan"), "encoders": ("clip", "synchformer"), "extract": ("mmdit",),
                         "base": ("mmdit",)}.items():
        assert records[stage]["settings"]["weights"] == files.checksums(*kinds)
    assert "weights" not in records["sf_cavp"]["settings"]
    results = json.loads((run_folder / "results.json").read_text())
    assert {row["system"] for row in results["rows"]} >= {"real", "reconstructed", "base", "avp_rpo"}
    for row in results["rows"]:
        assert row["event_f1"] is None and "has no event truth" in row["event_f1_reason"]
        assert np.isfinite(row["reward"]["value"])
    assert (run_folder / "report" / "index.html").stat().st_size > 10_000


def test_clips_that_cannot_be_decoded_are_listed_and_the_others_used(run_folder, inputs):
    reasons = {row["path"]: row["reason"] for row in _rows(run_folder / "skipped.jsonl")}
    assert reasons.keys() == {str(inputs[1] / name) for name in ("d.mp4", "e.mp4")}
    assert "breaks off at" in reasons[str(inputs[1] / "d.mp4")] and "has no sound" in reasons[str(inputs[1] / "e.mp4")]
    features = FeatureSource(run_folder / "extract" / "train")
    assert features.ids == ["a.mp4@0.000", "f.mp4@0.000"] and features.kept == [0, 3]
    facts = json.loads((run_folder / "extract" / "data.json").read_text())
    assert facts == {"clips": {"train": 2, "validation": 1, "test": 1}, "skipped": {"train": 2, "validation": 0, "test": 0}}
    pairs = _rows(run_folder / "avp_rpo" / "round_0" / "pairs.jsonl")
    assert sorted(pair["id"] for pair in pairs) == features.ids


def test_a_reward_of_released_networks_alone_needs_no_reward_model(inputs):
    """DeSync ranks the candidates: neither SF-CAVP nor sound events are trained, and the file of Synchformer is recorded."""
    weights = dict(window=0.0, events=0.0, desync=1.0)
    config = _config(inputs, clip=dict(duration_sec=4.8), reward=weights)
    with pytest.raises(UserError, match=r"config\.arms\.avp_rpo\.winner=stitched joins .* set it to best_of_n or real"):
        checks.check(config)
    stages = plan.plan(config)
    assert not {"sf_cavp", "sound_events"} & plan.needed(stages, ["avp_rpo", "evaluate"])
    assert all(stages[name].weights == ("synchformer",) for name in ("candidates", "avp_rpo", "evaluate"))
    checks.check(_config(inputs, clip=dict(duration_sec=4.8), reward=weights | dict(segments=1.0)))  # it has moments to join
    both = plan.plan(_config(inputs, clip=dict(duration_sec=4.8), reward=dict(desync=1.0)))
    assert {"sf_cavp", "sound_events"} <= plan.needed(both, ["avp_rpo"])


@pytest.mark.slow
def test_a_run_that_desync_rewards(inputs, tmp_path):
    """From videos to the tuned network and its evaluation, without a reward model."""
    videos = tmp_path / "videos"
    videos.mkdir()
    released_run.write_videos(videos, sec=5)
    weights = [f"--config.reward.{name}={weight}" for name, weight in dict(window=0, events=0, desync=2, segments=1).items()]
    run = tmp_path / "run"
    _main_job(inputs[0], videos, run, "--config.clip.duration_sec=4.8", *weights)
    assert not (run / "sf_cavp").exists() and not (run / "sound_events").exists()
    table = FeatureSource(run / "candidates").stack([0, 1], ("scores",))["scores"]
    scores = dict(zip(SCORES, np.moveaxis(table, -1, 0)))
    assert np.isnan(scores["window"]).all() and (scores["desync"] < 0).all()
    np.testing.assert_allclose(scores["reward"], 2 * scores["desync"] + scores["segments"], rtol=1e-5)
    metrics = json.loads((run / "avp_rpo" / "round_0" / "validation.json").read_text())
    terms = ("reward", "desync", "segments")
    assert metrics.keys() == {f"{name}{suffix}" for name in terms for suffix in ("", "_reconstructed")}
    results = json.loads((run / "results.json").read_text())
    tuned = next(row for row in results["rows"] if row["system"] == "avp_rpo")
    assert -2 <= tuned["desync"]["value"] < 0 and tuned["cost_tflop"] > 0
    assert results["sf_cavp"]["offset_accuracy_9"] is None
    ranked, _ = generate(
        loading.load_checkpoint(run / "avp_rpo"), [videos / "a.mp4"], tmp_path, Settings(steps=1, guidance_scale=2.0, best_of=2)
    )
    assert -2 <= max(ranked[0]["rewards"]) < 0


def test_features_are_those_that_generate_computes(run_folder, inputs):
    """CLIP of whole frames, Synchformer of cropped ones, the text of a caption or the released empty text; VAE means."""
    made = loading.load_checkpoint(run_folder / "base")
    clip = made.clip
    features = FeatureSource(run_folder / "extract" / "train")
    grids = [
        media.FrameGrid(clip.video_hz, clip.video_px, clip.video_frames),
        media.FrameGrid(clip.clip_video_hz, clip.clip_video_px, clip.clip_video_frames, squash=True),
    ]
    for i, (name, caption) in enumerate((("a.mp4", "dog"), ("f.mp4", ""))):
        conditions = made.encode([tuple(media.read_video(inputs[1] / name, grids))], caption)
        for field in ("clip", "sync", "text"):
            np.testing.assert_allclose(features[i][field], getattr(conditions, field)[0], atol=2e-4)
        assert np.abs(features[i]["latents"]).max() > 0 and features[i]["latents"].shape == (60, 6)
    assert np.abs(features[0]["text"] - features[1]["text"]).max() > 1e-2


def test_networks_are_loaded_one_at_a_time_and_only_the_needed_sides(run_folder, inputs, monkeypatch):
    loads, load = [], Bundle.load
    monkeypatch.setattr(frozen.memory, "available_bytes", lambda: 0)
    monkeypatch.setattr(Bundle, "load", lambda self, kind, *parts: loads.append((kind, *parts)) or load(self, kind, *parts))
    run = Run.create(_config(inputs), run_folder)
    extract = Extractor(run)
    extract([clip for _, clip in reader(run, run.source("train"), [0])])
    assert loads == [
        ("mmdit", "buffers/empty_text"), ("clip", "params/text/"), ("clip", "params/image/"), ("synchformer",),
        ("vae", "params/encoder/", "buffers/"),
    ]
    assert list(extract._variables._loaded) == ["codec"]


def test_a_sound_is_generated_from_the_tuned_network(run_folder, inputs, tmp_path):
    made = loading.load_checkpoint(run_folder / "avp_rpo")
    assert made.squashes_clip_video and made.guidance_scale == 4.5
    rows, skipped = generate(made, [inputs[1] / "a.mp4"], tmp_path, Settings(steps=1, guidance_scale=2.0, prompt="cat"))
    assert len(rows) == 1 and skipped == [] and (tmp_path / "a.wav").exists()

    tuned, base = (checkpoint.load(run_folder / stage / "params") for stage in ("avp_rpo", "base"))
    released = Bundle(inputs[0], VARIANTS[released_run.NAME]).load("mmdit")
    for before, after in ((released, base), (base, tuned)):
        moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before["params"], after["params"])
        assert 0 < max(jax.tree.leaves(moved)) < 1e-3  # two steps from there, not from noise
        jax.tree.map(np.testing.assert_array_equal, before["buffers"], after["buffers"])


def _copy_up_to_extract(run_folder, tmp_path):
    for stage in ("prepare", "codec", "encoders", "extract"):
        shutil.copytree(run_folder / stage, tmp_path / stage)


def test_without_steps_the_released_network_is_the_base(run_folder, inputs, tmp_path):
    _copy_up_to_extract(run_folder, tmp_path)
    programs.run(_config(inputs, ("base",), base=dict(steps=0)), tmp_path)
    released = Bundle(inputs[0], VARIANTS[released_run.NAME]).load("mmdit")
    jax.tree.map(np.testing.assert_array_equal, checkpoint.load(tmp_path / "base" / "params"), released)
    assert not (tmp_path / "base" / "metrics.jsonl").exists()


def test_other_files_are_refused_by_name(run_folder, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(Bundle, "checksums", lambda self, *kinds: {self.paths[kind].name: "other" for kind in kinds})
    with pytest.raises(UserError, match=r"codec was made with config\.weights\.best_netG\.pt=\w+, this run has .*=other"):
        programs.run(_config(inputs), run_folder)
    with pytest.raises(UserError, match=r"was made with another v1-16\.pth than the one in"):
        loading.load_checkpoint(run_folder / "avp_rpo")


def test_a_run_whose_released_files_are_gone_is_refused(run_folder, inputs, monkeypatch):
    monkeypatch.setattr(frozen, "open_weights", lambda path, variant: Bundle(run_folder, VARIANTS[variant]))
    with pytest.raises(UserError, match=r"was made with released files: .* lacks 5 of the files"):
        loading.load_checkpoint(run_folder / "base")


@pytest.mark.parametrize(("changes", "sentence"), [
    (dict(weights=""), r"--config\.weights=FOLDER \(docs/WEIGHTS\.md"),
    (dict(weights="/nowhere"), r"/nowhere does not exist"),
    (dict(data=dict(source="")), r"config\.data\.source is not given: --config\.data\.source=folder:PATH"),
    (dict(variant="huge"), r"config\.variant='huge' is not a released network: choose one of small_16k"),
    (dict(codec=dict(kind="mp3")), r"config\.codec\.kind='mp3' is not a choice: use one of 'pca', 'released'"),
    (dict(codec=dict(kind="pca")), r"config\.base\.initial=released needs config\.codec\.kind=released"),
    (dict(base=dict(hidden=64)), r"config\.base\.hidden=64 differs from the released toy_16k.*: set it to \d+"),
    (dict(base=dict(initial="", steps=0)), r"config\.base\.steps=0 uses the network of config\.base\.initial"),
    (dict(clip=dict(mel=dict(bands=64))), r"config\.clip does not fit the released toy_16k.*mel\.bands is 64 here, 80 there"),
    (dict(reward=dict(desync=1.0)), r"config\.reward\.desync=1 compares 4\.8 s .* config\.clip\.duration_sec=1\.92"),
    (dict(reward=dict(window=0.0, events=0.0)), r"config\.reward has no weight above 0"),
    (dict(reward=dict(window=-1.0)), r"config\.reward\.window=-1 rewards what is worse"),
    (dict(base=dict(initial=""), encoders=dict(kind="separate")), r"config\.encoders\.kind=separate does not fit config\.clip"),
    (dict(base=dict(initial=""), encoders=dict(kind="sf_cavp")),
     r"12 slow and 48 fast steps, and the clip 15 clip frames and 40 sync"),
])
def test_settings_that_do_not_fit_are_one_sentence_before_any_work(inputs, tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        programs.run(_config(inputs, **changes), tmp_path)
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_the_reward_model_alone_needs_no_released_files(tmp_path):
    """The missing folder of videos is the first complaint; the run names no folder of weights."""
    config = replace(runs.sf_cavp("small_16k"), data=dict(source=f"folder:{tmp_path}/nowhere"))
    with pytest.raises(UserError, match=r"nowhere"):
        programs.run(config, tmp_path / "run")


@pytest.mark.parametrize("preset", ["small_16k", "small_44k", "medium_44k", "large_44k_v2"])
def test_presets_have_the_published_size(preset):
    """The published counts include the buffers."""
    document = (ROOT / DOCUMENT).read_text()
    published = re.search(rf"^\| `mmaudio_{preset}\.pth` .* \| ([\d,]+) \|", document, re.MULTILINE)[1]
    config = runs.avp_rpo(preset)
    checks.check(replace(config, data=dict(source="folder:videos")))
    model = networks.generator(config, config.clip, networks.feature_dims(config, config.clip), jnp.float32)
    count = networks.count(jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model.config)))
    assert f"{count:,}" == published


def test_a_step_of_the_full_size_reward_model_has_shapes_that_fit(tmp_path):
    """8 s at 25 fps with small frames; nothing is computed."""
    config = replace(runs.sf_cavp("small_44k"), clip=dict(video_px=32), sf_cavp=dict(batch_size=8))
    run = Run.create(config, tmp_path)
    task = SFCAVPTask(run)
    with jax.set_mesh(run.mesh):
        state = jax.eval_shape(task.init, jax.random.key(0))
        batch = {
            "video": jax.ShapeDtypeStruct((8, 200, 32, 32, 3), jnp.uint8),
            "mel": jax.ShapeDtypeStruct((8, run.clip.mel_frames, run.clip.mel.bands), jnp.float32),
        }
        _, metrics = jax.eval_shape(lambda *args: task.step(*args, None), state, batch, jax.random.key(0))
    assert metrics["loss"].shape == ()
