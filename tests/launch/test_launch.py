"""What holds for every launcher: shellcheck, dry runs, missing variables, signals. Nothing is launched."""

import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

import pytest

from tests.conftest import ROOT
from tests.launch.stand_ins import ARGUMENTS, LAUNCH, TASK, VARIABLES, ends


def test_every_launcher_is_tested():
    others = {"common.sh", "tpu_worker.sh", "accelerator_check.sh"}
    assert {path.name for path in LAUNCH.glob("*.s*")} - others == set(VARIABLES)


def test_shellcheck():
    shellcheck = pathlib.Path(sys.executable).parent / "shellcheck"
    assert shellcheck.exists(), "requirements-dev.txt brings it"
    files = [str(path) for path in sorted(LAUNCH.glob("*.s*"))]
    done = subprocess.run([str(shellcheck), "-x", *files], capture_output=True, text=True, cwd=LAUNCH)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", VARIABLES)
def test_a_dry_run_shows_the_arguments_as_they_were_given(name, stand_ins):
    code, out, err = stand_ins.run(name, "--dry_run", "--", *ARGUMENTS)
    assert code == 0, err
    if name == "gke.sh":
        found = re.search(r"args: \[(.*)\]", out).group(1)
        assert [part[1:-1].replace("''", "'") for part in re.findall(r"'(?:[^']|'')*'", found)] == ARGUMENTS
        assert "@" not in out and "value: '256'" in out
        return
    last = shlex.split(out.strip().splitlines()[-1])
    if name in ("tpu_pod.sh", "xpk.sh"):  # the command line is one argument
        last = shlex.split(next(part for part in last if part.startswith("--command=")).removeprefix("--command="))
    assert last[-3:] == ARGUMENTS
    assert last[last.index("-m") + 1] == "msg_jax.main"


@pytest.mark.parametrize(("name", "missing"), [(name, each) for name, all_ in VARIABLES.items() for each in all_])
def test_a_missing_variable_is_named_in_one_line(name, missing, stand_ins):
    code, _, err = stand_ins.run(name, "--dry_run", "--", *ARGUMENTS, **{missing: ""})
    assert code and len(err.strip().splitlines()) == 1
    assert f"{missing}: is not set" in err or f"{missing} is not set" in err


@pytest.mark.parametrize("arguments", [["--dry_run"], ["--dry_run", "--"], ["--colour", "--", "--config=x"]])
def test_arguments_come_after_two_dashes(arguments, stand_ins):
    code, _, err = stand_ins.run("gpu.sh", *arguments)
    assert code == 2 and "--" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(("name", "folder"), [
    ("gke.sh", "/workdir/msg"), ("xpk.sh", "/workdir/w"), ("tpu_pod.sh", "/workdir/msg"),
])
@pytest.mark.parametrize("given", [[], ["--workdir=/workdir/mine"], ["--workdir", "/workdir/mine"]])
def test_the_workdir_is_on_the_bucket(name, folder, given, stand_ins):
    _, out, _ = stand_ins.run(name, "--dry_run", "--", "--config=base", *given, BUCKET="bucket")
    assert (f"--workdir={folder}" in out) == (not given)


def test_without_a_bucket_a_tpu_slice_has_no_default_workdir(stand_ins):
    assert "--workdir" not in stand_ins.run("tpu_pod.sh", "--dry_run", "--", "--config=base")[1]


@pytest.mark.parametrize("given", [["--workdir=s3://bucket/run"], ["--config=base", "-workdir=https://bucket/run"]])
def test_a_url_is_refused_as_workdir(given, stand_ins):
    code, _, err = stand_ins.run("gke.sh", "--dry_run", "--", *given)
    assert code == 2 and err == f"error: {given[-1]} is no folder and not on gs://.\n"


@pytest.mark.parametrize("name", ["gke.sh", "xpk.sh", "tpu_pod.sh"])
def test_a_workdir_in_a_bucket_is_passed_on(name, stand_ins):
    code, out, _ = stand_ins.run(name, "--dry_run", "--", "--config=base", "--workdir=gs://bucket/run", BUCKET="bucket")
    assert code == 0 and out.count("workdir=") == out.count("--workdir=gs://bucket/run") == 1


@pytest.mark.parametrize(("name", "tasks"), [("gpu.sh", 1), ("local_processes.sh", 2)])
def test_sigterm_reaches_the_processes(name, tasks, stand_ins):
    launcher = stand_ins.start(name, PYTHON=str(stand_ins.script("task", TASK)), LOGS=str(stand_ins.folder / "logs"))
    stand_ins.wait("started", tasks)
    launcher.terminate()
    assert ends(launcher) == (143, "", "")
    stand_ins.wait("saved", tasks)


def test_a_process_that_fails_is_named(stand_ins):
    task = str(stand_ins.script("task", TASK))
    code, _, err = stand_ins.run("local_processes.sh", PYTHON=task, LOGS=str(stand_ins.folder / "logs"), END="2")
    assert code == 2 and "error: process 1 exited with code 2; see its output." in err


def test_the_image_leaves_out_what_git_ignores_and_installs_an_extra_that_exists():
    ignored, left_out = (
        {line.removeprefix("**/").rstrip("/") for line in (ROOT / name).read_text().splitlines() if line and line[0] != "#"}
        for name in (".gitignore", ".dockerignore")
    )
    assert ignored | {".git"} <= left_out
    steps = (ROOT / "Dockerfile").read_text()
    assert 'RUN pip install --no-cache-dir ".[$EXTRA,gcs]"' in steps
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert re.search(r"ARG EXTRA=(\w+)", steps)[1] == "tpu" and {"tpu", "cuda", "gcs"} <= set(extras)
