"""Programs compiled from shapes alone: for virtual CPUs, and for a TPU where libtpu is installed."""

import json
import math
import subprocess
import sys

import jax
import numpy as np
import pytest
from topologies import tpu

from msg_jax import compile as compiling
from msg_jax import networks
from msg_jax.config import tree
from msg_jax.errors import UserError
from msg_jax.infra import explain, topology
from msg_jax.infra import mesh as mesh_lib
from msg_jax.methods import ContinueFlow, Merge, SyncDpo
from msg_jax.recipes import presets, runs
from tests.conftest import ROOT, environment

CONFIG = runs.avp_rpo("smoke")


def programs(config=CONFIG, mesh=(1, 8, 1), **options):
    return compiling.Programs(tree.replace(config, mesh=mesh), jax.devices(), **options)


def test_a_step_fits_arithmetic():
    """Of N parameters a device holds weights, two moments and EMA, an eighth of each; its batch is one row of eight."""
    program = programs().trace("base")
    row = compiling.measure("base", program)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(program.state.params))
    assert row["memory"]["state"] == explain.device_bytes(program.state)
    assert row["memory"]["state"] == pytest.approx(16 * count / 8, rel=0.05)  # what does not divide is whole
    inputs = row["memory"]["arguments"] - row["memory"]["state"]
    clip = CONFIG.clip
    latents = clip.latent_tokens * clip.latent_channels
    assert inputs > 4 * latents and row["memory"]["peak"] > row["memory"]["arguments"] + row["memory"]["working"] / 2
    assert row["batch"] == 8 and row["devices"] == 8 and row["operations"] > 6 * count
    gathered = row["collectives"]["all-gather"][1]
    assert 4 * count / 2 < gathered < 4 * 3 * 4 * count
    assert row["wire"] > 0 and row["traffic"] > row["memory"]["arguments"] and "fits" not in row  # no table has a CPU
    text = "\n".join(compiling.show(row))
    assert f"{row['memory']['peak']:,} at the peak" in text and "all-gather" in text


def test_the_frozen_reference_is_whole_on_every_device():
    """A preference step has weights and two moments, and the reference: 12 N / 8 + 4 N bytes."""
    program = programs().trace("avp_rpo")
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(program.state.params))
    sizes = [leaf.size * 4 for leaf in jax.tree.leaves(program.traced.in_avals[0][3]["reference"]["params"])]
    assert sum(sizes) == 4 * count
    assert explain.device_bytes(program.state) == pytest.approx(12 * count / 8, rel=0.05)


def test_every_program_of_a_config_is_traced():
    arms = {"sync_dpo": SyncDpo(), "more": ContinueFlow(), "half": Merge(shares={"more": 0.5})}
    found = programs(tree.replace(CONFIG, arms=arms))
    assert found.names() == ["base", "sf_cavp", "sync_dpo", "more", "sampler", "reward_video", "reward_audio"]
    for name in found.names()[1:]:
        program = found.trace(name)
        assert (program.state is not None) == (name in ("sf_cavp", "sync_dpo", "more"))
        assert compiling.operations.count(program.traced.jaxpr) > 1e6


def test_widths_of_features_follow_from_shapes():
    assert programs()._dims() == dict(clip=64, sync=64, text=64)
    cavp = programs(tree.replace(CONFIG, encoders=dict(kind="sf_cavp")))._dims()
    assert cavp.keys() == {"clip", "sync", "text"} and cavp["clip"] > cavp["sync"] > 0  # the slow pathway is the wide one


def test_released_systems_have_programs_for_their_encoders_and_codec():
    config = tree.replace(presets.get("small_16k"), evaluate=dict(batch_size=8))
    found = programs(config)
    assert found.names() == ["base", "sf_cavp", "avp_rpo", "sampler", "clip_image", "clip_text", "synchformer", "codec_encode",
                             "codec_decode", "vocoder", "reward_video", "reward_audio"]
    text = found.trace("clip_text")
    # 24 blocks of width 1024 over 77 tokens: 12 width^2 products and attention, and the projection of the words
    by_hand = 24 * 2 * 77 * (12 * 1024**2 + 2 * 77 * 1024)
    assert compiling.operations.count(text.traced.jaxpr) == pytest.approx(by_hand, rel=0.03)
    assert text.mesh.size == 1 and found.trace("codec_decode").mesh.size == 8


