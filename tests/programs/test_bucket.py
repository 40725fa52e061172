"""A run in a bucket: killed and continued, it ends with the bits of the run on a disk."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from msg_jax import storage
from tests.conftest import ROOT, environment

KILLS = 4


@pytest.mark.slow
def test_a_run_in_a_bucket_that_was_killed_has_the_bits_of_one_on_a_disk(bucket, smoke_run, scenes_cache):
    """Preparation, trainings, extraction and evaluation of the base model; `smoke_run` made the same stages and its arms."""
    root, seconds = storage.path(f"{bucket}/smoke"), random.Random(0)
    arguments = [sys.executable, "-m", "msg_jax.main", "--config=configs/base.py:smoke", f"--workdir={root}",
                 f"--config.data.cache={scenes_cache}"]
    killed = 0
    for _ in range(KILLS):
        process = subprocess.Popen(arguments, env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL)
        before = len(storage.files_below(root))
        while process.poll() is None and len(storage.files_below(root)) < before + 20:
            time.sleep(0.2)
        time.sleep(seconds.uniform(0, 2))
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert killed == KILLS, "the run ended before it was killed often enough"
    subprocess.run(arguments, env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL, check=True)

    records = [path for path in storage.files_below(root) if path.name == "run.json"]
    assert {"base", "extract", "evaluate", "sf_cavp"} < {path.parent.name for path in records}
    for path in records:
        theirs = json.loads((smoke_run / path.relative_to(root)).read_text())
        if path.parent.name != "evaluate":  # with the arms, it has more rows
            assert json.loads(path.read_text())["digest"] == theirs["digest"], path
    here, there = (json.loads((folder / "results.json").read_text())["rows"] for folder in (smoke_run, root))
    assert there == [row for row in here if row["system"] in {each["system"] for each in there}]
    assert (root / "report" / "index.html").read_text().startswith("<!doctype html>")
