"""The package as pip installs it: the wheel in a clean environment, outside the checkout."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import numpy as np
import pytest

from msg_jax.data import media_writer
from tests.conftest import ROOT, environment

UV = pathlib.Path(sys.executable).with_name("uv")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> pathlib.Path:
    """The `bin` folder of a clean environment that has the wheel and its dependencies."""
    if not UV.exists():
        pytest.skip("uv is not in this environment: `make test` installs it")
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"  # setuptools leaves its build folders in the source
    tracked = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:
        if name.startswith("msg_jax/") or name in ("pyproject.toml", "README.md", "LICENSE"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    subprocess.run([UV, "build", "--quiet", "--wheel", "--out-dir", folder, source], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder / "clean"], check=True)
    python = folder / "clean" / "bin" / "python"
    subprocess.run([UV, "pip", "install", "--quiet", "--python", python, wheel], check=True)
    return python.parent


def _run(installed, folder, *arguments):
    clean = {name: value for name, value in environment().items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = [installed / "msg-jax", *arguments]
    return subprocess.run(command, env=clean, cwd=folder, capture_output=True, text=True)


def test_the_wheel_trains_and_generates_outside_the_checkout(installed, smoke_run, tmp_path):
    """The same digests as from the checkout. Its reward, judge and arms are taken over: they are most of the time."""
    made_here = ("codec", "encoders", "extract", "base", "evaluate")
    shutil.copytree(smoke_run, tmp_path / "runs/smoke", ignore=shutil.ignore_patterns(*made_here, "report", "results.json"))
    done = _run(installed, tmp_path, "train", "--config=avp_rpo:smoke", f"--config.data.cache={smoke_run.parent / 'scenes'}")
    assert done.returncode == 0, done.stderr
    for stage in made_here:
        ours, theirs = (json.loads((run / stage / "run.json").read_text()) for run in (tmp_path / "runs/smoke", smoke_run))
        assert ours["digest"] == theirs["digest"], stage
    assert (tmp_path / "runs/smoke/report/index.html").exists()

    frames = np.zeros((40, 48, 48, 3), np.uint8)
    (tmp_path / "clip.mp4").write_bytes(media_writer.encode_video(frames, 25.0, np.zeros(16_000, np.float32), 16_000))
    done = _run(installed, tmp_path, "generate", "clip.mp4", "--checkpoint=runs/smoke/avp_rpo", "--out=out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/clip.wav").exists() and (tmp_path / "out/clip.mp4").exists()


def test_the_command_names_its_commands_and_refuses_others(installed, tmp_path):
    assert "msg-jax doctor" in _run(installed, tmp_path, "--help").stdout
    done = _run(installed, tmp_path, "paint")
    assert done.returncode == 2 and done.stderr.startswith("error: 'paint' is not a command")
    done = _run(installed, tmp_path, "evaluate", "--workdir=w")
    assert done.returncode == 2 and "config.generated is empty" in done.stderr


def test_the_wheel_is_typed_and_carries_its_licence(installed):
    package = next((installed.parent / "lib").rglob("site-packages/msg_jax"))
    assert (package / "py.typed").exists() and (package / "evaluation/report.html.j2").exists()
    assert next(package.parent.glob("msg_jax-*.dist-info/licenses/LICENSE")).read_text().strip().startswith("Apache License")
    assert not {"chex", "librosa", "torch", "tensorflow"} & set(os.listdir(package.parent))


def test_requirements_are_those_of_the_package_and_two_for_tests():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = re.findall(r"^[a-z][^\s#]*", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    extra = [line for line in lines if line not in project["dependencies"]]
    assert set(project["dependencies"]) <= set(lines)
    assert [re.match(r"\w+", line)[0] for line in extra] == ["chex", "librosa"]
    assert set(extra) <= set(project["optional-dependencies"]["dev"])
