"""Folders of released files: their contents, the cache of conversions, and error messages."""

import dataclasses
import os
import pathlib
import re

import jax
import numpy as np
import pytest
from released_files import toy_tensors, write_released
from torch_files import write_state

from msg_jax.convert import bundle, from_torch
from msg_jax.convert.bundle import VARIANTS, VOCABULARY, Bundle, Variant, choose, find
from msg_jax.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setitem(VARIANTS, "toy", write_released(tmp_path))
    return tmp_path


def test_published_names_and_sizes_are_those_of_the_document():
    text = (pathlib.Path(__file__).parents[2] / bundle.DOCUMENT).read_text()
    rows = re.findall(r"^\| `(\S+)` \|.*\| ([\d.]+) (MB|GB) \|", text, re.MULTILINE)
    published = {name: float(size) * {"MB": 1e6, "GB": 1e9}[unit] for name, size, unit in rows}
    files = {network.file for variant in VARIANTS.values() for network in variant.networks.values()} | {VOCABULARY}
    evaluation = {file for each in bundle.EVALUATION.values() for file in each}
    files |= {file for file in evaluation if file.name != "24-01-04T16-39-21.pt"}  # its published size is unknown
    assert published.keys() == {file.name for file in files}
    for file in files:
        assert published[file.name] == pytest.approx(file.bytes, rel=0.04), file.name
    sums = dict(re.findall(r"^\| `(\S+)` \| .* \| `([0-9a-f]{32})` \|", text, re.MULTILINE))
    assert sums == {file.name: file.md5 for file in files if file.md5}
    assert dict(re.findall(r"^\| `(\S+)` \| `([0-9a-f]{64})` \|", text, re.MULTILINE)) == {
        file.name: file.sha256 for file in files if file.sha256
    }
    revisions = set(re.findall(r"^\| `[^|]* \| `([0-9a-f]{40})` \|", text, re.MULTILINE))
    assert revisions == {found[0] for file in files if (found := re.search(r"[0-9a-f]{40}", file.address))}


@pytest.mark.parametrize("name", list(VARIANTS))
def test_networks_of_a_variant_fit_together(name):
    clip, networks = VARIANTS[name].clip, {kind: each.config for kind, each in VARIANTS[name].networks.items()}
    generator = networks["mmdit"]
    assert networks["vae"].bands == networks["bigvgan"].bands == clip.mel.bands
    assert np.prod(networks["bigvgan"].upsample_rates) == clip.mel.hop_samples
    assert networks["vae"].latent_channels == generator.latent_channels == clip.latent_channels
    assert (generator.latent_tokens, generator.sync_tokens) == (clip.latent_tokens, clip.sync_tokens)
    assert (generator.clip_dim, generator.text_dim) == (networks["clip"].features, networks["clip"].text_width)
    assert generator.text_tokens == networks["clip"].context_tokens
    assert generator.sync_dim == networks["synchformer"].width
    assert networks["synchformer"].segment_frames == clip.sync_segment_frames
    assert (networks["synchformer"].image_px, networks["clip"].image_px) == (clip.video_px, clip.clip_video_px)
    assert "44k" in name or clip.audio_hz == 16_000


def test_missing_files_are_listed_in_one_sentence(tmp_path):
    (tmp_path / "mmaudio_small_16k.pth").touch()
    with pytest.raises(UserError) as error:
        Bundle(tmp_path, VARIANTS["small_16k"])
    for part in (
        "lacks 5 of the files", "mmaudio_small_16k.pth (has only 0 MB of 630 MB)",
        "open_clip_pytorch_model.bin (4.0 GB)", "synchformer_state_dict.pth (951 MB)", "v1-16.pth (687 MB)",
        "best_netG.pt (450 MB)", "docs/WEIGHTS.md", f"`msg-jax weights get small_16k --to={tmp_path}` fetches them",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_choose_infers_the_variant_from_the_files(tmp_path):
    for absent in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"contains none of mmaudio_small_16k\.pth|does not exist"):
            choose(absent)
    (tmp_path / "weights").mkdir()
    file = tmp_path / "weights" / "mmaudio_small_44k.pth"
    file.touch()
    assert choose(file) == (tmp_path / "weights", "small_44k")
    assert choose(tmp_path) == (tmp_path, "small_44k")
    assert choose(tmp_path, "large_44k_v2") == (tmp_path, "large_44k_v2")
    (tmp_path / "mmaudio_medium_44k.pth").touch()
    with pytest.raises(UserError, match=r"contains 2 variants \(small_44k, medium_44k\): choose one with --variant"):
        choose(tmp_path)
    with pytest.raises(UserError, match="--variant=tiny is unknown"):
        choose(tmp_path, "tiny")
    with pytest.raises(UserError, match="is not the variant medium_44k"):
        choose(file, "medium_44k")
    other = file.with_name("mine.pth")
    other.touch()
    with pytest.raises(UserError, match=r"mine\.pth is not named like"):
        choose(other)


