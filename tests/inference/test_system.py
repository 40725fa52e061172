"""Released weights, at toy widths, from a folder of files to a sound."""

import dataclasses
import json
import pathlib
import shutil
import weakref

import numpy as np
import pytest
from released_files import CLIP, VOCABULARY, write_released
import soundfile

from msg_jax import generate as command_line
from msg_jax.convert.bundle import VARIANTS, Bundle
from msg_jax.convert.tokenizer import Tokenizer
from msg_jax.data import media_writer
from msg_jax.errors import UserError
from msg_jax.inference import frozen
from msg_jax.inference.feature_cache import FeatureCache
from msg_jax.inference.frozen import LazyWeights
from msg_jax.inference.generate import Settings, Video, generate, takes_for
from msg_jax.inference.loading import load_weights
from msg_jax.inference.system import System
from msg_jax.infra import logging, memory, progress, runtime
from msg_jax.models.clip_encoder import CLIP as CLIPModel
from msg_jax.models.synchformer import Synchformer

SETTINGS = Settings(steps=2, guidance_scale=4.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("released")
        patch.setitem(VARIANTS, "toy_16k", write_released(folder))
        yield folder


@pytest.fixture(scope="module")
def released(folder):
    return load_weights(folder)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """1.6 s of noise, wider than high: three windows."""
    path = tmp_path_factory.mktemp("video") / "noise.mp4"
    pictures = np.random.default_rng(0).integers(0, 256, (40, 36, 64, 3), np.uint8)
    path.write_bytes(media_writer.encode_video(pictures, 25.0, np.zeros(16_000), 16_000))
    return path


@pytest.fixture
def loads(monkeypatch):
    """The networks that are read from disk, in order; memory is too small to keep any loaded."""
    seen, load = [], Bundle.load

    def spy(self, kind, *prefixes):
        seen.append((kind, *prefixes))
        return load(self, kind, *prefixes)

    monkeypatch.setattr(Bundle, "load", spy)
    monkeypatch.setattr(memory, "available_bytes", lambda: 0)
    return seen


def test_networks_are_loaded_in_turn_and_freed(loads, folder, video):
    """Each once for a video, whatever its windows and variants; never two stages at a time."""
    system = load_weights(folder)
    assert loads == []
    settings = dataclasses.replace(SETTINGS, variants=2, prompt="dog")
    sounds = [take.waveform for take in takes_for(system, Video(video, "noise.mp4"), settings)]
    assert loads == [
        ("clip", "params/image/"), ("synchformer",), ("clip", "params/text/"), ("mmdit",),
        ("vae", "params/decoder/", "buffers/"), ("bigvgan",),
    ]
    assert [sound.shape for sound in sounds] == [(25_600,)] * 2
    assert np.abs(sounds[0] - sounds[1]).max() > 1e-4


def test_lazy_weights_free_an_entry_before_they_load_the_next():
    class Tree(dict):
        """A dict that weak references can watch."""

    watched, alive = [], []

    def load():
        alive.append(1 + sum(tree() is not None for tree in watched))
        tree = Tree()
        watched.append(weakref.ref(tree))
        return tree

    for keep_all, expected in ((False, [1, 1, 1, 1]), (True, [1, 2, 3])):
        alive.clear(), watched.clear()
        trees = LazyWeights(dict.fromkeys("abc", load), keep_all)
        for name in "aabbca":
            trees[name]
        assert alive == expected


def test_weights_that_fit_in_memory_stay_loaded(folder, loads, video, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 10**12)
    system = load_weights(folder)
    for _ in range(2):
        next(takes_for(system, Video(video, "noise.mp4"), SETTINGS))
    assert len(loads) == 5 and len(set(loads)) == 5


def test_equal_items_are_encoded_once():
    seen = []

    def network(variables, items):
        seen.append(np.asarray(items))
        return items.sum((1, 2)) * variables

    items = np.array([3, 3, 1, 3, 2, 2, 0, 5])[:, None, None] * np.ones((2, 4), int)
    found = frozen._per_item(network, 10, items.reshape(2, 4, 2, 4), 2, None)
    np.testing.assert_array_equal(found, 10 * items.sum((1, 2)).reshape(2, 4))
    np.testing.assert_array_equal(np.concatenate(seen)[:5, 0, 0], [3, 1, 2, 0, 5])
    assert len(seen) == 3


ENCODERS = {("clip", "params/image/"), ("synchformer",)}


def test_features_are_kept_between_calls(folder, loads, video, tmp_path):
    """Whatever the prompt, the seed and the name of the file; not with other frames."""
    cache = dataclasses.replace(SETTINGS, cache=tmp_path / "kept")

    def sound(settings, path=video, **changes):
        loads.clear()
        ((made, *_),) = takes_for(load_weights(folder), Video(path, "noise.mp4"), dataclasses.replace(settings, **changes))
        return made, bool(ENCODERS & set(loads))

    first, encoded = sound(cache)
    plain, _ = sound(SETTINGS)
    np.testing.assert_array_equal(first, plain)
    assert encoded and len(list((tmp_path / "kept").iterdir())) == 3
    copy = shutil.copy(video, tmp_path / "another.mp4")
    for changes in ({}, {"seed": 1}, {"prompt": "dog"}, {"path": pathlib.Path(copy)}):
        again, encoded = sound(cache, **changes)
        assert not encoded and np.array_equal(again, first) == (not {"seed", "prompt"} & changes.keys())
    for changes in ({"frame_choice": "mmaudio_inference"}, {"duration_sec": 0.8}):
        assert sound(cache, **changes)[1]
    assert load_weights(folder).encoders == load_weights(folder, precision="float32").encoders
    assert load_weights(folder).encoders != load_weights(folder, precision="bfloat16").encoders


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "another window's", "a folder"])
def test_a_damaged_entry_is_made_again(damage, tmp_path):
    cache, windows = FeatureCache(tmp_path, "weights"), [[np.full((3, 4, 4, 3), i, np.uint8)] for i in range(2)]
    features = (np.ones((3, 4), np.float32), np.full((5, 2), 2, np.float32))
    key, other = map(cache.key, windows)
    assert key != other and key != FeatureCache(tmp_path, "others").key(windows[0])
    for each in (key, other):
        cache.write(each, features)
    path = tmp_path / f"{key}.npz"
    content = path.read_bytes()
    if damage == "a folder":
        path.unlink(), path.mkdir()
    else:
        i = content.index(features[0].tobytes())
        path.write_bytes({
            "cut": content[:-30], "empty": b"", "flipped": content[:i] + b"\1" + content[i + 1 :],
            "another window's": (tmp_path / f"{other}.npz").read_bytes(),
        }[damage])
    assert cache.read(key) is None and cache.read(other) is not None
    cache.write(key, features)  # a folder in its place is only reported
    if damage != "a folder":
        np.testing.assert_array_equal(cache.read(key)[1], features[1])


