"""benchmarks/accelerator.py compares the device with the CPU, predicts and measures, and keeps its budget."""

import json
import subprocess
import sys
import time

import pytest

from benchmarks import accelerator
from tests.conftest import ROOT, environment

VARIANT = accelerator.toy()


def test_parity_of_a_device_with_itself_is_exact():
    for name in ("mmdit", "vae"):
        assert accelerator.parity(name, VARIANT) == {"float32": 0.0, "compute_type": 0.0}


def test_a_training_is_measured_beside_its_prediction():
    config, stage, batch = accelerator.sizes(small=True).trainings["base"]
    row = accelerator.training(config, stage, batch, repeats=1)
    assert row["batch"] == batch and row["step_sec"] > 0 and row["compile_sec"] > 0 and 0 < row["loss"] < 100
    assert row["tflop_per_sec"] == pytest.approx(0.0011 / row["step_sec"], rel=0.1)  # 1.1 G operations
    assert 0 < row["peak_gb"] < 1 and "mfu" not in row  # no table has this CPU


def test_attention_of_a_cpu_and_of_xla_are_exact():
    row = accelerator.attention((1, 16, 2, 8))
    assert max(row["default_error"], row["xla_error"]) < 1e-6 and row["default_sec"] > 0


def test_a_failed_item_is_a_row_and_the_exit_code(monkeypatch):
    def broken():
        raise ValueError("too hot\nmuch detail")

    monkeypatch.setattr(accelerator, "items", lambda _: {"one": broken, "two": lambda: {"float32": 2e-4}})
    rows = list(accelerator.measure(None, ["one", "two"]))
    assert [row["item"] for row in rows] == ["one", "two"] and rows[0]["failed"] == "ValueError: too hot"
    assert accelerator.failed(rows[0]) and accelerator.failed(rows[1]) and not accelerator.failed({"float32": 5e-5})
    assert accelerator.show(rows[1]).startswith("two") and "float32 0.0002" in accelerator.show(rows[1])


SLOW_CHILD = """
import json, time
print(json.dumps({"device": "1 x stand-in", "items": ["quick", "endless"]}), flush=True)
print("a line of a library", flush=True)
print(json.dumps({"item": "quick", "seconds": 0.5}), flush=True)
time.sleep(60)
"""


def test_a_spent_budget_ends_with_what_there_is(tmp_path, monkeypatch, capsys):
    child, file = tmp_path / "child.py", tmp_path / "rows.json"
    child.write_text(SLOW_CHILD)
    monkeypatch.setattr(accelerator, "__file__", str(child))
    begun = time.monotonic()
    assert accelerator.main(["--budget=3", f"--json={file}"]) == 0
    assert time.monotonic() - begun < 30
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "1 x stand-in: 1 items, 1 left", "quick                        seconds 0.5", "not measured within 3 s: endless",
    ]
    assert json.loads(file.read_text()) == {"device": "1 x stand-in", "rows": [{"item": "quick", "seconds": 0.5}]}


def test_the_launcher_starts_it():
    command = ["launch/accelerator_check.sh", "--dry_run", "--", "--small"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["exec", ".venv/bin/python", "benchmarks/accelerator.py", "--small"]


@pytest.mark.slow
def test_all_items_at_toy_sizes(tmp_path):
    file = tmp_path / "rows.json"
    command = ["launch/accelerator_check.sh", "--", "--small", "--budget=1200", f"--json={file}"]
    done = subprocess.run(command, env=environment() | {"PYTHON": sys.executable}, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert " 0 left" in done.stdout and not any("failed" in row for row in json.loads(file.read_text())["rows"])