def test_a_batch_replaces_that_of_the_stage():
    assert programs(batch=24).trace("base").batch == 24 and programs(batch=24).trace("reward_audio").batch == 24
    with pytest.raises(UserError, match=r"config.preference.batch_size=12 cannot be split over 8 devices"):
        programs(batch=12).trace("avp_rpo")
    with pytest.raises(UserError, match=r"config.mesh=\(1, 3, 1\) does not fit 8 devices"):
        programs(mesh=(1, 3, 1)).trace("base")
    with pytest.raises(UserError, match="--stage=paint is not a stage to compile: choose from base, sf_cavp, avp_rpo"):
        programs().trace("paint")


def test_the_shapes_are_those_of_a_real_batch(smoke_run, scenes_cache):
    """Batches of the features and frames that the smoke run has."""
    from msg_jax.data.features import FeatureSource
    from msg_jax.run.run import Run
    from msg_jax.stages.sf_cavp import SFCAVPTask
    from msg_jax.tasks.flow import FlowTask

    config = tree.replace(CONFIG, data=dict(cache=str(scenes_cache)))
    run = Run(smoke_run, config, mesh_lib.make_mesh((1, 1, 1), jax.devices()[:1]))
    source = FeatureSource(smoke_run / "extract" / "train")
    for task in (FlowTask(run, source, config.base, 0), SFCAVPTask(run)):
        batch = next(iter(task.batches()))
        batch.pop("id")
        found = {name: (shape.shape, shape.dtype) for name, shape in task.batch_shapes().items()}
        assert found == {name: (np.asarray(x).shape, np.asarray(x).dtype) for name, x in batch.items()}


def test_a_step_for_a_tpu():
    devices = tpu("v5e:2x2")
    with networks.compiling_for(devices[0].platform):
        assert networks.compute_dtype() == jax.numpy.bfloat16
        row = compiling.measure("base", compiling.Programs(tree.replace(CONFIG, mesh=(1, 4, 1)), list(devices)).trace("base"))
    assert networks.compute_dtype() == jax.numpy.float32
    assert row["fits"] and row["device"] == "TPU v5 lite" and row["predicted_sec"] == max(row["seconds"].values())
    assert row["seconds"]["compute"] == pytest.approx(row["operations"] / 4 / 197e12)
    assert row["bottleneck"] in row["seconds"] and 0 < row["predicted_mfu"] <= 1
    assert row["collectives"]["all-gather"][0] > 10 and row["padding"] > 0


def test_names_of_topologies():
    assert topology._parts("2*v5e:16x16") == (2, "v5e", "16x16")
    assert topology._parts("cuda:1x1x8") == (1, "cuda", "1x1x8") and topology._parts("cpu:8") == (1, "cpu", "8")
    for name in ("v5e", "tpu:4x4", "cuda:8", "cpu:2x2"):
        with pytest.raises(UserError, match=r"--topology=\S+ is none: use one like v5e:4x4"):
            topology._parts(name)
    with pytest.raises(UserError, match="this process has only 8 virtual CPU devices"):
        topology.devices("cpu:9")


@pytest.mark.parametrize(("name", "package"), [("v5e:4x4", "tpu"), ("cuda:1x1x8", "cuda")])
def test_a_missing_compiler_is_a_sentence(monkeypatch, name, package):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(topology.jax.config, "update", lambda *_: None)
    with pytest.raises(UserError, match=rf"--topology={name} needs .*: pip install 'msg_jax\[{package}\]'"):
        topology.prepare(name)


def run(*arguments):
    command = [sys.executable, "-m", "msg_jax.cli", "compile", *arguments]
    return subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True)


def test_the_command_prints_and_writes_json(tmp_path):
    done = run("--config=base:smoke", "--topology=cpu:2", "--mesh=1,2,1", "--stage=base", f"--json={tmp_path / 'rows.json'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("base on 2 x cpu (data 1, fsdp 2, tensor 1), batch 8")
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["preset"] == "smoke" and row["topology"] == "cpu:2" and row["devices"] == 2


def test_a_mistake_is_a_sentence_with_exit_code_2():
    done = run("--config=base:smoke", "--topology=v5e")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "error: --topology=v5e is none" in done.stderr
