"""Extraction by Beam's local runner writes the shards of the stage, bit for bit. Needs the extra `beam`."""

import filecmp
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT, environment


def test_beam_writes_the_shards_of_the_stage(smoke_run, scenes_cache, tmp_path):
    pytest.importorskip("apache_beam")
    for stage in ("prepare", "codec", "encoders"):
        shutil.copytree(smoke_run / stage, tmp_path / stage)
    theirs, ours = smoke_run / "extract", tmp_path / "extract"
    (ours / "train").mkdir(parents=True)
    for suffix in ("array_record", "ids.json"):  # one shard is there already
        shutil.copy(theirs / f"train/shard-00001.{suffix}", ours / "train")
    command = [sys.executable, "-m", "msg_jax.programs.extract_beam", "--config=configs/avp_rpo.py:smoke",
               f"--workdir={tmp_path}", f"--config.data.cache={scenes_cache}"]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=True)
    assert "train: 64 clips written, 0 left out" in done.stderr
    for shard in theirs.glob("*/*.array_record"):
        assert filecmp.cmp(shard, ours / shard.relative_to(theirs), shallow=False)
