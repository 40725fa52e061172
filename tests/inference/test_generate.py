"""Sound for video files: lengths, seeds, windows, seams, and inputs that are refused or skipped."""

import dataclasses
import functools
import importlib
import json
import os
import pathlib
import resource
import subprocess
import sys

import av
from flax.core import meta
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

import msg_jax
from msg_jax import api, networks
from msg_jax import generate as command_line
from msg_jax.clip import TINY
from msg_jax.config.tree import replace
from msg_jax.data import level, media, media_writer, mel, stream_copy
from msg_jax.errors import UserError
from msg_jax.inference import loading, sampling
from msg_jax.inference.cues import Cue
from msg_jax.inference.generate import Settings, Video, find_videos, generate, takes_for, takes_of_text
from msg_jax.inference.packed import load_packed, pack
from msg_jax.inference.ranking import Ranker
from msg_jax.inference.system import System
from msg_jax.infra import checkpoint, logging, runtime
from msg_jax.models.codec import fit_pca
from msg_jax.models.mmdit import example_inputs
from msg_jax.programs import stages
from msg_jax.programs.plan import plan
from msg_jax.recipes import runs
from msg_jax.run import build
from msg_jax.run.run import Run
from msg_jax.types import AVBatch

SETTINGS = Settings(steps=2, guidance_scale=1.5)


def random_params(variables, seed: int):
    """Add noise to every weight: with its own initialisation a generator gives zeros for any input."""
    leaves, structure = jax.tree.flatten(meta.unbox(variables))
    rng = np.random.default_rng(seed)
    return structure.unflatten([np.float32(leaf + 0.05 * rng.normal(size=leaf.shape)) for leaf in leaves])


def make_codec(run, folder, seed):
    log_mels = np.cumsum(np.random.default_rng(0).normal(size=(8, run.clip.mel_frames, run.clip.mel.bands)), axis=1) - 4
    return checkpoint.export(folder / "params", fit_pca(log_mels, mel.mel_basis(run.clip.mel), run.clip)[0])


def make_encoders(run, folder, seed):
    clip = run.clip
    video = jnp.zeros((1, clip.video_frames, clip.video_px, clip.video_px, 3))
    clip_video = jnp.zeros((1, clip.clip_video_frames, clip.clip_video_px, clip.clip_video_px, 3))
    if run.config.encoders.kind == "second_sf_cavp":
        clips = AVBatch(video, jnp.zeros((1, clip.mel_frames, clip.mel.bands)))
        variables = jax.jit(networks.reward_model(run.config, clip).init)(jax.random.key(0), clips)
    else:
        variables = jax.jit(networks.encoder(clip).init)(jax.random.key(0), video, clip_video)
    return checkpoint.export(folder / "params", random_params(variables["params"], seed=1))


def make_base(run, folder, seed):
    dims = networks.feature_dims(run.config, run.clip, run.load("encoders"))
    model = networks.generator(run.config, run.clip, dims, jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), *example_inputs(model.config))
    variables = {"params": random_params(variables["params"], seed), "buffers": variables["buffers"]}
    return checkpoint.export(folder / "params", variables)


CHEAP = {"codec": make_codec, "encoders": make_encoders, "base": make_base}


def make_run(workdir: pathlib.Path, seeds: tuple[int, ...], encoders: str = "separate") -> pathlib.Path:
    """A run up to `base` as the program `stages` leaves it, its networks untrained."""
    config = replace(
        runs.base("smoke"), stages=("base",), seeds=seeds, encoders=dict(kind=encoders), codec=dict(vocoder_iterations=4)
    )
    cheap = {
        name: dataclasses.replace(stage, make=CHEAP.get(name, lambda run, folder, seed: "nothing"))
        for name, stage in plan(config).items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "plan", lambda config: cheap)
        stages.run(config, workdir)
    return workdir


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> pathlib.Path:
    return make_run(tmp_path_factory.mktemp("untrained"), seeds=(0,))


