"""A system in one file, and the one that comes with the package."""

import hashlib
import json
import pathlib

import jax
import numpy as np
import pytest
from safetensors import safe_open

from msg_jax import generate as command_line
from msg_jax.clip import TINY
from msg_jax.data import media
from msg_jax.errors import UserError
from msg_jax.inference import demo, loading
from msg_jax.inference.packed import load_packed, pack


def test_a_packed_system_is_the_checkpoint_s_in_half_precision(smoke_run, tmp_path):
    theirs = loading.load_checkpoint(smoke_run / "avp_rpo")
    pack(smoke_run / "avp_rpo", tmp_path / "one.safetensors")
    system = load_packed(tmp_path / "one.safetensors")
    for name in ("encoders", "codec", "generator"):
        ours, original = (jax.tree.map(np.asarray, each.variables[name]) for each in (system, theirs))
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.float16(b) if b.dtype == np.float32 else b),
                     ours, dict(original))
    assert (system.steps, system.guidance_scale, system.clip) == (theirs.steps, theirs.guidance_scale, theirs.clip)
    with safe_open(tmp_path / "one.safetensors", "np") as file:
        assert json.loads(file.metadata()["msg_jax"])["config"]["data"]["cache"] != str(smoke_run.parent / "scenes")
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is not a packed system"):
        load_packed(tmp_path / "other.safetensors")


def test_the_demo_computes_in_the_precision_that_is_asked_for():
    dtypes = [str(np.dtype(demo.load_demo(precision).generator.dtype)) for precision in ("float32", "bfloat16")]
    assert dtypes == ["float32", "bfloat16"]


def test_the_demo_needs_nothing_but_a_folder(tmp_path):
    content = demo.CHECKPOINT.read_bytes()
    page = pathlib.Path(__file__).parents[2] / "docs" / "USING.md"
    assert len(content) < 8e6 and hashlib.sha256(content).hexdigest() in page.read_text()
    assert command_line.main(["--demo", f"--out={tmp_path}", "--verbosity=-1"]) == 0
    (row,) = [json.loads(line) for line in (tmp_path / "generated.jsonl").read_text().splitlines()]
    assert (row["steps"], row["guidance"]) == (2, 1.0)
    made = media.read_audio(tmp_path / "scene.mp4", 0.0, TINY.audio_samples, TINY.audio_hz)
    assert media.probe(tmp_path / "scene.mp4").width == 240 and np.abs(made).max() > 0.05
    with pytest.raises(UserError, match="no audio stream"):
        media.read_audio(tmp_path / "silent" / "scene.mp4", 0.0, 16, TINY.audio_hz)