def test_bfloat16_of_the_encoders_is_near_float32(released, folder):
    rng = np.random.default_rng(0)
    window = [rng.integers(0, 256, (count, px, px, 3), np.uint8) for count, px in ((24, CLIP.video_px), (7, 28))]
    half = load_weights(folder, precision="bfloat16")
    assert half.variables["encoders"]["clip"]["params"]["image"]["block0"]["qkv"]["dense"]["kernel"].dtype == "bfloat16"
    for name in ("clip", "sync"):
        exact, rounded = (getattr(system.encode([window]), name) for system in (released, half))
        assert 1e-5 < np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < 1e-2


def test_conditions_are_those_of_the_published_recipe(released, folder):
    """CLIP features of every frame, Synchformer features of 16 frames every 8, text features of every token."""
    rng = np.random.default_rng(0)
    video, clip_video = (
        rng.integers(0, 256, (count, px, px, 3), np.uint8) for count, px in ((24, CLIP.video_px), (7, 28))
    )
    conditions = released.encode([(video, clip_video)], "dog cat")
    variant = VARIANTS["toy_16k"]
    files = Bundle(folder, variant)
    clip_model = CLIPModel(variant.networks["clip"].config)
    pictures = clip_model.apply(files.load("clip"), clip_video / 127.5 - 1, method="encode_image")
    np.testing.assert_allclose(conditions.clip[0], pictures, atol=1e-5)
    segments = np.stack([video[0:16], video[8:24]])[None] / 127.5 - 1
    sync = Synchformer(variant.networks["synchformer"].config).apply(files.load("synchformer"), segments)
    np.testing.assert_allclose(conditions.sync[0], sync.reshape(16, -1), atol=1e-4)
    tokens = Tokenizer(files.vocabulary, clip_model.config.vocabulary)("dog cat")
    text = clip_model.apply(files.load("clip"), tokens[None], method="encode_text")
    np.testing.assert_allclose(conditions.text, text, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(conditions.text, axis=-1), 1, atol=1e-5)

    without_prompt = released.encode([(video, clip_video)])
    np.testing.assert_array_equal(without_prompt.text[0], files.load("mmdit")["buffers"]["empty_text"])
    np.testing.assert_array_equal(without_prompt.clip, conditions.clip)


