"""tpu_pod.sh with a stand-in gcloud, and tpu_worker.sh in a copy of its folder."""

import os
import re
import shutil
import signal
import subprocess
import tarfile

import pytest

from tests.launch.stand_ins import LAUNCH, VARIABLES, ends

CREATE = "tpu-vm create"
DELETE = "tpu-vm delete"
ASK = "queued-resources create"
WITHDRAW = "queued-resources delete"


def _run(stand_ins, node=("",), request=("",), **variables):
    """Exit code, errors and the calls of gcloud that change something."""
    if not (stand_ins.folder / "tar").exists():
        stand_ins.script("tar", "#!/bin/sh\n")
    stand_ins.answering("gcloud", **{"tpu-vm describe": list(node), "queued-resources describe": list(request)})
    code, _, err = stand_ins.run("tpu_pod.sh", POLL_SEC="0.01", **variables)
    calls = [call.removeprefix("gcloud compute tpus ") for call in stand_ins.calls]
    return code, err, [" ".join(call.split()[:2]) for call in calls if not re.search("describe|ssh|scp", call)]


@pytest.mark.parametrize(("node", "expected"), [
    ("", [CREATE]), ("READY", []), ("PREEMPTED", [DELETE, CREATE]), ("TERMINATED", [DELETE, CREATE]),
])
def test_a_slice_is_made_reused_or_replaced(stand_ins, node, expected):
    assert _run(stand_ins, [node], SPOT="1") == (0, "", expected)
    assert all("--spot" in call for call in stand_ins.calls if CREATE in call)


def test_a_slice_that_is_not_ready_is_left_alone(stand_ins):
    code, err, calls = _run(stand_ins, ["STOPPED"])
    assert code == 2 and calls == [] and err == "error: the slice msg is STOPPED: wait until it is READY, or delete it.\n"


