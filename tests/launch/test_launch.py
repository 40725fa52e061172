"""Launchers pass shellcheck, name missing variables, and pass arguments on unchanged. Nothing is launched."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from tests.conftest import ROOT

LAUNCH = ROOT / "launch"
ARGUMENTS = ["--config=configs/base.py:tiny", "--workdir=/a folder/it's", "--config.mesh=(1,2,1)"]
VARIABLES = {
    "gpu.sh": dict(GPUS="8"),
    "local_processes.sh": dict(PROCESSES="2"),
    "slurm.sbatch": dict(PROJECT=str(ROOT)),
    "tpu_pod.sh": dict(TPU_NAME="msg", ZONE="us-west4-a", ACCELERATOR="v5litepod-256", WORKERS="64", DEVICES="256"),
    "gke.sh": dict(JOB="msg", IMAGE="image", TPU_ACCELERATOR="tpu-v5-lite-podslice", TPU_TOPOLOGY="16x16", HOSTS="64",
                   CHIPS_PER_HOST="4"),
    "xpk.sh": dict(CLUSTER="c", PROJECT="p", ZONE="z", WORKLOAD="w", TPU_TYPE="v5litepod-256", HOSTS="64", DEVICES="256",
                   BASE_IMAGE="image"),
}


def _launch(name, variables, *arguments):
    environment = {"PATH": os.environ["PATH"], "HOME": "/nowhere", "PYTHON": "python"} | variables
    return subprocess.run([str(LAUNCH / name), *arguments], env=environment, capture_output=True, text=True)


def test_every_launcher_is_tested():
    assert {path.name for path in LAUNCH.glob("*.s*") if path.name != "common.sh"} == set(VARIABLES)


def test_shellcheck():
    shellcheck = pathlib.Path(sys.executable).parent / "shellcheck"
    assert shellcheck.exists(), "requirements-dev.txt brings it"
    files = [str(path) for path in sorted(LAUNCH.glob("*.s*"))]
    done = subprocess.run([str(shellcheck), "-x", *files], capture_output=True, text=True, cwd=LAUNCH)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", VARIABLES)
def test_a_dry_run_shows_the_arguments_as_they_were_given(name):
    done = _launch(name, VARIABLES[name], "--dry_run", "--", *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    if name == "gke.sh":
        found = re.search(r"args: \[(.*)\]", done.stdout).group(1)
        assert [part[1:-1].replace("''", "'") for part in re.findall(r"'(?:[^']|'')*'", found)] == ARGUMENTS
        assert "@" not in done.stdout and "value: '256'" in done.stdout
        return
    last = shlex.split(done.stdout.strip().splitlines()[-1])
    if name in ("tpu_pod.sh", "xpk.sh"):  # the command line is one argument
        last = shlex.split(next(part for part in last if part.startswith("--command=")).removeprefix("--command="))
    assert last[-3:] == ARGUMENTS
    assert last[last.index("-m") + 1] == "msg_jax.main"


@pytest.mark.parametrize(("name", "missing"), [(name, each) for name, all_ in VARIABLES.items() for each in all_])
def test_a_missing_variable_is_named_in_one_line(name, missing):
    given = {key: value for key, value in VARIABLES[name].items() if key != missing}
    done = _launch(name, given, "--dry_run", "--", *ARGUMENTS)
    assert done.returncode and len(done.stderr.strip().splitlines()) == 1
    assert f"{missing}: is not set" in done.stderr or f"{missing} is not set" in done.stderr


@pytest.mark.parametrize("arguments", [["--dry_run"], ["--dry_run", "--"], ["--colour", "--", "--config=x"]])
def test_arguments_come_after_two_dashes(arguments):
    done = _launch("gpu.sh", VARIABLES["gpu.sh"], *arguments)
    assert done.returncode == 2 and "--" in done.stderr and len(done.stderr.splitlines()) == 1
