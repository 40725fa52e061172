"""Rows of a benchmark. Each is measured in its own process, so that its peak memory is its own."""

import json
import pathlib
import resource
import subprocess
import sys

import jax


def measure_in_subprocess(module: str, *flags: str) -> dict:
    """Run `python -m module` and return the row that it prints as JSON on its last line."""
    output = subprocess.run([sys.executable, "-m", module, *flags], check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def peak_gb() -> float:
    """Peak resident memory of this process so far, in GB; host memory only."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return kilobytes * 1024 / 1e9


def save(path: pathlib.Path | None, variant: str, rows: list[dict]) -> None:
    """Write the rows, with variant and device, as JSON to `path`; None writes nothing."""
    if path:
        path.write_text(json.dumps({"variant": variant, "device": jax.devices()[0].device_kind, "rows": rows}, indent=1))
