"""Rows of a benchmark: each measured in a process of its own, so that its peak memory is its own, and written to a file."""

import json
import pathlib
import resource
import subprocess
import sys

import jax


def measured_apart(script: str, *flags: str) -> dict:
    """The row that `script` prints as its last line."""
    output = subprocess.run([sys.executable, script, *flags], check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def peak_gb() -> float:
    """Most resident memory of this process so far (on an accelerator: of the host alone)."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return kilobytes * 1024 / 1e9


def save(path: pathlib.Path | None, variant: str, rows: list[dict]) -> None:
    """Writes the rows with what they were measured on, if a file is wanted."""
    if path:
        path.write_text(json.dumps({"variant": variant, "device": jax.devices()[0].device_kind, "rows": rows}, indent=1))
