"""Metrics of folders of clips: pairing, skipping, resuming, comparing."""

import csv
import dataclasses
import importlib.util
import json

import golden_files
import numpy as np
import pytest
from torch_files import write_state

from msg_jax import programs
from msg_jax.clip import TINY
from msg_jax.config.tree import replace
from msg_jax.convert import av_benchmark, panns, synchformer_full, vggish
from msg_jax.data import media_writer, scenes
from msg_jax.errors import UserError
from msg_jax.evaluation import distribution
from msg_jax.folders import evaluate
from msg_jax.inference import backbones
from msg_jax.models import synchformer
from msg_jax.recipes import runs as recipes

CLIPS = 6
HZ = TINY.audio_hz


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """`real` videos; `copy` and `late` (by 0.2 s) sounds of the same stems, and one sound without a partner in `late`."""
    root = tmp_path_factory.mktemp("folders")
    (root / "real").mkdir()
    with (root / "events.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "class", "onset", "offset"])
        for index in range(CLIPS):
            scene, name = scenes.make_scene(1, "test", index, TINY), f"clip {index}"
            video = media_writer.encode_video(scene["video"], TINY.video_hz, scene["waveform"], HZ)
            (root / "real" / f"{name}.mp4").write_bytes(video)
            media_writer.write_audio(root / "copy" / f"{name}.wav", scene["waveform"], HZ)
            media_writer.write_audio(root / "late" / f"{name}.flac", np.pad(scene["waveform"], (HZ // 5, 0))[:-HZ // 5], HZ)
            used = scene["events"][scene["events"][:, 0] >= 0][: 1 if index < 3 else 9]
            rows.writerows([name, int(label), f"{onset:.3f}", f"{offset:.3f}"] for label, onset, offset in used)
    media_writer.write_audio(root / "late" / "alone.wav", np.zeros(HZ, np.float32), HZ)
    return root


def _evaluate(workdir, **settings):
    texts = {name: str(value) if hasattr(value, "parts") else value for name, value in settings.items()}
    config = replace(recipes.evaluate("compare" if "runs" in texts else ""), **texts, examples=1, bootstrap=100)
    programs.run(config, workdir)
    return json.loads((workdir / "results.json").read_text())


@pytest.fixture(scope="module")
def late(folders, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("late") / "out"
    _evaluate(workdir, generated=folders / "late", reference=folders / "real", events=folders / "events.csv")
    return workdir


def _row(workdir, system="generated", events=None):
    rows = json.loads((workdir / "results.json").read_text())["rows"]
    return next(row for row in rows if row["system"] == system and row["event_count"] == events)


def test_a_late_copy_has_its_delay(late):
    row = _row(late)
    assert row["desync_spectral_flux"]["value"] == pytest.approx(0.2, abs=0.011)
    assert row["onset_f1_100ms_spectral_flux"]["value"] < 0.6 < row["onset_f1_spectral_flux"]["value"] < 0.9
    assert row["fd_logmel"]["value"] > 0 and row["av_align_motion_energy"]["value"] > 0.1
    assert row["sync_score_spectral_flux"]["value"] < 0.5 and row["stft_l1_waveform"]["value"] > 0.5
    assert _row(late, "real")["onset_f1_annotated_spectral_flux"]["value"] > row["onset_f1_annotated_spectral_flux"]["value"]


def test_every_missing_metric_has_its_reason(late):
    row = _row(late)
    assert row["fd_vggish"] is None and "vggish-10086976.pth" in row["fd_vggish_reason"]
    assert row["desync_synchformer"] is None and "config.weights" in row["desync_synchformer_reason"]
    for name, value in row.items():
        assert value is not None or name == "event_count" or row[f"{name}_reason"]


def test_rows_by_the_number_of_events(late):
    results = json.loads((late / "results.json").read_text())
    assert [row["event_count"] for row in results["rows"] if row["system"] == "generated"][:2] == [None, "1"]
    assert _row(late, events="1")["desync_spectral_flux"]["value"] == pytest.approx(0.2, abs=0.011)


def test_rows_by_the_number_of_classes_of_a_list(folders, tmp_path):
    """The list counts the classes; three clips are late by 0.2 s."""
    for index in range(CLIPS):
        (tmp_path / "some").mkdir(exist_ok=True)
        name = f"clip {index}.wav" if index < 3 else f"clip {index}.flac"
        (tmp_path / "some" / name).write_bytes((folders / ("copy" if index < 3 else "late") / name).read_bytes())
    two, four = ([f"clip {i}" for i in chosen] for chosen in ((0, 1, 2), (3, 4)))
    sections = "\n".join(["# number of classes: 2", *two, "# number of classes: 3", "clip 5", "# number of classes: 4", four[0],
                          "# number of classes: 11", four[1]])
    (tmp_path / "ids.txt").write_text(sections)
    settings = dict(generated=tmp_path / "some", reference=folders / "real", ids=tmp_path / "ids.txt")
    rows = _evaluate(tmp_path / "out", **settings)["rows"]
    found = {row["event_count"]: row["desync_spectral_flux"]["value"] for row in rows if row["system"] == "generated"}
    assert found == pytest.approx({None: 0.2 * 3 / 6, "2": 0.0, "4 or more": 0.2}, abs=0.011)  # one clip of 3 is too few
    assert "4 or more events" in (tmp_path / "out" / "table.txt").read_text()


def test_processes_share_the_clips(folders, tmp_path, monkeypatch):
    """Each extracts its half; the first reads the other's from the cache, and writes the same results as one alone."""
    read = []

    def extract(reader):
        read.append(reader.paths[0].stem)
        return {"logmel": np.zeros(3, np.float32), "flux": np.zeros(50, np.float32)}

    monkeypatch.setattr(backbones, "light", lambda: [backbones.Backbone("signal", "sound", "1", extract)])
    monkeypatch.setattr(backbones, "pesq", lambda: ([], {}))
    settings = dict(generated=folders / "copy", reference=folders / "copy")
    config = replace(recipes.evaluate(), **{name: str(value) for name, value in settings.items()}, examples=0)
    monkeypatch.setattr(evaluate.jax, "process_count", lambda: 2)
    monkeypatch.setattr(evaluate.runtime, "barrier", lambda name: None)
    shares = []
    for process in (1, 0):
        monkeypatch.setattr(evaluate.jax, "process_index", lambda process=process: process)
        evaluate.run(config, tmp_path / "both")
        shares.append(sorted(read))
        assert (tmp_path / "both" / "results.json").exists() == (process == 0)
        read.clear()
    names = [f"clip {index}" for index in range(CLIPS)]
    assert shares == [sorted(names[1::2] * 2), sorted(names[::2] * 2)]


def test_clips_without_a_partner_are_listed(late):
    facts = json.loads((late / "results.json").read_text())["facts"]
    assert facts["clips"] == CLIPS and facts["only_in_generated"] == 1
    assert facts["without_a_partner"] == {"generated": "alone"}
    assert facts["duration_sec"] == pytest.approx(3.2)


def test_the_report_loads_nothing_and_plays_both_sounds(late):
    page = (late / "report" / "index.html").read_text()
    assert page.count("data:video/mp4;base64,") == 2 and "http" not in page.replace("http://www.w3.org", "")
    assert "Onset F1 (spectral flux)" in page and "6 generated clips of 3.2 s" in page


def test_a_second_call_reads_no_clip_again(late, folders, monkeypatch):
    def refuse(reader):
        raise AssertionError(f"{reader} is read again")

    before = json.loads((late / "results.json").read_text())
    light = backbones.light()
    monkeypatch.setattr(backbones, "light", lambda: [
        backbones.Backbone(each.name, each.side, each.version, refuse, each.threads) for each in light])
    settings = dict(generated=folders / "late", reference=folders / "real", events=folders / "events.csv")
    assert _evaluate(late, **settings) == before


def test_a_workdir_holds_one_evaluation(late, folders, smoke_run):
    with pytest.raises(UserError, match=r"config\.generated=.*late, this evaluation has config\.generated=.*copy"):
        _evaluate(late, generated=folders / "copy", reference=folders / "real")
    with pytest.raises(UserError, match="folder of a run"):
        _evaluate(smoke_run, generated=folders / "copy")


def test_broken_files_are_skipped_and_named(folders, tmp_path):
    for path in (folders / "copy").iterdir():
        (tmp_path / "generated" / path.name).parent.mkdir(exist_ok=True)
        (tmp_path / "generated" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "generated" / "clip 2.wav").write_bytes(b"no sound")
    results = _evaluate(tmp_path / "out", generated=tmp_path / "generated", reference=folders / "real")
    (skipped,) = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert skipped["path"].endswith("clip 2.wav") and "cannot be opened" in skipped["reason"]
    assert results["facts"]["skipped"] == 1
    row = results["rows"][0]
    assert row["onset_f1_spectral_flux"]["value"] > 0.99 and row["desync_spectral_flux"]["value"] == 0  # AAC against WAV
    # A repaired file counts.
    media_writer.write_audio(tmp_path / "generated" / "clip 2.wav", np.zeros(3 * HZ, np.float32), HZ, overwrite=True)
    again = _evaluate(tmp_path / "out", generated=tmp_path / "generated", reference=folders / "real")
    assert again["facts"]["skipped"] == 0 and again["rows"][0]["onset_f1_spectral_flux"]["value"] < 0.99


def _noise(path, gain=1.0):
    media_writer.write_audio(path, np.float32(0.1 * gain * np.random.default_rng(0).normal(size=2 * HZ)), HZ)


def test_metrics_of_pairs_of_sounds(tmp_path):
    """Half as loud: spectral convergence .5, and ln 2."""
    _noise(tmp_path / "real" / "a.wav")
    _noise(tmp_path / "generated" / "a.wav", 0.5)
    settings = dict(generated=tmp_path / "generated", reference=tmp_path / "real")
    row = _evaluate(tmp_path / "out", **settings)["rows"][0]
    assert row["stft_l1_waveform"]["value"] == pytest.approx(0.5 + np.log(2), abs=0.01)
    row = _row(tmp_path / "out", "real")
    assert row["stft_l1_waveform"] is None and row["stft_l1_waveform_reason"] == "it is the reference"


def test_pesq_has_a_value_or_a_reason(tmp_path):
    pytest.importorskip("pesq", reason="the extra `pesq` is not installed")
    for name in "ab":
        _noise(tmp_path / "real" / f"{name}.wav")
    _noise(tmp_path / "generated" / "a.wav")
    media_writer.write_audio(tmp_path / "generated" / "b.wav", np.zeros(2 * HZ, np.float32), HZ)
    settings = dict(generated=tmp_path / "generated", reference=tmp_path / "real")
    results = _evaluate(tmp_path / "out", **settings)
    assert results["rows"][0]["pesq_wideband"]["value"] == pytest.approx(4.644, abs=0.001)
    assert results["facts"]["pesq_undefined"] == {"the generated sound is silent": "b"}
    assert _evaluate(tmp_path / "out", **settings) == results  # from the features on disk
    (tmp_path / "ids.txt").write_text("b\n")
    row = _evaluate(tmp_path / "silent", **settings, ids=tmp_path / "ids.txt")["rows"][0]
    assert row["pesq_wideband"] is None
    assert row["pesq_wideband_reason"] == "it is undefined for every clip: the generated sound is silent"


def test_pesq_names_its_extra_where_it_is_not_installed(folders, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "pesq" else find(name, *rest))
    row = _evaluate(tmp_path, generated=folders / "copy", reference=folders / "copy")["rows"][0]
    assert row["pesq_wideband"] is None and "pip install 'msg_jax[pesq]'" in row["pesq_wideband_reason"]
    assert row["stft_l1_waveform"]["value"] == 0 and row["sync_score_spectral_flux"]["value"] == 1


def test_without_reference_only_metrics_that_need_none(folders, tmp_path):
    results = _evaluate(tmp_path, generated=folders / "real")
    assert [row["system"] for row in results["rows"]] == ["generated"]
    row = results["rows"][0]
    assert row["av_align_motion_energy"]["value"] > 0.3 and row["fd_logmel"] is None
    for name in ("fd_logmel", "stft_l1_waveform", "pesq_wideband", "sync_score_spectral_flux"):
        assert row[name] is None and row[f"{name}_reason"] == "no reference was given (config.reference)", name
    results = _evaluate(tmp_path / "sound", generated=folders / "copy")
    assert results["rows"][0]["av_align_motion_energy_reason"] == "there is no video of the clips"
    assert "data:audio/mpeg;base64," in (tmp_path / "sound" / "report" / "index.html").read_text()


def test_ids_limit_the_clips(folders, tmp_path):
    (tmp_path / "ids.txt").write_text("# a list\nclip 1\nclip 4\nclip 77\n")
    settings = dict(generated=folders / "copy", reference=folders / "real", ids=tmp_path / "ids.txt")
    results = _evaluate(tmp_path / "out", **settings)
    assert results["facts"]["clips"] == 2 and results["facts"]["without_a_partner"]["ids"] == "clip 77"


def test_the_networks_of_a_run(smoke_run, folders, tmp_path):
    settings = dict(sf_cavp=smoke_run / "sf_cavp", judge=smoke_run / "judge")
    row = _evaluate(tmp_path, generated=folders / "copy", reference=folders / "real", **settings)["rows"][0]
    for name in ("semantic_sf_cavp", "dynamic_sf_cavp", "window_sf_cavp"):
        assert -1 <= row[name]["value"] <= 1
    assert row["fd_judge"]["value"] >= 0 and "event_f1_judge" in row


@pytest.fixture
def toy_weights(tmp_path, monkeypatch):
    """Released networks at toy widths, under the names and in the forms of the released files."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for module, file, (_, tensors, config) in (
        (panns, "Cnn14_16k_mAP=0.438.pth", golden_files.panns()), (vggish, "vggish-10086976.pth", golden_files.vggish()),
        (synchformer_full, "synchformer_state_dict.pth", golden_files.full_synchformer()),
    ):
        if module is panns:  # its front end tells the two released networks apart
            tensors = {f"model.{name}": value for name, value in tensors.items()}
            tensors["model.logmel_extractor.melW"] = np.zeros((257, 64))
        write_state(folder / file, tensors)
        monkeypatch.setattr(module, "PRESETS", {"released": config})
    return folder


def test_metrics_of_released_networks(toy_weights, tmp_path):
    for index in range(3):
        scene = scenes.make_scene(2, "test", index, dataclasses.replace(TINY, duration_sec=4.8))
        for side, waveform in (("real", scene["waveform"]), ("generated", np.roll(scene["waveform"], HZ))):
            media_writer.write_audio(tmp_path / side / f"{index}.wav", waveform, HZ)
    # only the last scene gets a video: encoding is slow
    video = media_writer.encode_video(scene["video"], TINY.video_hz, scene["waveform"], HZ)
    (tmp_path / "real" / f"{index}.mp4").write_bytes(video)
    settings = dict(generated=tmp_path / "generated", reference=tmp_path / "real")
    row = _evaluate(tmp_path / "out", **settings, weights=toy_weights)["rows"][0]
    for name in ("fd_vggish", "kid_vggish", "fd_panns", "kl_softmax_panns", "desync_synchformer"):
        assert name == "kid_vggish" or row[name]["value"] >= 0, name
    assert row["is_panns"] is None and "10 splits" in row["is_panns_reason"]
    halves = row["desync_synchformer"]["value"] / 0.1  # the mean of two of the grid's steps of 0.2 s
    assert halves == pytest.approx(round(halves), abs=1e-6)
    found, reasons = backbones.released(str(toy_weights), 3.0)
    assert [each.name for each in found] == ["vggish", "panns"]
    assert reasons == {"synchformer": "it needs 4.8 s, and the clips last 3.00 s"}


def test_cached_features_are_used_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"video_{i:03d}" for i in range(12)]
    sides = {}
    for side, shift in (("gt", 0.0), ("pred", 0.5)):
        (tmp_path / side).mkdir()
        features = {name: rng.normal(size=2048) + shift for name in names}
        logits = {name: rng.normal(size=(1, 527)) for name in names}
        nested = {f"{name}.{part}": values[name] for name in names for part, values in
                  (("2048", features), ("logits", logits))}
        write_state(tmp_path / side / "pann_features.pth", nested)
        write_state(tmp_path / side / "vggish_features.pth", {f"{name}.wav": rng.normal(size=(8, 128)) for name in names})
        write_state(tmp_path / side / "clap_laion_audio.pth", {name: rng.normal(size=512) for name in names})
        sides[side] = (features, logits)
    row = _evaluate(tmp_path / "out", generated_cache=tmp_path / "pred", reference_cache=tmp_path / "gt")["rows"][0]
    arrays = {side: [np.float32(np.vstack([part[name] for name in names])) for part in parts] for side, parts in sides.items()}
    expected = distribution.frechet_distance(arrays["pred"][0], arrays["gt"][0])
    assert row["fd_panns"]["value"] == pytest.approx(expected, rel=1e-6)
    expected = distribution.kl_softmax(arrays["pred"][1], arrays["gt"][1]).mean()
    assert row["kl_softmax_panns"]["value"] == pytest.approx(expected, rel=1e-6)
    assert row["is_panns"]["value"] > 1 and row["fd_vggish"]["value"] > 0
    assert row["onset_f1_spectral_flux_reason"] == "the generated clips have cached features only"


def test_desync_and_clap_of_cached_features(toy_weights, tmp_path, monkeypatch):
    arrays = golden_files.full_synchformer()[0]
    seen, heard = (np.float32(arrays[f"in/{side}_features"][0]) for side in ("video", "audio"))  # of 4.8 s
    widths = {f"synchformer_{side}": {seen.shape[-1]: f"synchformer_features_{side}"} for side in ("video", "audio")}
    monkeypatch.setattr(av_benchmark, "WIDTHS", av_benchmark.WIDTHS | widths)
    text = np.ones(512)
    for side, name, tensor in (
        ("gt", "synchformer_video", seen), ("pred", "synchformer_audio", heard),
        ("gt", "clap_laion_text", text), ("pred", "clap_laion_audio", np.arange(512) < 128),
    ):
        (tmp_path / side).mkdir(exist_ok=True)
        write_state(tmp_path / side / f"{name}.pth", {clip: np.float32(tensor) for clip in ("a", "b")})
    caches = dict(generated_cache=tmp_path / "pred", reference_cache=tmp_path / "gt")
    row = _evaluate(tmp_path / "out", **caches, weights=toy_weights)["rows"][0]
    expected = abs(synchformer.offset_grid()[arrays["out/offset_logits"].argmax()])
    assert row["desync_synchformer"]["value"] == pytest.approx(expected, abs=1e-6)
    assert row["clap_score_laion"]["value"] == pytest.approx(0.5)  # 128 / (sqrt(512) sqrt(128))
    assert _evaluate(tmp_path / "without", **caches)["rows"][0]["desync_synchformer"] is None


def test_evaluations_are_compared_in_pairs(late, folders, tmp_path):
    _evaluate(tmp_path / "copy", generated=folders / "copy", reference=folders / "real")
    results = _evaluate(tmp_path / "both", runs=f"{late},{tmp_path / 'copy'}")
    (difference,) = results["differences"]
    assert (difference["system"], difference["baseline"]) == ("copy", late.name)
    values = [row["onset_f1_spectral_flux"]["value"] for row in results["rows"]]
    found = difference["onset_f1_spectral_flux"]
    assert found["value"] == pytest.approx(values[1] - values[0]) and found["low"] > 0
    assert difference["desync_spectral_flux"]["value"] == pytest.approx(-0.2, abs=0.011)
    assert difference["fd_logmel"]["value"] < 0
    assert difference["fd_logmel"]["low"] <= difference["fd_logmel"]["value"] <= difference["fd_logmel"]["high"]
    assert "Differences, clip by clip" in (tmp_path / "both" / "report" / "index.html").read_text()


def test_a_comparison_overwrites_nothing(late, tmp_path):
    both = f"{late},{late}"
    first = _evaluate(tmp_path, runs=both, names="a,b")
    assert _evaluate(tmp_path, runs=both, names="a,b") == first
    with pytest.raises(UserError, match="does not hold this comparison"):
        _evaluate(tmp_path, runs=f"{both},{late}")
    with pytest.raises(UserError, match="does not hold this comparison"):
        _evaluate(late, runs=both)


def test_runs_are_compared_too(smoke_run, tmp_path):
    results = _evaluate(tmp_path, runs=f"({smoke_run}, {smoke_run})", names="a,b")
    labels = [row["system"] for row in results["rows"]]
    assert {"a/real", "b/avp_rpo-1.0-0"} <= set(labels) and len(results["differences"]) == len(labels) / 2
    assert all(row["baseline"] == row["system"].replace("b/", "a/") for row in results["differences"])
    assert all(row["event_f1"] == {"value": 0, "low": 0, "high": 0} for row in results["differences"])


@pytest.mark.parametrize(("settings", "words"), [
    (dict(), ["config.generated", "--config.generated=FOLDER"]),
    (dict(generated="nowhere"), ["nowhere is not a folder"]),
    (dict(generated="{folders}/copy", reference="{folders}/copy", events="{folders}/copy/clip 1.wav"), ["clip 1.wav"]),
    (dict(generated="{folders}/copy", reference="{out}"), ["holds no clip", ".wav"]),
    (dict(generated="{folders}/copy", sf_cavp="{folders}"), ["config.sf_cavp", "not the folder of a finished sf_cavp stage"]),
    (dict(generated="{folders}/copy", weights="nowhere"), ["config.weights=nowhere"]),
    (dict(runs="(a,)"), ["config.runs", "two"]),
    (dict(runs="a,b"), ["a", "no results.json"]),
    (dict(generated_cache="{out}"), ["holds no features (.pth)"]),
])
def test_a_mistake_is_one_sentence(folders, tmp_path, settings, words):
    (tmp_path / "empty").mkdir()
    filled = {name: value.format(folders=folders, out=tmp_path / "empty") if isinstance(value, str) else value
              for name, value in settings.items()}
    with pytest.raises(UserError) as error:
        _evaluate(tmp_path / "out", **filled)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_a_comparison_needs_its_own_preset(tmp_path):
    with pytest.raises(UserError, match=r"config\.runs is for comparisons: use --config=configs/evaluate\.py:compare"):
        programs.run(replace(recipes.evaluate(), runs="a,b"), tmp_path)
    with pytest.raises(UserError, match="There is no preset 'tiny' of an evaluation"):
        recipes.evaluate("tiny")
