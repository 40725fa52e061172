"""Sound and pictures together at the smoke preset: every stage, and clips from its checkpoint."""

import json
import subprocess

import numpy as np
import pytest

from benchmarks import meshes
import msg_jax
from msg_jax import generate
from msg_jax.clip import TINY
from msg_jax.config.tree import replace
from msg_jax.data import media
from msg_jax.data.media_writer import encode_video
from msg_jax.data.scenes import make_scene
from msg_jax.errors import UserError
from msg_jax.inference import loading
from msg_jax.programs import checks
from msg_jax.recipes import runs
from msg_jax.run.run import Run
from msg_jax.studies.joint import JointEvaluation, JointKey
from tests.conftest import ROOT, command, environment


@pytest.fixture(scope="module")
def run(tmp_path_factory, scenes_cache):
    folder = tmp_path_factory.mktemp("joint") / "run"
    arguments = command(f"--workdir={folder}", f"--config.data.cache={scenes_cache}", config="joint:smoke")
    subprocess.run(arguments, env=environment(), check=True, cwd=ROOT)
    return folder


def test_every_stage_is_made_and_every_row_is_there(run):
    results = json.loads((run / "results.json").read_text())
    splits = {row["split"] for row in results["rows"]}
    assert splits == {"test", "test, video given", "test, sound given", "ood"}
    assert {row["system"] for row in results["rows"]} == {
        "real", "reconstructed", "random_clip", "base", "sync_dpo", "sync_dpo_half", "continue_equal"
    }
    for row in results["rows"]:
        assert row["heard_caption_f1"]["low"] <= row["heard_caption_f1"]["value"] <= row["heard_caption_f1"]["high"]
        assert (row["event_f1"] is None) == (row["split"] in ("test", "ood") and row["seed"] is not None)
    real = results["rows"][0]
    assert real["system"] == "real" and real["fd_sound"] < 1e-3 and real["fd_picture"] < 1e-3
    costs = {row["system"]: row["cost_tflop"] for row in results["rows"] if row["seed"] is not None}
    assert costs["base"] == 0 and costs["sync_dpo"] == costs["sync_dpo_half"] > 0
    assert costs["continue_equal"] == pytest.approx(costs["sync_dpo"], rel=0.2)
    page = (run / "report" / "index.html").read_text()
    assert page.count("<video") >= 4 and "for the real pictures" in page


def test_a_row_pools_the_samples_of_a_clip(run, scenes_cache, monkeypatch):
    config = replace(runs.joint("smoke"), data=dict(cache=str(scenes_cache)), evaluate=dict(clips=4, batch_size=4, samples=2))
    evaluation = JointEvaluation(Run.create(config, run))
    key = JointKey("base", 2.0, 0, mode="video_given")
    (first, pictures), (second, same) = evaluation.made(key, samples=2)
    assert first.shape[0] == 4 and np.abs(first - second).mean() > 0.01
    np.testing.assert_array_equal(pictures, same)  # those of the clips
    (alone, _), = evaluation.made(key)
    np.testing.assert_allclose(alone, first, atol=1e-3)  # the noise of the first sample is that of a single one
    truth, embeddings = evaluation.clips("test").truth, evaluation.sound.detect(first)[1]
    heard = iter((truth, [each[:0] for each in truth], truth))  # of the first sample, the second, and the real sound
    monkeypatch.setattr(evaluation.sound, "detect", lambda sound: (next(heard), embeddings))
    assert evaluation.row(key)["event_f1"]["value"] == pytest.approx(2 / 3)


def test_a_prompt_gives_sound_and_pictures(run, tmp_path, capsys):
    assert generate.main(["--prompt=a metal ball bounces", f"--checkpoint={run / 'sync_dpo'}", f"--out={tmp_path}"]) == 0
    (row,) = map(json.loads, (tmp_path / "generated.jsonl").read_text().splitlines())
    assert row["outputs"] == ["a_metal_ball_bounces.wav", "a_metal_ball_bounces.mp4"]
    clip = tmp_path / row["outputs"][1]
    assert media.probe(clip).duration_sec == pytest.approx(3.2, abs=0.05)
    assert np.abs(media.read_audio(clip, 0.0, 51_200, 16_000)).max() > 0
    made = msg_jax.load(run / "sync_dpo").generate(prompt="a metal ball bounces")
    assert [path.name for path in made.save(tmp_path / "api")] == ["sound.wav", "sound.mp4"]
    assert (tmp_path / "api" / "sound.mp4").read_bytes() == clip.read_bytes()
    with pytest.raises(UserError, match=r"become \.mp4"):
        made.save(tmp_path / "sound.mkv")