@pytest.fixture(scope="session")
def untrained(run_folder) -> System:
    return loading.load_checkpoint(run_folder / "base")


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> pathlib.Path:
    """short.mp4 (1.04 s, shorter than a clip), sub/exact.mp4 (3.2 s), long.mp4 (7.36 s): ever brighter."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "sub").mkdir()
    for name, frames in (("short", 26), ("sub/exact", 80), ("long", 184)):
        pictures = np.broadcast_to(np.arange(40, 40 + frames, dtype=np.uint8)[:, None, None, None], (frames, 48, 48, 3))
        (folder / f"{name}.mp4").write_bytes(media_writer.encode_video(pictures, 25.0, np.zeros(16_000), 16_000))
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory, untrained, videos) -> pathlib.Path:
    """The whole folder of videos, two variants of each."""
    out = tmp_path_factory.mktemp("finished")
    generate(untrained, [videos], out, dataclasses.replace(SETTINGS, variants=2))
    return out


def read(path: pathlib.Path) -> np.ndarray:
    return soundfile.read(path)[0]


def rows(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def video_packets(path: pathlib.Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


@pytest.mark.parametrize("name, seconds", [("short", 1.04), ("sub/exact", 3.2), ("long", 7.36)])
def test_sound_is_as_long_as_the_video_and_the_video_stream_stays(finished, videos, name, seconds):
    waveform, hz = soundfile.read(finished / f"{name}_0.wav")
    assert (len(waveform), hz) == (round(seconds * 16_000), 16_000)
    assert np.abs(waveform).max() > 1e-3
    muxed = finished / f"{name}_0.mp4"
    assert video_packets(muxed) == video_packets(videos / f"{name}.mp4")
    decoded = media.read_audio(muxed, 0.0, len(waveform), hz)
    assert np.corrcoef(decoded, waveform)[0, 1] > 0.8  # AAC is lossy
    with av.open(str(muxed)) as container:
        sound = container.streams.audio[0]
        assert abs(float(sound.duration * sound.time_base) - seconds) <= 1024 / sound.codec_context.sample_rate


def test_every_sound_has_its_row(finished, untrained):
    found = {row["outputs"][0]: row for row in rows(finished / "generated.jsonl")}
    assert sorted(found) == sorted(f"{name}_{i}.wav" for name in ("short", "sub/exact", "long") for i in (0, 1))
    row = found["long_1.wav"]
    assert row["seed"] == 1 and row["steps"] == 2 and row["guidance"] == 1.5 and row["checkpoint"] == untrained.digest
    assert row["outputs"] == ["long_1.wav", "long_1.mp4"] and row["seconds"] > 0
    assert rows(finished / "skipped.jsonl") == []


def test_a_video_gets_the_same_sound_alone_and_a_variant_is_its_seed(untrained, videos, finished, tmp_path):
    generate(untrained, [videos / "long.mp4"], tmp_path, dataclasses.replace(SETTINGS, seed=1, audio_format="flac"))
    alone = read(tmp_path / "long.flac")
    np.testing.assert_array_equal(alone, read(finished / "long_1.wav"))
    assert np.abs(alone - read(finished / "long_0.wav")).mean() > 1e-3


def test_a_generator_conditioned_on_a_second_sf_cavp(videos, tmp_path):
    """Packed, it goes without what hears sound."""
    folder = make_run(tmp_path / "run", (0,), encoders="second_sf_cavp") / "base"
    system = loading.load_checkpoint(folder)
    generate(system, [videos / "short.mp4"], tmp_path / "out", SETTINGS)
    waveform = read(tmp_path / "out" / "short.wav")
    assert len(waveform) == 16_640 and np.abs(waveform).max() > 1e-3
    frames = [np.zeros((1, *shape), np.uint8) for shape in ((80, 24, 24, 3), (20, 24, 24, 3))]
    features = system.encode_frames(system.variables["encoders"], *frames)
    assert [x.shape[:2] for x in features] == [(1, 20), (1, 80)]
    assert not np.allclose(system.encode_frames(system.variables["encoders"], frames[0] + 255, frames[1])[1], features[1])
    pack(folder, tmp_path / "packed.safetensors")
    packed = load_packed(tmp_path / "packed.safetensors")
    encoders = packed.variables["encoders"]
    assert set(encoders["video_encoder"]) == {"slowfast"} and "audio_encoder" not in encoders
    for ours, theirs in zip(packed.encode_frames(encoders, *frames), features, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0.02, atol=0.01 * np.abs(theirs).max())


def test_prompts_change_the_sound_and_negative_ones_need_guidance(untrained, videos, finished):
    video = Video(videos / "short.mp4", "short.mp4")

    def sound(**changes):
        ((waveform, *_),) = takes_for(untrained, video, dataclasses.replace(SETTINGS, **changes))
        return waveform

    plain = sound()
    np.testing.assert_allclose(plain, read(finished / "short_0.wav"), atol=1 / 32768)
    assert np.abs(sound(prompt="glass breaking") - plain).mean() > 1e-4
    assert np.abs(sound(negative_prompt="music") - plain).mean() > 1e-4
    unguided = sound(guidance_scale=1.0)
    np.testing.assert_array_equal(sound(guidance_scale=1.0, negative_prompt="music"), unguided)


def test_the_python_api_makes_the_sounds_of_the_command(untrained, run_folder, videos, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(api, "load_checkpoint", lambda folder, precision: untrained if folder == run_folder / "base" else None)
    system, shares = msg_jax.load(run_folder / "base"), []
    asked = dict(steps=2, guidance=1.5, on_progress=shares.append)
    result = system.generate(videos / "short.mp4", variants=2, **asked)
    assert result.save(tmp_path) == [tmp_path / f"short_{i}{suffix}" for i in (0, 1) for suffix in (".wav", ".mp4")]
    for i in (0, 1):
        np.testing.assert_array_equal(read(tmp_path / f"short_{i}.wav"), read(finished / f"short_{i}.wav"))
        assert video_packets(tmp_path / f"short_{i}.mp4") == video_packets(videos / "short.mp4")
    assert shares == sorted(shares) and 0 < shares[0] < shares[-1] == 1
    with pytest.raises(UserError, match="exists already"):
        result.save(tmp_path)

    second = system.generate(str(videos / "short.mp4"), seed=1, **asked)
    assert second.seeds == (1,) and second.save(tmp_path / "one.flac") == [tmp_path / "one.flac"]
    np.testing.assert_array_equal(read(tmp_path / "one.flac"), read(finished / "short_1.wav"))
    alone = system.generate(prompt="glass breaking", steps=1)
    assert len(alone.waveforms[0]) == 51_200 and alone.save(tmp_path / "text") == [tmp_path / "text/sound.wav"]
    with pytest.raises(UserError, match=r"there was no video: give a name with \.wav"):
        alone.save(tmp_path / "text.mp4")
    for changes, said in (({}, "neither a video nor a prompt"), ({"prompt": "x", "steps": 0}, "steps=0 is not")):
        with pytest.raises(UserError, match=said):
            system.generate(**changes)
    monkeypatch.setattr(api, "load_weights", lambda *source: source)
    assert msg_jax.load(videos, "small_44k").system == (videos, "small_44k", None)
    monkeypatch.undo()
    with pytest.raises(UserError, match="has no variants"):
        msg_jax.load(run_folder / "base", "small_16k")
    with pytest.raises(UserError, match=r"msg-jax weights get small_44k --to=.*nowhere"):
        msg_jax.load(tmp_path / "nowhere", "small_44k")


def test_an_exception_of_the_listener_ends_the_work(untrained, videos):
    def stop(share):
        if share > 0.4:
            raise KeyboardInterrupt

    system = api.LoadedSystem(untrained)
    with pytest.raises(KeyboardInterrupt):
        system.generate(videos / "short.mp4", steps=2, on_progress=stop)
    assert len(system.generate(videos / "short.mp4", steps=2).waveforms[0]) == 16_640  # nothing stays locked


def test_the_package_loads_without_jax():
    script = "import sys, msg_jax; sys.exit(any(name in sys.modules for name in ('jax', 'numpy', 'av')))"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_each_cue_of_a_script_is_heard_in_its_time(untrained, videos, monkeypatch):
    """The latents before a cue do not depend on the cue's text, and those in the cue do."""
    seen, decode = [], System.decode
    monkeypatch.setattr(System, "decode", lambda self, latents: seen.append(latents) or decode(self, latents))

    def latents(**changes):
        list(takes_for(untrained, Video(videos / "long.mp4", "long.mp4"), dataclasses.replace(SETTINGS, **changes)))
        return seen.pop()

    bells, rain, late = (
        latents(prompt="street", script=(Cue(4.0, 9.0, prompt, negative),))
        for prompt, negative in (("bells", ""), ("rain", ""), ("bells", "music"))
    )
    cue, fade = round(4.0 * TINY.latent_hz), untrained.fade_tokens
    for other in (rain, late):
        changed = np.abs(other - bells).mean(axis=1)
        # Windows before the cue see the one token that is cross-faded.
        assert changed[: cue - fade].mean() < 0.05 * changed[cue + fade :].mean() and changed[cue + fade :].mean() > 1e-4
    # One cue over all of the video is the prompt.
    np.testing.assert_allclose(latents(script=(Cue(0.0, 60.0, "bells"),)), latents(prompt="bells"), atol=1e-6)