def test_files_may_be_in_ext_weights_beside_the_folder(folder):
    """As in a checkout of MMAudio, whose MM-DiT is given."""
    weights, others = folder / "weights", folder / "ext_weights"
    weights.mkdir(), others.mkdir()
    for path in list(folder.glob("*.*")):
        path.rename((weights if path.name.startswith("mmaudio") else others) / path.name)
    found, variant = choose(weights / "mmaudio_toy_16k.pth")
    assert (found, variant) == (weights, "toy")
    paths = Bundle(found, VARIANTS[variant]).paths
    assert {kind: path.parent.name for kind, path in paths.items()} == {
        kind: "weights" if kind == "mmdit" else "ext_weights" for kind in paths
    }
    assert Bundle(folder, VARIANTS["toy"]).paths["vae"].samefile(paths["vae"])  # also from the root of the checkout


def test_files_that_are_missing_come_from_the_cache_of_hugging_face(folder, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(folder / "home"))
    toy = VARIANTS["toy"]
    file = dataclasses.replace(toy.networks["bigvgan"].file, repositories=("nvidia/vocoder",))
    networks = {**toy.networks, "bigvgan": dataclasses.replace(toy.networks["bigvgan"], file=file)}
    snapshot = folder / "home" / "hub" / "models--nvidia--vocoder" / "snapshots" / "3f2a"
    snapshot.mkdir(parents=True)
    (folder / file.name).rename(snapshot / file.name)
    assert Bundle(folder, Variant(toy.clip, networks)).paths["bigvgan"] == snapshot / file.name
    with pytest.raises(UserError, match="lacks 1 of the files"):
        Bundle(folder, toy)


def test_files_may_be_in_subfolders(folder):
    for name in ("weights", "ext_weights"):
        (folder / name).mkdir()
    (folder / "mmaudio_toy_16k.pth").rename(folder / "weights" / "mmaudio_toy_16k.pth")
    (folder / "v1-16.pth").rename(folder / "ext_weights" / "v1-16.pth")
    released = Bundle(folder, VARIANTS["toy"])
    assert released.paths["mmdit"].parent.name == "weights" and released.paths["vae"].parent.name == "ext_weights"
    assert find(folder, VOCABULARY) == folder / VOCABULARY.name


def test_load_returns_what_convert_wrote(folder):
    tensors, variant = toy_tensors()
    released = Bundle(folder, variant)
    for kind, network in variant.networks.items():
        assert not released.is_converted(kind)
        released.convert(kind)
        assert released.is_converted(kind)
        expected = from_torch(kind, tensors[network.file.name], network.config)[1]
        jax.tree.map(np.testing.assert_array_equal, released.load(kind), expected)
    part = released.load("vae", "params/decoder/", "buffers/")
    assert part["params"].keys() == {"decoder"} and part["buffers"].keys() == {"mel_mean", "mel_std"}
    assert sorted(path.name for path in (folder / "converted").iterdir()) == [
        "best_netG.safetensors", "mmaudio_toy_16k.safetensors", "open_clip_pytorch_model.safetensors",
        "synchformer_state_dict.safetensors", "v1-16.safetensors",
    ]


def test_a_changed_file_or_table_is_converted_again(folder, monkeypatch):
    tensors, variant = toy_tensors()
    Bundle(folder, variant).convert("vae")
    released = Bundle(folder, variant)
    assert released.is_converted("vae")
    before = released.sha256("vae")
    tensors["v1-16.pth"]["data_mean"] = tensors["v1-16.pth"]["data_mean"] + 1
    write_state(folder / "v1-16.pth", tensors["v1-16.pth"])
    os.utime(folder / "v1-16.pth", (1, 1))
    assert not released.is_converted("vae")
    released.convert("vae")
    assert released.sha256("vae") != before
    monkeypatch.setattr(bundle.inspect, "getsource", lambda module: "another table")
    assert not released.is_converted("vae")
    (folder / "converted" / "v1-16.safetensors").write_bytes(b"half")
    assert not released.is_converted("vae")


def test_convert_names_tensors_that_do_not_fit_and_writes_nothing(folder):
    tensors, variant = toy_tensors()
    state = tensors["mmaudio_toy_16k.pth"]
    state["latent_avg"] = state.pop("latent_mean")
    del state["final_layer.conv.bias"]
    state["t_embed.mlp.0.weight"] = state["t_embed.mlp.0.weight"].T
    write_state(folder / "mmaudio_toy_16k.pth", state)
    with pytest.raises(UserError) as error:
        Bundle(folder, variant).convert("mmdit")
    for part in (
        str(folder / "mmaudio_toy_16k.pth"), "latent_avg is unknown", "latent_mean is missing",
        "final_layer.conv.bias is missing", "t_embed.mlp.0.weight gives (16, 256) instead of (256, 16)",
    ):
        assert part in str(error.value)
    assert not (folder / "converted").exists()


def test_convert_into_a_folder_that_is_not_writable(folder):
    (folder / "converted").touch()
    with pytest.raises(UserError, match=r"cannot be written .*a writable folder"):
        Bundle(folder, VARIANTS["toy"]).convert("vae")