def test_the_same_checkpoint_makes_sound_for_a_video(run, tmp_path):
    scene = make_scene(0, "test", 1, TINY)
    (tmp_path / "scene.mp4").write_bytes(encode_video(scene["video"], TINY.video_hz))
    arguments = [str(tmp_path / "scene.mp4"), f"--checkpoint={run / 'base'}", f"--out={tmp_path / 'out'}"]
    assert generate.main([*arguments, "--prompt=a motor hums"]) == 0
    assert media.read_audio(tmp_path / "out" / "scene.wav", 0.0, 51_200, 16_000).shape == (51_200,)


def test_the_pictures_that_are_given_decide_the_sound(run):
    system = loading.load_checkpoint(run / "base")
    frames = [make_scene(0, "test", index, TINY)["video"] for index in (0, 1)]
    windows = [(each, each[:1]) for each in frames]
    conditions = [system.encode([window], "a motor hums") for window in windows]
    noise = system.noise(0, "clip", 40)
    sounds = [system.sample(each, noise, steps=2, guidance_scale=1.0)[:, :32] for each in conditions]
    assert np.abs(sounds[0] - sounds[1]).max() > 1e-4
    # The latents of the pictures are kept: what the codec leaves of each video comes out.
    shown = [system.pictures(system.sample(each, noise, steps=2, guidance_scale=1.0)) for each in conditions]
    alike = np.corrcoef([pictures.ravel() for pictures in (*shown, *frames)])[:2, 2:]
    assert (np.diag(alike) > 0.6).all() and (np.diag(alike) > np.diag(alike[::-1]) + 0.4).all()


@pytest.mark.parametrize("arguments, words", [
    ([], "give a video"),
    (["--prompt=" + "word " * 21], "has 21 words, and this checkpoint reads 20"),
    (["--prompt=a motor hums", "--container=mkv"], "--container=mkv"),
])
def test_mistakes_are_one_sentence(run, tmp_path, capsys, arguments, words):
    with pytest.raises(SystemExit) as exit_:
        generate.main([*arguments, f"--checkpoint={run / 'base'}", f"--out={tmp_path}"])
    said = capsys.readouterr().err.strip()
    assert exit_.value.code == 2 and words in said and "\n" not in said


@pytest.mark.parametrize(("codec", "words"), [
    (dict(strips=5), "strips=5 does not divide"), (dict(strips=0), "strips=0 does not divide"),
    (dict(channels=100), "strips=3 does not divide"), (dict(motion=0.0), "motion=0.0"),
])
def test_a_codec_of_pictures_that_cannot_be_is_refused(codec, words):
    with pytest.raises(UserError, match=rf"config\.picture_codec\.{words}"):
        checks.check(replace(runs.joint("smoke"), picture_codec=codec))


def test_a_joint_generation_needs_a_prompt(run):
    with pytest.raises(UserError, match="give a --prompt"):
        loading.load_checkpoint(run / "base").encode_text_alone("")


def test_a_checkpoint_without_pictures_refuses_to_make_a_video(smoke_run, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        generate.main(["--prompt=metal", "--container=mp4", f"--checkpoint={smoke_run / 'base'}", f"--out={tmp_path}"])
    assert exit_.value.code == 2 and "sound without pictures" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["base", "sync_dpo"])
def test_a_mesh_of_three_axes_matches_one_device(run, scenes_cache, tmp_path, stage):
    config = replace(
        runs.joint("smoke"), data=dict(cache=str(scenes_cache)), base=dict(steps=3), preference=dict(steps=3, rounds=1),
        every=dict(checkpoint=1, held_out=0),
    )
    one, many = (
        meshes.make(stage, meshes.on_mesh(config, run, shape), tmp_path / str(shape)) for shape in ((1, 1, 1), (2, 2, 2))
    )
    assert 0 < max(meshes.differences(many, one).values()) < meshes.LIMIT