def test_the_codec_gets_unnormalised_latents(released, folder):
    files = Bundle(folder, VARIANTS["toy_16k"])
    buffers = files.load("mmdit")["buffers"]
    conditions = released.encode([(np.zeros((24, 32, 32, 3), np.uint8), np.zeros((7, 28, 28, 3), np.uint8))])
    noise = released.noise(0, "x", 30)
    latents = released.sample(conditions, noise, steps=1, guidance_scale=1.0)
    velocity = released.generator.apply(files.load("mmdit"), noise, np.zeros(1), conditions)
    expected = (noise + velocity)[0] * buffers["latent_std"] + buffers["latent_mean"]
    np.testing.assert_allclose(latents, expected, rtol=1e-4, atol=1e-4)


def test_clip_frames_are_whole_and_sync_frames_are_cropped(released, tmp_path, monkeypatch):
    """The left quarter of a wide frame is white: only the semantic encoder sees it."""
    pictures = np.zeros((30, 64, 128, 3), np.uint8)
    pictures[:, :, :32] = 255
    path = tmp_path / "wide.mp4"
    path.write_bytes(media_writer.encode_video(pictures, 25.0, np.zeros(16_000), 16_000))
    seen, encode = [], System.encode

    def spy(self, windows, *options):
        seen.extend(windows)
        return encode(self, seen, *options)

    monkeypatch.setattr(System, "encode", spy)
    next(takes_for(released, Video(path, "wide.mp4"), SETTINGS))
    video, clip_video = seen[0]
    assert video.shape == (24, 32, 32, 3) and clip_video.shape == (7, 28, 28, 3)
    assert clip_video[:, :, :6].mean() > 240 and clip_video[:, :, 9:].mean() < 10
    assert video.mean() < 10


@pytest.fixture
def command(monkeypatch):
    monkeypatch.setattr(runtime, "use_compile_cache", lambda: None)
    monkeypatch.setattr(logging, "plain_terminal", lambda: None)
    return command_line.main


def test_the_command_makes_a_sound(command, folder, video, tmp_path):
    """From the folder and from the MM-DiT's file; without flags it is 25 steps at a guidance of 4.5."""
    flags = [str(video), "--verbosity=-1"]
    assert command([*flags, f"--weights={folder}", f"--out={tmp_path / 'a'}"]) == 0
    (row,) = [json.loads(line) for line in (tmp_path / "a" / "generated.jsonl").read_text().splitlines()]
    assert (row["steps"], row["guidance"]) == (25, 4.5) and len(row["checkpoint"]) == 64
    sound, hz = soundfile.read(tmp_path / "a" / "noise.wav")
    assert hz == 16_000 and len(sound) == 25_600 and np.abs(sound).max() > 1e-3
    file = folder / "mmaudio_toy_16k.pth"
    assert command([*flags, f"--weights={file}", "--variant=toy_16k", f"--out={tmp_path / 'b'}"]) == 0
    np.testing.assert_array_equal(soundfile.read(tmp_path / "b" / "noise.wav")[0], sound)


def test_prompts_need_the_vocabulary(released, folder, video, tmp_path):
    settings = dataclasses.replace(SETTINGS, prompt="dog")
    generate(released, [video], tmp_path / "with", settings)
    (folder / VOCABULARY.name).rename(folder / "hidden")
    try:
        for prompts in ({"prompt": "dog"}, {"prompt": "", "negative_prompt": "cat"}):
            with pytest.raises(UserError, match=r"lacks bpe_simple_vocab_16e6\.txt\.gz .* docs/WEIGHTS\.md"):
                generate(load_weights(folder), [video], tmp_path / "out", dataclasses.replace(settings, **prompts))
        made, skipped = generate(load_weights(folder), [video], tmp_path / "out", SETTINGS)
    finally:
        (folder / "hidden").rename(folder / VOCABULARY.name)
    assert len(made) == 1 and skipped == []
    prompted, plain = (soundfile.read(tmp_path / name / "noise.wav")[0] for name in ("with", "out"))
    assert np.abs(prompted - plain).max() > 1e-4