def test_the_video_s_own_sound_is_mixed_in(untrained, tmp_path):
    t = np.arange(2 * 16_000) / 16_000
    own = (0.2 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
    path = tmp_path / "tone.mp4"
    path.write_bytes(media_writer.encode_video(np.full((50, 48, 48, 3), 90, np.uint8), 25.0, own, 16_000))

    def sound(**changes):
        ((waveform, *_),) = takes_for(untrained, Video(path, path.name), dataclasses.replace(SETTINGS, **changes))
        return waveform

    read_back = media.read_audio(path, 0.0, len(own), 16_000)
    assert np.corrcoef(read_back, own)[0, 1] > 0.95
    both = sound() + 0.5 * read_back
    np.testing.assert_allclose(sound(mix=0.5), both / max(1, np.abs(both).max()), atol=1e-6)
    loud = sound(loudness_lufs=-20.0, mix=0.5)
    assert level.loudness_lufs(loud, 16_000) == pytest.approx(-20, abs=0.5)
    assert level.true_peak_dbtp(loud) < level.CEILING_DBTP


def test_sound_for_a_part_of_a_video(untrained, tmp_path):
    """Within the part it is that of the windows there, and elsewhere the video's own; short cross-fades join them."""
    t = np.arange(6 * 16_000) / 16_000
    own = (0.2 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
    pictures = np.broadcast_to(np.arange(40, 190, dtype=np.uint8)[:, None, None, None], (150, 48, 48, 3))
    (tmp_path / "tone.mp4").write_bytes(media_writer.encode_video(pictures, 25.0, own, 16_000))
    (tmp_path / "silent.mp4").write_bytes(media_writer.encode_video(pictures, 25.0))
    later = tmp_path / "later" / "tone.mp4"
    later.parent.mkdir()
    later.write_bytes(media_writer.encode_video(pictures[50:130], 25.0, own[32_000:83_200], 16_000))

    def sound(path, **changes):
        ((waveform, *_),) = takes_for(untrained, Video(path, "tone.mp4"), dataclasses.replace(SETTINGS, **changes))
        return waveform

    first, end, fade = 32_000, 83_200, 320
    made, alone = sound(tmp_path / "tone.mp4", start_sec=2.0, end_sec=5.2), sound(later)
    read_back = media.read_audio(tmp_path / "tone.mp4", 0.0, len(own), 16_000)
    assert len(made) == 96_000 and len(alone) == end - first
    inside = made[first + fade : end - fade]
    assert np.corrcoef(inside, alone[fade:-fade])[0, 1] > 0.999  # the pictures were encoded twice
    np.testing.assert_array_equal(made[:first], read_back[:first])
    np.testing.assert_array_equal(made[end:], read_back[end:])
    silent = sound(tmp_path / "silent.mp4", start_sec=2.0)
    assert len(silent) == 96_000 and not silent[:first].any() and np.abs(silent[first + fade :]).mean() > 1e-4
    cued = dict(start_sec=2.0, end_sec=5.2, script=(Cue(0.0, 60.0, "bells"),))
    assert np.abs(sound(tmp_path / "tone.mp4", **cued)[first:end] - made[first:end]).mean() > 1e-4
    with pytest.raises(UserError, match=r"silent\.mp4 ends at 6.00 s, and its sound is to start at 6 s"):
        sound(tmp_path / "silent.mp4", start_sec=6.0)


@pytest.mark.parametrize(("changes", "flag"), [
    (dict(best_of=2), "--best_of"), (dict(mix=0.5), "--mix"), (dict(start_sec=1.0), "--start"), (dict(end_sec=1.0), "--start"),
    (dict(respect_cuts=True), "--respect_cuts"),
])
def test_directions_that_need_a_video_are_refused_without_one(untrained, changes, flag):
    settings = dataclasses.replace(SETTINGS, prompt="rain", **changes)
    with pytest.raises(UserError, match=f"{flag}.* a prompt alone has none"):
        next(takes_of_text(untrained, settings))


def test_no_window_looks_across_a_cut(untrained, tmp_path, monkeypatch):
    """Each window has the pictures of one shot only: the first and last stand for what is cut off."""
    levels, path = np.repeat([20, 90, 160], [80, 40, 64]).astype(np.uint8), tmp_path / "shots.mp4"
    path.write_bytes(media_writer.encode_video(np.tile(levels[:, None, None, None], (1, 48, 48, 3)), 25.0))
    seen, encode = [], System.encode

    def watched(self, windows, *args):
        return encode(self, (seen.append(window) or window for window in windows), *args)

    monkeypatch.setattr(System, "encode", watched)

    def spans(**changes):
        seen.clear()
        next(takes_for(untrained, Video(path, path.name), dataclasses.replace(SETTINGS, **changes)))
        return [[sorted({round(int(frame.mean()) / 10) * 10 for frame in stream}) for stream in window] for window in seen]

    assert any(len(stream) > 1 for window in spans() for stream in window)
    assert {tuple(map(tuple, window)) for window in spans(respect_cuts=True)} == {((each,), (each,)) for each in (20, 90, 160)}


class Quietest(Ranker):
    """Prefers the quietest sound, and notes which windows it has seen."""

    def __init__(self):
        self.seen = []

    def embed(self, video):
        self.seen.append(int(video.mean()))
        return len(self.seen)

    def score(self, embeddings, starts, waveform):
        assert len(embeddings) == len(starts) == len(self.seen)
        return -float(np.abs(waveform).mean())


def test_the_best_of_several_is_kept_with_its_seed(untrained, videos):
    ranker = Quietest()
    system = dataclasses.replace(untrained, load_ranker=lambda: ranker)
    video = Video(videos / "long.mp4", "long.mp4")
    each = [take.waveform for take in takes_for(untrained, video, dataclasses.replace(SETTINGS, variants=6, seed=3))]
    takes = list(takes_for(system, video, dataclasses.replace(SETTINGS, variants=2, best_of=3, seed=3)))
    levels = [np.abs(waveform).mean() for waveform in each]
    assert [take.seed for take in takes] == [3 + int(np.argmin(levels[:3])), 6 + int(np.argmin(levels[3:]))]
    for take in takes:
        np.testing.assert_array_equal(take.waveform, each[take.seed - 3])
    np.testing.assert_allclose([reward for take in takes for reward in take.rewards], -np.array(levels), rtol=1e-5)
    assert len(ranker.seen) == 4 and ranker.seen == sorted(ranker.seen)  # each window once, ever brighter
    with pytest.raises(UserError, match="which this system does not have"):
        next(takes_for(untrained, video, dataclasses.replace(SETTINGS, best_of=2)))


def test_sounds_are_ranked_by_the_reward_of_the_run(smoke_run):
    ranker = loading.load_checkpoint(smoke_run / "avp_rpo").load_ranker()
    rng, clip = np.random.default_rng(0), TINY
    videos = rng.integers(0, 256, (2, clip.video_frames, clip.video_px, clip.video_px, 3), np.uint8)
    waveform = rng.uniform(-0.5, 0.5, 40 * clip.latent_samples + 100).astype(np.float32)  # two windows, the second cut short
    starts = (0, 20)
    parts = [waveform[start * clip.latent_samples :][: clip.audio_samples] for start in starts]
    mels = np.stack([mel.log_mel(media.fit_length(part, clip.audio_samples), clip.mel) for part in parts])
    config = replace(runs.avp_rpo("smoke"), data=dict(cache=str(smoke_run.parent / "scenes")))
    scorer = build.reward_scorer(Run.create(config, smoke_run))
    expected = scorer.score(scorer.embed_video(videos), mels[:, None])["reward"].mean()
    assert ranker.score([ranker.embed(video) for video in videos], starts, waveform) == pytest.approx(expected, abs=1e-4)


def test_the_record_has_the_directions(command, run_folder, videos, tmp_path):
    (tmp_path / "cues.csv").write_text("start,end,prompt\n0,0.5,knock\n")
    command([str(videos / "short.mp4"), f"--checkpoint={run_folder / 'base'}", f"--out={tmp_path}", "--loudness=-30", "--mix=1",
             f"--script={tmp_path / 'cues.csv'}", "--steps=1"])
    (row,) = rows(tmp_path / "generated.jsonl")
    assert (row["loudness_lufs"], row["mix"]) == (-30.0, 1.0)
    assert row["script"] == [{"start_sec": 0.0, "end_sec": 0.5, "prompt": "knock", "negative_prompt": ""}]


def test_files_of_one_name_in_two_folders_get_different_noise(untrained):
    here, there = untrained.noise(0, "a/clip.mp4", 40), untrained.noise(0, "b/clip.mp4", 40)
    assert np.abs(here - there).mean() > 0.5
    long = untrained.noise(0, "a/clip.mp4", 100)
    np.testing.assert_array_equal(long[:, :40], here)
    assert long.shape == (1, 100, 32) and abs(long.std() - 1) < 0.05
    assert abs(np.corrcoef(long[0, :40].ravel(), long[0, 40:80].ravel())[0, 1]) < 0.1


def test_windows_see_the_frames_of_their_own_time(untrained, videos, monkeypatch):
    """long.mp4 is 92 tokens of 0.08 s: windows start at tokens 0, 20, 40, 52, that is at frames 0, 40, 80 and 104."""
    seen, encode = [], System.encode

    def spy(self, windows, *options):
        seen.extend(windows)
        return encode(self, seen, *options)

    monkeypatch.setattr(System, "encode", spy)
    next(takes_for(untrained, Video(videos / "long.mp4", "long.mp4"), SETTINGS))
    brightness = np.array([[video[i].mean() for i in (0, -1)] for video, _ in seen])
    first = np.array([0, 40, 80, 104])
    np.testing.assert_allclose(brightness, 40 + np.stack([first, first + 79], axis=1), atol=2)
    np.testing.assert_allclose([clip_video[0].mean() for _, clip_video in seen], 40 + first, atol=2)

    seen.clear()
    next(takes_for(untrained, Video(videos / "short.mp4", "short.mp4"), SETTINGS))
    ((video, _),) = seen
    np.testing.assert_allclose(video[25:].mean(axis=(1, 2, 3)), 65, atol=2)  # the last frame is held


def test_files_of_other_lengths_compile_nothing_more(untrained, videos, finished):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    try:
        jax.jit(lambda x: x * 3.25 + 1)(1.0)
        assert compiled  # the listener works
        compiled.clear()
        for name in ("short", "sub/exact", "long"):
            next(takes_for(untrained, Video(videos / f"{name}.mp4", name), SETTINGS))
    finally:
        jax.monitoring.clear_event_listeners()
    assert compiled == []


def wandering_mel(frames: int) -> np.ndarray:
    return np.float32(0.3 * np.cumsum(np.random.default_rng(0).normal(size=(frames, 40)), axis=0) - 4)


def tone_mel(frames: int) -> np.ndarray:
    time = np.arange(frames * 320) / 16_000
    return mel.log_mel(np.float32(0.3 * np.sin(2 * np.pi * 440 * time)), TINY.mel)


@pytest.mark.parametrize("sound", [wandering_mel, tone_mel])
def test_a_waveform_in_pieces_is_the_waveform_in_one(untrained, sound):
    """Bit for bit, as context_frames is the vocoder's reach; with less than that the pieces would not fit."""
    log_mel = sound(700)
    whole = np.asarray(untrained._vocode(untrained.variables["codec"], log_mel[None]))[0]
    np.testing.assert_array_equal(untrained.vocode(log_mel), whole)

    class TooLittle(type(untrained.codec)):
        context_frames = 2

    codec = TooLittle(untrained.codec.clip, untrained.codec.vocoder_iterations)
    assert np.abs(dataclasses.replace(untrained, codec=codec).vocode(log_mel) - whole).max() > 1e-3


def test_a_stationary_tone_is_as_steady_at_the_joins_as_elsewhere(untrained):
    """Spectral flux and level, frame by frame, between the clip's ends."""
    waveform = untrained.vocode(tone_mel(700))
    frames = np.lib.stride_tricks.sliding_window_view(waveform, 1024)[::160]
    spectra = np.abs(np.fft.rfft(frames * np.hanning(1024)))
    flux = np.linalg.norm(np.diff(spectra, axis=0), axis=1)[10:-10]
    level = np.sqrt((frames**2).mean(axis=1))[10:-10]
    context, clip_frames = untrained.codec.context_frames, 160
    joins = context + clip_frames * np.arange(1, 4)
    near = np.unique([2 * join + offset - 10 for join in joins for offset in range(-6, 4)])
    assert flux[near].max() <= np.quantile(np.delete(flux, near), 0.99) * 1.05
    assert np.ptp(level[near]) <= np.ptp(np.delete(level, near)) * 1.05


def test_one_window_equals_the_networks_applied_directly(untrained):
    """Without windows, blending or context: `sampling.sample`, the codec's decoder and its vocoder."""
    rng = np.random.default_rng(0)
    window = rng.integers(0, 256, (80, 24, 24, 3), np.uint8), rng.integers(0, 256, (20, 24, 24, 3), np.uint8)
    conditions, noise = untrained.encode([window]), untrained.noise(0, "clip", 40)
    frames = [stream[None] for stream in window]
    clip, sync = untrained.encode_frames(untrained.variables["encoders"], *frames)
    np.testing.assert_allclose(conditions.clip, clip, atol=1e-4)
    np.testing.assert_allclose(conditions.sync, sync, atol=1e-4)

    latents = untrained.sample(conditions, noise, steps=2, guidance_scale=1.5)
    how = dict(steps=2, guidance_scale=1.5, guidance_rescale=untrained.rescale)
    sample = jax.jit(functools.partial(sampling.sample, untrained.generator, **how))
    direct = sample(untrained.variables["generator"], conditions, noise)
    unnormalised = untrained.generator.apply(untrained.variables["generator"], direct, method="unnormalize")
    np.testing.assert_allclose(latents, unnormalised[0], atol=1e-4)

    params = untrained.variables["codec"]
    log_mel = untrained.codec.apply(params, unnormalised, method="decode")
    vocode = jax.jit(functools.partial(untrained.codec.apply, method="vocode"))
    waveform = np.asarray(vocode(params, log_mel))[0]
    ours = untrained.decode(latents)
    assert ours.shape == waveform.shape == (51_200,)
    found, expected = (mel.log_mel(x, untrained.clip.mel) for x in (ours, waveform))
    assert np.abs(found - expected).mean() < 0.1 * np.abs(expected - np.asarray(log_mel)[0]).mean()


# Inputs that are refused before any work, or skipped


def test_nothing_is_overwritten_without_the_flag(untrained, videos, tmp_path):
    (tmp_path / "long.wav").write_text("precious")
    with pytest.raises(UserError, match=r"long\.wav exists already.*--overwrite"):
        generate(untrained, [videos], tmp_path, SETTINGS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.wav"]
    generate(untrained, [videos / "long.mp4"], tmp_path, dataclasses.replace(SETTINGS, overwrite=True))
    assert len(read(tmp_path / "long.wav")) == round(7.36 * 16_000)
    generate(untrained, [videos / "short.mp4"], tmp_path, SETTINGS)
    assert [row["outputs"][0] for row in rows(tmp_path / "generated.jsonl")] == ["long.wav", "short.wav"]


def test_an_input_is_never_replaced(untrained, videos):
    with pytest.raises(UserError, match=r"short\.mp4 is itself an input"):
        generate(untrained, [videos / "short.mp4"], videos, dataclasses.replace(SETTINGS, overwrite=True))


def test_two_videos_of_one_name_are_refused(untrained, videos, tmp_path):
    other = tmp_path / "other" / "short.mp4"
    other.parent.mkdir()
    other.write_bytes((videos / "short.mp4").read_bytes())
    with pytest.raises(UserError, match=r"would both be written to .*short\.wav"):
        generate(untrained, [videos / "short.mp4", other], tmp_path / "out", SETTINGS)


def test_results_inside_the_given_folder_are_not_inputs(videos, tmp_path):
    for name in ("a.mp4", "out/a.mp4", "deep/b.MKV", ".hidden.mp4", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found, _ = find_videos([tmp_path, tmp_path / "a.mp4"], tmp_path / "out")
    assert [video.name for video in found] == ["a.mp4", "deep/b.MKV"]
    found, _ = find_videos([tmp_path / "deep"], tmp_path)
    assert [video.name for video in found] == ["b.MKV"]


@pytest.fixture
def command(monkeypatch):
    """`main`, which leaves the compile cache and the terminal of the test session alone."""
    monkeypatch.setattr(runtime, "use_compile_cache", lambda: None)
    monkeypatch.setattr(logging, "plain_terminal", lambda: None)
    return command_line.main


def test_broken_files_are_skipped_with_a_sentence_each(command, run_folder, videos, tmp_path, capfd):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    good = (videos / "short.mp4").read_bytes()
    (folder / "good.mp4").write_bytes(good)
    (folder / "cut.mp4").write_bytes((videos / "long.mp4").read_bytes()[:-3000])
    (folder / "text.mp4").write_text("not a video\n" * 100)
    (folder / "empty.mp4").touch()
    with av.open(str(folder / "deaf.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16_000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    missing, document = folder / "missing.mp4", folder / "notes.txt"
    document.touch()
    arguments = [f"--checkpoint={run_folder / 'base'}", f"--out={out}", "--steps=1", "--verbosity=-1"]
    assert command([str(folder), str(missing), str(document), *arguments]) == 2

    skipped = {pathlib.Path(row["path"]).name: row["reason"] for row in rows(out / "skipped.jsonl")}
    assert sorted(skipped) == ["cut.mp4", "deaf.mp4", "empty.mp4", "missing.mp4", "notes.txt", "text.mp4"]
    assert all(name in reason and "\n" not in reason for name, reason in skipped.items())
    reported = capfd.readouterr().err.splitlines()
    assert sorted(reported) == sorted(f"skipped: {reason}" for reason in skipped.values())
    assert sorted(path.name for path in out.iterdir()) == ["generated.jsonl", "good.mp4", "good.wav", "skipped.jsonl"]


# Whatever goes wrong with one video, the others get their sound


@pytest.fixture
def batch(videos, tmp_path):
    """A folder of three videos, and an output folder."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.mp4").write_bytes((videos / "short.mp4").read_bytes())
    return folder, tmp_path / "out"


def listing(folder: pathlib.Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


WHOLE = ["a.mp4", "a.wav", "c.mp4", "c.wav", "generated.jsonl", "skipped.jsonl"]


@pytest.mark.parametrize("place, error, reason", [
    ("msg_jax.data.media.read_video", ValueError("31 is not a valid Type"), "b.mp4 gets no sound (31 is not a valid Type)"),
    ("msg_jax.data.media.probe", RuntimeError("one\ntwo"), "b.mp4 gets no sound (one)"),
    ("msg_jax.data.media.probe", KeyError(), "b.mp4 gets no sound (KeyError)"),
    ("msg_jax.data.media_writer.mux", OSError(28, "No space left on device"), "b.mp4 gets no sound (No space left on device)"),
    ("msg_jax.data.media_writer.write_audio", OSError(28, "No space left"), "b.wav gets no sound"),
])
def test_a_surprise_costs_one_video(untrained, batch, monkeypatch, place, error, reason):
    folder, out = batch
    module, _, name = place.rpartition(".")
    module = importlib.import_module(module)
    real = getattr(module, name)

    def surprise(path, *rest, **more):
        if pathlib.Path(path).stem == "b":
            raise error
        return real(path, *rest, **more)

    monkeypatch.setattr(module, name, surprise)
    made, (row,) = generate(untrained, [folder], out, dataclasses.replace(SETTINGS, steps=1))
    assert [row["outputs"][0] for row in made] == ["a.wav", "c.wav"] and listing(out) == WHOLE
    assert row["path"] == str(folder / "b.mp4") and row["reason"].endswith(reason.replace("b.wav", "b.mp4") + (
        " (No space left)" if name == "write_audio" else ""))
    assert rows(out / "skipped.jsonl") == [row] and rows(out / "generated.jsonl") == made


def test_a_full_disk_leaves_nothing_half_made(untrained, batch):
    """Files may grow to 30 kB: sounds and their videos fit, but not those of the long one."""
    folder, out = batch
    noise = np.random.default_rng(0).integers(0, 255, (26, 48, 48, 3), np.uint8)
    (folder / "b.mp4").write_bytes(media_writer.encode_video(noise, 25.0, np.zeros(16_000), 16_000))
    assert (folder / "b.mp4").stat().st_size > 60_000 > 2 * (folder / "a.mp4").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        made, (row,) = generate(untrained, [folder], out, dataclasses.replace(SETTINGS, steps=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(made) == 2 and listing(out) == WHOLE
    assert "b.mp4 cannot be written (File too large)" in row["reason"]


@pytest.mark.parametrize("name", ["generated.jsonl", "skipped.jsonl"])
def test_a_record_that_cannot_be_written(untrained, batch, monkeypatch, name):
    folder, out = batch
    write = logging.write_jsonl

    def full(path, rows):
        if path.name == name and (name == "skipped.jsonl" or "b.wav" in json.dumps(list(rows))):
            raise OSError(28, "No space left on device")
        write(path, rows)

    monkeypatch.setattr(logging, "write_jsonl", full)
    if name == "skipped.jsonl":
        with pytest.raises(UserError, match=r"skipped.jsonl cannot be written \(No space left on device\)"):
            generate(untrained, [folder], out, dataclasses.replace(SETTINGS, steps=1))
        return
    _, (row,) = generate(untrained, [folder], out, dataclasses.replace(SETTINGS, steps=1))
    assert "b.wav is not kept: " in row["reason"] and listing(out) == WHOLE
    assert [row["outputs"][0] for row in rows(out / "generated.jsonl")] == ["a.wav", "c.wav"]


def test_a_failure_keeps_or_drops_earlier_results_as_a_pair(untrained, batch, monkeypatch):
    folder, out = batch
    settings = dataclasses.replace(SETTINGS, steps=1, overwrite=True)
    generate(untrained, [folder], out, settings)
    old = (out / "b.mp4").read_bytes(), (out / "b.wav").read_bytes()

    def refuse(*_, **__):
        raise UserError("no")

    with monkeypatch.context() as patch:
        patch.setattr(media_writer, "mux", refuse)  # before anything is touched
        generate(untrained, [folder / "b.mp4"], out, settings)
    assert old == ((out / "b.mp4").read_bytes(), (out / "b.wav").read_bytes())
    assert [row["outputs"][0] for row in rows(out / "generated.jsonl")] == ["a.wav", "b.wav", "c.wav"]
    with monkeypatch.context() as patch:
        patch.setattr(media_writer, "write_audio", refuse)  # after the video was replaced
        generate(untrained, [folder / "b.mp4"], out, settings)
    assert listing(out) == WHOLE
    assert [row["outputs"][0] for row in rows(out / "generated.jsonl")] == ["a.wav", "c.wav"]


def test_an_output_that_cannot_be_made(untrained, batch):
    folder, out = batch
    (folder / "sub").mkdir()
    (folder / "b.mp4").rename(folder / "sub" / "b.mp4")
    (folder / "c.mp4").rename(folder / ("c" * 251 + ".mp4"))
    out.mkdir()
    (out / "sub").write_text("a file where the folder should be")
    made, skipped = generate(untrained, [folder], out, dataclasses.replace(SETTINGS, steps=1, variants=2))
    assert [row["outputs"][0] for row in made] == ["a_0.wav", "a_1.wav"]
    assert [pathlib.Path(row["path"]).name[0] for row in skipped] == ["c", "b"]
    assert "(File name too long)" in skipped[0]["reason"] and "b_0.mp4 cannot be written" in skipped[1]["reason"]
    assert listing(out) == ["a_0.mp4", "a_0.wav", "a_1.mp4", "a_1.wav", "generated.jsonl", "skipped.jsonl", "sub"]


def test_any_name_and_links(command, run_folder, videos, tmp_path, monkeypatch, capfd):
    folder, far = tmp_path / "in", tmp_path / "far"
    folder.mkdir()
    far.mkdir()
    names = [os.fsdecode(b"caf\xe9.mp4"), "\u9577" * 80 + ".mp4", "-26aVY_000030.mp4", "--0PQM4-hqg.mp4"]
    for name in names:
        (far / name).write_bytes((videos / "short.mp4").read_bytes())
    (folder / "link").symlink_to(far)
    (far / "loop").symlink_to(folder)
    flags = [f"--checkpoint={run_folder / 'base'}", "--steps=1", "--verbosity=-1"]
    assert command([str(folder), f"--out={tmp_path / 'out'}", *flags]) == 0
    assert listing(tmp_path / "out" / "link") == sorted([*names, *(name.replace(".mp4", ".wav") for name in names)])
    monkeypatch.chdir(far)
    assert command([*names, "-gone.mp4", "--out=../alone", *flags]) == 2
    found = [row["outputs"][0] for row in rows(tmp_path / "alone" / "generated.jsonl")]
    assert found == [name.replace(".mp4", ".wav") for name in names]
    assert capfd.readouterr().err == "skipped: -gone.mp4 does not exist; check the path\n"


def test_another_container(command, run_folder, videos, tmp_path, capfd, monkeypatch):
    flags = [f"--checkpoint={run_folder / 'base'}", f"--out={tmp_path}", "--steps=1", "--verbosity=-1"]
    assert command([str(videos / "short.mp4"), "--container=mkv", *flags]) == 0
    assert listing(tmp_path) == ["generated.jsonl", "short.mkv", "short.wav", "skipped.jsonl"]
    assert video_packets(tmp_path / "short.mkv") == video_packets(videos / "short.mp4")
    assert command([str(videos / "short.mp4"), "--container=webm", "--overwrite", *flags]) == 2
    assert "cannot hold h264 video; use a .mkv file (--container=mkv)" in capfd.readouterr().err
    with monkeypatch.context() as patch:  # before its sound is sampled
        patch.setattr("msg_jax.inference.generate.takes_for", lambda *_: pytest.fail("sampled in vain"))
        assert command([str(videos / "short.mp4"), "--container=webm", "--overwrite", *flags]) == 2
    assert tuple(f".{each}" for each in command_line.CONTAINERS) == tuple(stream_copy.FORMATS)


def test_what_a_copy_lacks_is_told_and_recorded(untrained, videos, tmp_path, capfd):
    with av.open(str(videos / "short.mp4")) as source, av.open(str(tmp_path / "two.mp4"), "w") as out:
        copies = [out.add_stream_from_template(source.streams[i], opaque=True) for i in (0, 1, 1)]
        for packet in source.demux():
            if packet.size:
                if packet.stream.type == "audio":
                    twin = av.Packet(bytes(packet))
                    twin.time_base, twin.pts, twin.dts, twin.stream = packet.time_base, packet.pts, packet.dts, copies[2]
                    out.mux(twin)
                packet.stream = copies[packet.stream.index]
                out.mux(packet)
    (row,), skipped = generate(untrained, [tmp_path / "two.mp4"], tmp_path / "out", dataclasses.replace(SETTINGS, steps=1))
    assert row["left_out"] == ["audio track 2 (aac, und)"] and skipped == []
    assert capfd.readouterr().err == f"left out of the copy of {tmp_path / 'two.mp4'}: audio track 2 (aac, und)\n"


def test_small_files_of_many_kinds(shared, untrained, tmp_path):
    made, skipped = generate(untrained, [shared / "cases"], tmp_path, dataclasses.replace(SETTINGS, steps=1))
    (row,) = skipped
    assert row["path"].endswith("drm_cbcs.mp4") and "is encrypted" in row["reason"]
    assert len(made) == 11
    for row in made:
        sound, video = (tmp_path / name for name in row["outputs"])
        expected = media.probe(row["input"]).duration_sec
        assert soundfile.info(sound).duration == pytest.approx(expected, abs=1e-3)
        assert media.probe(video).duration_sec == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("flags, sentence", [
    (["--steps=0"], "'0' is not a whole number of at least 1"),
    (["--variants=two"], "'two' is not a whole number"),
    (["--seed=-1"], "'-1' is not a whole number from 0"),
    (["--guidance=strong"], "invalid float value: 'strong'"),
    (["--audio_format=mp3"], "invalid choice: 'mp3'"),
    (["--mix=2"], "'2' is not a share from 0 to 1"),
    (["--loudness=nan"], "'nan' is not a loudness from -100 to 0 LUFS"),
    (["--start=3", "--end=2"], "--end=2 is not after --start=3"), (["--duration=3", "--end=2"], "--duration cuts the video"),
    (["--script=/nowhere.csv"], "--script=/nowhere.csv cannot be read"),
    (["--sed=1"], "unrecognized arguments: --sed=1"),
    (["--checkpoint=/nowhere"], "/nowhere has no run.json"),
])
def test_a_mistake_is_reported_in_one_sentence(command, videos, tmp_path, capfd, flags, sentence):
    with pytest.raises(SystemExit) as stopped:
        command([str(videos), f"--checkpoint={tmp_path}", f"--out={tmp_path / 'out'}", *flags])
    reported = capfd.readouterr().err
    assert stopped.value.code == 2 and reported.startswith("error: ") and sentence in reported
    assert len(reported.splitlines()) == 1


def test_required_flags_are_named(command, capfd):
    with pytest.raises(SystemExit):
        command(["clip.mp4"])
    assert "required: --out" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        command(["clip.mp4", "--out=out"])
    assert "one of the arguments --checkpoint --demo --weights is required" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        command(["clip.mp4", "--out=out", "--checkpoint=run", "--variant=small_16k"])
    assert "--variant chooses among the files of --weights" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        command(["--out=out", "--checkpoint=run"])
    assert "give a video or a folder of videos, or a --prompt" in capfd.readouterr().err


def test_a_prompt_needs_no_video(command, run_folder, tmp_path, capfd):
    flags = [f"--checkpoint={run_folder / 'base'}", f"--out={tmp_path}", "--prompt=A dog. barks/howls", "--verbosity=-1"]
    assert command([*flags, "--variants=2"]) == 0
    made = [read(tmp_path / f"A_dog_barks_howls_{i}.wav") for i in (0, 1)]
    assert [len(each) for each in made] == [51_200, 51_200] and np.abs(made[0] - made[1]).mean() > 1e-4
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".jsonl", ".jsonl", ".wav", ".wav"]
    with pytest.raises(SystemExit):
        command([*flags, "--variants=2"])
    assert "A_dog_barks_howls_0.wav exists already; pass --overwrite" in capfd.readouterr().err


def test_the_command_takes_its_defaults_from_the_run(command, run_folder, videos, tmp_path):
    arguments = [f"--checkpoint={run_folder / 'base'}", f"--out={tmp_path}", "--verbosity=-1"]
    assert command([str(videos / "short.mp4"), *arguments]) == 0
    (row,) = rows(tmp_path / "generated.jsonl")
    assert (row["steps"], row["guidance"], row["seed"]) == (2, 1.5, 0)


# Checkpoints


def test_a_checkpoint_of_one_of_several_seeds(tmp_path):
    run = make_run(tmp_path / "run", seeds=(0, 1))
    systems = [loading.load_checkpoint(run / f"seed_{seed}" / "base") for seed in (0, 1)]
    assert len({each.digest for each in systems}) == 2
    np.testing.assert_array_equal(*(each.variables["codec"]["params"]["mean"] for each in systems))


@pytest.fixture
def records(run_folder, tmp_path) -> pathlib.Path:
    """The run's records alone, for tests to damage."""
    for path in run_folder.glob("*/run.json"):
        (tmp_path / path.parent.name).mkdir()
        (tmp_path / path.parent.name / "run.json").write_text(path.read_text())
    return tmp_path


@pytest.mark.parametrize("stage, changes, sentence", [
    ("base", {"finished": False}, "base is not finished"),
    ("base", {"stage": "judge"}, "holds the stage judge, which is not a generator"),
    ("codec", {"digest": "0"}, "made from another codec than the one in"),
    ("encoders", {"finished": False}, "encoders is not finished"),
])
def test_an_unusable_checkpoint_is_refused_with_its_reason(records, stage, changes, sentence):
    path = records / stage / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=sentence):
        loading.load_checkpoint(records / "base")


def test_networks_of_another_version_are_refused(run_folder, records):
    for stage in ("base", "encoders", "codec"):
        (records / stage / "params").symlink_to(run_folder / stage / "params")
    path = records / "base" / "run.json"
    record = json.loads(path.read_text())
    record["config"]["base"]["hidden"] *= 2
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="has networks that differ from this version's"):
        loading.load_checkpoint(records / "base")
