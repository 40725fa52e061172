"""SIGKILL at random moments of the whole main job: rerun to the end, the same bits."""

import json
import random
import signal
import subprocess
import time

import pytest

from tests.conftest import ROOT, command, environment


def _digests(workdir):
    return {
        str(path.parent.relative_to(workdir)): json.loads(path.read_text())["digest"] for path in workdir.rglob("run.json")
    }


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_that_was_killed_ends_with_the_same_parameters(smoke_run, scenes_cache, tmp_path, kills):
    _kill(command(f"--workdir={tmp_path}", f"--config.data.cache={scenes_cache}"), tmp_path, kills)
    assert _digests(tmp_path) == _digests(smoke_run)


@pytest.mark.slow
def test_a_run_of_sound_and_pictures_that_was_killed_ends_with_the_same_parameters(scenes_cache, tmp_path):
    def job(workdir):
        return command(f"--workdir={workdir}", f"--config.data.cache={scenes_cache}", config="joint:smoke")

    subprocess.run(job(tmp_path / "whole"), env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    _kill(job(tmp_path / "killed"), tmp_path / "killed", 10)
    assert _digests(tmp_path / "killed") == _digests(tmp_path / "whole")


def _kill(arguments, workdir, kills):
    """Start a run again and again, kill it at a random moment `kills` times, and let it end."""
    seconds = random.Random(0)
    killed = 0
    for _ in range(kills):
        process = subprocess.Popen(arguments, env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL)
        _wait_for_work(workdir, process)
        time.sleep(seconds.uniform(0, 3))
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert killed > kills / 2, "the run ended before it was killed often enough"
    subprocess.run(arguments, env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL, check=True)


def _wait_for_work(workdir, process):
    """Return when the run has written something, so that kills fall into stages, not into imports."""
    before = _newest(workdir)
    while process.poll() is None and _newest(workdir) == before:
        time.sleep(0.1)


def _newest(workdir) -> float:
    times = []
    for path in workdir.rglob("*"):
        try:
            times.append(path.stat().st_mtime)
        except FileNotFoundError:  # a temporary file of the run
            continue
    return max(times, default=0.0)
