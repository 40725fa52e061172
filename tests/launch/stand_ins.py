"""Stand-ins for the commands that launchers call: they record their calls and answer from a script."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from tests.conftest import ROOT

LAUNCH = ROOT / "launch"
ARGUMENTS = ["--config=configs/base.py:tiny", "--workdir=/a folder/it's", "--config.mesh=(1,2,1)"]
VARIABLES = {
    "gpu.sh": dict(GPUS="8"),
    "local_processes.sh": dict(PROCESSES="2"),
    "slurm.sbatch": dict(PROJECT=str(ROOT)),
    "tpu_pod.sh": dict(TPU_NAME="msg", ZONE="us-west4-a", ACCELERATOR="v5litepod-256", WORKERS="64", DEVICES="256"),
    "gke.sh": dict(JOB="msg", IMAGE="image", BUCKET="bucket", TPU_ACCELERATOR="tpu-v5-lite-podslice", TPU_TOPOLOGY="16x16",
                   HOSTS="64", CHIPS_PER_HOST="4"),
    "xpk.sh": dict(CLUSTER="c", PROJECT="p", ZONE="z", WORKLOAD="w", TPU_TYPE="v5litepod-256", HOSTS="64", DEVICES="256",
                   BUCKET="bucket", BASE_IMAGE="image"),
}

_ANSWERING = """#!{python} -IS
import json, os, re, sys
folder = os.environ["FOLDER"] + "/"
call = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
with open(folder + "calls", "a") as file:
    file.write(call.replace("\\n", " ") + "\\n")
with open(folder + "answers.json") as file:
    answers = json.load(file)
for pattern, replies in answers.items():
    if re.search(pattern, call):
        print(replies.pop(0) if len(replies) > 1 else replies[0], end="")
        break
with open(folder + "answers.json", "w") as file:
    json.dump(answers, file)
"""
# A task of a run: it works until a SIGTERM, then saves and exits with code 143; or it ends at once with code $END.
TASK = """#!/usr/bin/env bash
trap 'echo saved >> "$FOLDER/saved"; exit 143' TERM
echo started >> "$FOLDER/started"
[[ -z "${END:-}" ]] || exit "$END"
while sleep 0.02; do :; done
"""


class StandIns:
    """A folder of stand-ins that comes first in PATH."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def script(self, name: str, text: str) -> pathlib.Path:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def answering(self, *names: str, **answers: list[str]) -> None:
        """Commands that print the next answer of the first pattern which their call matches; the last one stays."""
        (self.folder / "answers.json").write_text(json.dumps(answers))
        for name in names:
            self.script(name, _ANSWERING.format(python=sys.executable))

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def environment(self, **variables: str) -> dict[str, str]:
        path = f"{self.folder}:{os.environ['PATH']}"
        return {"PATH": path, "HOME": str(self.folder), "FOLDER": str(self.folder), "PYTHON": "python"} | variables

    def start(self, name: str, *arguments: str, **variables: str) -> subprocess.Popen:
        """Start a launcher, which gets SIGINT even where this process ignores it."""
        return subprocess.Popen(
            [str(LAUNCH / name), *(arguments or ("--", *ARGUMENTS))], env=self.environment(**VARIABLES[name] | variables),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, name: str, *arguments: str, **variables: str) -> tuple[int, str, str]:
        """Exit code, output and errors of a launcher."""
        return ends(self.start(name, *arguments, **variables))

    def wait(self, name: str | pathlib.Path, lines: int = 1) -> None:
        """Wait until a file, in this folder if its path is relative, has so many lines."""
        deadline = time.monotonic() + 20
        while not (path := self.folder / name).exists() or len(path.read_text().splitlines()) < lines:
            assert time.monotonic() < deadline, f"{name} has fewer than {lines} lines"
            time.sleep(0.02)


def ends(process: subprocess.Popen) -> tuple[int, str, str]:
    """Wait for a process; return its exit code, output and errors."""
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err