@pytest.mark.parametrize(("node", "request_", "expected"), [
    ("", ["", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"], [ASK]),
    ("", ["WAITING_FOR_RESOURCES", "ACTIVE"], []),
    ("READY", ["ACTIVE"], []),
    ("PREEMPTED", ["SUSPENDED", "ACTIVE"], [WITHDRAW, ASK]),
    ("PREEMPTED", ["ACTIVE", "PROVISIONING", "ACTIVE"], [WITHDRAW, ASK]),
    ("", ["SUSPENDED", "ACTIVE"], [WITHDRAW, ASK]),
    ("READY", ["SUSPENDING", "ACTIVE"], [WITHDRAW, ASK]),
    ("", ["FAILED", "ACTIVE"], [WITHDRAW, ASK]),
])
def test_a_queued_slice_is_waited_for(stand_ins, node, request_, expected):
    code, err, calls = _run(stand_ins, [node], request_, QUEUED="1", SPOT="1")
    assert (code, err, calls) == (0, "", expected)
    asked = [call for call in stand_ins.calls if ASK in call]
    assert all({"--node-id=msg", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"} <= set(call.split()) for call in asked)
    last = max(i for i, call in enumerate(stand_ins.calls) if "queued-resources describe" in call)
    assert all(i > last for i, call in enumerate(stand_ins.calls) if "scp" in call)


def test_a_request_that_fails_and_a_slice_without_a_request_are_errors(stand_ins):
    code, err, _ = _run(stand_ins, request=["", "PROVISIONING", "FAILED"], QUEUED="1")
    assert code == 2 and err.startswith("error: the request for msg is FAILED")
    code, err, _ = _run(stand_ins, ["READY"], QUEUED="1")
    assert code == 2 and err.startswith("error: the slice msg was made without a queue: unset QUEUED")


@pytest.mark.parametrize(("queued", "expected"), [("0", [DELETE]), ("1", [WITHDRAW])])
def test_delete_deletes_even_after_a_failure(stand_ins, queued, expected):
    stand_ins.script("tar", "#!/bin/sh\nexit 1\n")
    code, _, calls = _run(stand_ins, ["READY"], ["ACTIVE"], DELETE="1", QUEUED=queued)
    assert code == 1 and calls == expected


def test_before_the_slice_is_deleted_its_processes_save(stand_ins):
    """They go on when the connection is lost; what they still write to a bucket would be cut off."""
    _run(stand_ins, ["READY"], DELETE="1", BUCKET="bucket")
    *_, save, delete = stand_ins.calls
    assert "ssh msg" in save and "--worker=all" in save and save.endswith("tpu_worker.sh stop; }") and DELETE in delete


@pytest.mark.parametrize("place", [["--config=base"], ["--workdir=runs/mine"], ["--config=base", "--workdir", "runs/mine"]])
def test_delete_is_refused_where_the_run_would_go_with_the_slice(stand_ins, place):
    code, _, err = stand_ins.run("tpu_pod.sh", "--dry_run", "--", *place, DELETE="1")
    assert code == 2 and err == ("error: DELETE=1 deletes the disk of the slice, and the run with it: set BUCKET, or give "
                                 "--workdir=gs://BUCKET/FOLDER or a folder on a shared disk.\n")

@pytest.mark.parametrize(("accelerator", "version"), [
    ("v5litepod-256", "v2-alpha-tpuv5-lite"), ("v5p-128", "v2-alpha-tpuv5"), ("v6e-256", "v2-alpha-tpuv6e"),
    ("v4-32", "tpu-ubuntu2204-base"),
])
def test_the_software_version_is_that_of_the_accelerator(stand_ins, accelerator, version):
    first = stand_ins.run("tpu_pod.sh", "--dry_run", "--", "--config=base", ACCELERATOR=accelerator)[1].splitlines()[0]
    assert f"--version={version}" in first.split()
    assert "--version=mine" in stand_ins.run("tpu_pod.sh", "--dry_run", "--", "--x", ACCELERATOR=accelerator, VERSION="mine")[1]


def test_an_unknown_accelerator_needs_a_version(stand_ins):
    code, _, err = stand_ins.run("tpu_pod.sh", "--dry_run", "--", "--config=base", ACCELERATOR="v9-8")
    assert code == 2 and err == "error: VERSION is not set: the TPU software version of v9-8.\n"


def test_ctrl_c_stops_the_processes_on_all_workers(stand_ins):
    """The command goes on until they have saved their work, and ends with their exit code."""
    stand_ins.script("gcloud", """#!/usr/bin/env bash
echo "$*" >> "$FOLDER/calls"
case "$*" in
  *describe*) echo READY ;;
  *"tpu_worker.sh run"*)
    echo >> "$FOLDER/started"
    until [[ -f "$FOLDER/stopped" ]]; do sleep 0.02; done
    exit 143
    ;;
  *"=msg_jax/launch/tpu_worker.sh stop") touch "$FOLDER/stopped" ;;
esac
""")
    stand_ins.script("tar", "#!/bin/sh\n")
    launcher = stand_ins.start("tpu_pod.sh")
    stand_ins.wait("started")
    launcher.send_signal(signal.SIGINT)
    assert ends(launcher) == (143, "", "Stopping the processes on all workers.\n")
    assert "--worker=all" in stand_ins.calls[-1].split() and stand_ins.calls[-1].endswith("tpu_worker.sh stop")


def test_the_project_is_copied_without_what_belongs_to_this_machine(stand_ins, tmp_path):
    stand_ins.script("gcloud", '#!/bin/sh\necho READY\n[ "$4" != scp ] || cp "$5" "$FOLDER/archive"\n')
    project = tmp_path / "project"
    shutil.copytree(LAUNCH, project / "launch")
    for name in ("msg_jax/runs/x", "runs/x", ".venv/x", ".git/x", ".cache/x", "data_cache/x", "logs/x", "out/x"):
        (project / name).parent.mkdir(parents=True)
        (project / name).touch()
    command = [str(project / "launch/tpu_pod.sh"), "--", "--config=base"]
    subprocess.run(command, env=stand_ins.environment(**VARIABLES["tpu_pod.sh"]), check=True, capture_output=True)
    with tarfile.open(stand_ins.folder / "archive") as archive:
        names = {path.name.removeprefix("./") for path in archive if path.isfile()}
    assert names == {f"launch/{path.name}" for path in LAUNCH.iterdir()} | {"msg_jax/runs/x"}


# The worker's part

_METADATA = """#!/usr/bin/env bash
[[ "$*" == *"Metadata-Flavor: Google"*instance/attributes/agent-worker-number ]] && echo 3
"""
_WORK = """
trap 'echo saved; exit 143' TERM
echo hello
echo oops >&2
[[ -z "$1" ]] || exit "$1"
while sleep 0.02; do :; done
"""
_COMMAND = ["bash", "-c", _WORK, "msg_jax.main"]


@pytest.fixture
def log(tmp_path):
    return tmp_path / "msg_jax/msg_jax.log"


@pytest.fixture
def worker(stand_ins, tmp_path):
    """A function that starts tpu_worker.sh in a folder of its own, with SIGHUP even where this process ignores it."""
    (tmp_path / "msg_jax/launch").mkdir(parents=True)
    script = shutil.copy(LAUNCH / "tpu_worker.sh", tmp_path / "msg_jax/launch")
    stand_ins.script("curl", _METADATA)
    return lambda *arguments, start_new_session=False, **variables: subprocess.Popen(
        [script, *arguments], env=stand_ins.environment(**variables), start_new_session=start_new_session,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )


def test_output_has_the_number_of_its_worker(worker, tmp_path):
    code, out, err = ends(worker("run", *_COMMAND, "5"))
    assert (code, out, err) == (5, "[worker 3] hello\n[worker 3] oops\n", "")
    assert not (tmp_path / "msg_jax/msg_jax.pid").exists()


def test_stop_ends_the_command_after_it_has_saved(worker, stand_ins, log):
    running = worker("run", *_COMMAND, "")
    stand_ins.wait(log, 2)
    assert ends(worker("stop")) == (0, "", "")
    assert ends(running) == (143, "[worker 3] hello\n[worker 3] oops\n[worker 3] saved\n", "")


def test_stop_kills_a_command_that_does_not_end(worker, stand_ins, log):
    stubborn = worker("run", "bash", "-c", 'trap "" TERM; echo hello; while sleep 0.02; do :; done', "msg_jax.main")
    stand_ins.wait(log)
    assert ends(worker("stop", STOP_SEC="0")) == (0, "", "")
    assert ends(stubborn)[0] == 137


def test_stop_leaves_other_processes_alone(worker, tmp_path):
    """The number of a process of an earlier run may be another's now."""
    assert ends(worker("stop")) == (0, "", "")
    other = subprocess.Popen(["sleep", "20"])
    (tmp_path / "msg_jax/msg_jax.pid").write_text(str(other.pid))
    assert ends(worker("stop")) == (0, "", "")
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_lost_connection_does_not_end_the_command(worker, stand_ins, log):
    running = worker("run", *_COMMAND, "", start_new_session=True)
    stand_ins.wait(log, 2)
    os.killpg(running.pid, signal.SIGHUP)
    ends(running)
    assert "saved" not in log.read_text()
    assert ends(worker("stop")) == (0, "", "")
    assert log.read_text().endswith("saved\n")


def test_install_brings_an_interpreter_and_mounts_the_bucket_as_on_gke(worker, stand_ins, tmp_path):
    stand_ins.script("curl", """#!/usr/bin/env bash
[[ "$*" == *https://astral.sh/uv/*/install.sh ]] && echo 'mkdir -p "$HOME/.local/bin" && cp "$FOLDER/uv" "$HOME/.local/bin/uv"'
""")
    stand_ins.answering("uv", "gcsfuse", "sudo", "findmnt", findmnt=["other"])
    assert ends(worker("install", BUCKET="bucket")) == (0, "", "")
    venv, packages, _, folder, owner, mount = stand_ins.calls
    assert re.match(r"uv venv .*--python=3\.12 \.venv$", venv) and packages.endswith("--editable .[tpu,gcs]")
    assert folder == "sudo mkdir -p /workdir" and owner.endswith("/workdir")
    options = re.search(r"^MOUNT_OPTIONS=(.*)", (LAUNCH / "common.sh").read_text(), re.MULTILINE)[1].split(",")
    flags = [re.sub(r":(?=\w+$)", "=", option).replace(":", "-") for option in options]
    assert mount == " ".join(["gcsfuse", *(f"--{flag}" for flag in flags), "bucket /workdir"])
    assert (tmp_path / "msg_jax/runs").readlink().as_posix() == "/workdir"


@pytest.mark.parametrize(("bucket", "looks"), [("", 0), ("bucket", 1)])
def test_install_mounts_nothing_without_a_bucket_or_twice(worker, stand_ins, bucket, looks):
    stand_ins.answering("uv", "gcsfuse", "sudo", "findmnt", findmnt=["bucket"])
    (stand_ins.folder / ".local/bin").mkdir(parents=True)
    shutil.copy(stand_ins.folder / "uv", stand_ins.folder / ".local/bin/uv")
    assert ends(worker("install", BUCKET=bucket)) == (0, "", "")
    assert [call.split()[0] for call in stand_ins.calls] == ["uv", "uv", *["findmnt"] * looks]
