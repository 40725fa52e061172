"""What lies in a stage's folder beside its result, `run.json` and `sampling.json`, and facts about the code that made it."""

import importlib.metadata
import json
import pathlib
import platform
import subprocess
from typing import Any

from msg_jax.errors import UserError
from msg_jax.storage import Path

RECORD = "run.json"
SAMPLING = "sampling.json"
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "av")


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a stage folder; None if it has none. Raises UserError if it cannot be read."""
    path = folder / RECORD
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): restore it, or delete {folder} to make the stage again.") from error


def read_sampling(folder: Path) -> dict[str, Any]:
    """How the generator in a folder is to be sampled, if not as the run's evaluation does: `steps` and `guidance_scale`."""
    path = folder / SAMPLING
    return json.loads(path.read_text()) if path.exists() else {}


def git_revision() -> str | None:
    """The revision of the running source, with `+changed` if it was edited since; None outside a checkout."""
    here = pathlib.Path(__file__).parent
    try:
        describe = ["git", "-C", str(here), "describe", "--always", "--dirty=+changed", "--abbrev=12"]
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}