def test_a_waveform_in_pieces_is_the_waveform_in_one(released):
    log_mel = np.random.default_rng(0).normal(size=(300, 80)).astype(np.float32)
    whole = released._vocode(released.variables["codec"], log_mel[None])[0]
    np.testing.assert_allclose(released.vocode(log_mel), whole, atol=1e-5)


def make_video(path, frames, hz=25.0):
    pictures = np.random.default_rng(0).integers(0, 256, (frames, 36, 64, 3), np.uint8)
    path.write_bytes(media_writer.encode_video(pictures, hz, np.zeros(16_000), 16_000))
    return path


@pytest.mark.parametrize("frames, duration_sec, window_sec", [
    (16, None, 0.64), (40, 0.64, 0.64), (10, None, 0.64), (40, None, 0.96),
])
def test_the_networks_run_at_the_length_of_the_video(released, tmp_path, monkeypatch, frames, duration_sec, window_sec):
    """A short video, its first seconds, one below a segment of 0.64 s, and one that takes several windows."""
    lengths, sample = [], System.sample

    def spy(self, conditions, noise, **options):
        lengths.append((self.clip.duration_sec, noise.shape[1], conditions.clip.shape[:2], conditions.sync.shape[1]))
        return sample(self, conditions, noise, **options)

    monkeypatch.setattr(System, "sample", spy)
    path = make_video(tmp_path / "short.mp4", frames)
    settings = dataclasses.replace(SETTINGS, duration_sec=duration_sec)
    ((sound, *_),) = takes_for(released, Video(path, "short.mp4"), settings)
    heard = min(frames / 25, duration_sec or np.inf)
    assert sound.shape == (round(16_000 * heard),) and np.abs(sound).max() > 1e-3
    spec = dataclasses.replace(CLIP, duration_sec=window_sec)
    windows = 3 if heard > window_sec else 1
    tokens = 50 if windows > 1 else spec.latent_tokens
    assert lengths == [(window_sec, tokens, (windows, spec.clip_video_frames), spec.sync_tokens)]


def test_noise_is_that_of_the_whole_clip_and_can_be_given(released, video, tmp_path, command, folder, capfd):
    path = make_video(tmp_path / "short.mp4", 16)
    ((plain, *_),) = takes_for(released, Video(path, "short.mp4"), SETTINGS)
    noise = released.noise(0, "short.mp4", 30)[:, :20]
    np.save(tmp_path / "noise.npy", noise[0])
    flags = [str(path), f"--weights={folder}", "--steps=2", "--verbosity=-1", f"--noise={tmp_path / 'noise.npy'}"]
    assert command([*flags, f"--out={tmp_path / 'out'}"]) == 0
    np.testing.assert_allclose(soundfile.read(tmp_path / "out" / "short.wav")[0], plain, atol=1 / 32768)
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "generated.jsonl").read_text().splitlines()]
    assert row["seed"] is None
    assert command([*flags, f"--out={tmp_path / 'two'}", "--variants=2"]) == 2
    assert "the noise has the shape (1, 20, 6), but short.mp4 needs (2, 20, 6); give another --noise" in capfd.readouterr().err


def test_the_sound_of_one_window_begins_and_ends_as_the_vocoder_pads_it(released):
    log_mel = np.random.default_rng(0).normal(size=(CLIP.mel_frames, 80)).astype(np.float32)
    whole = released._vocode(released.variables["codec"], log_mel[None])[0]
    np.testing.assert_array_equal(released.vocode(log_mel), whole)


def test_progress_moves_through_encoders_steps_and_decoder(released, tmp_path):
    moves = []
    with progress.listening(moves.append):
        next(takes_for(released, Video(make_video(tmp_path / "short.mp4", 16), "short.mp4"), SETTINGS))
    assert moves == sorted(moves) and moves[-1] == 1
    assert sum(move < 0.4 for move in moves) >= 3 and {0.6, 0.8} <= {round(move, 6) for move in moves}
    assert sum(0.8 < move <= 1 for move in moves) >= 2
