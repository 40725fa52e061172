"""Every test sees eight virtual CPU devices, float32 matmuls and a compile cache that outlives the process.

Most of the time of a test is compiling, so programs are compiled without LLVM's optimisations, which is twice as fast.
"""

import os
import pathlib
import subprocess
import sys

import filelock
from jaxtyping import install_import_hook
import pytest

_XLA_FLAGS = "--xla_backend_optimization_level=0"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_XLA_FLAGS} --xla_force_host_platform_device_count=8"
ROOT = pathlib.Path(__file__).parents[1]
os.environ["HF_HOME"] = str(ROOT / ".cache" / "no_huggingface")  # tests see no files of this machine's user
os.environ.pop("HF_HUB_CACHE", None)
_CACHE = ROOT / ".cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

# The shapes that tensor functions promise are checked at every call; subprocesses run unchecked, as users do.
CHECKED_ROOMS = [f"msg_jax.{room}" for room in ("data", "evaluation", "inference", "losses", "models", "preference")]
install_import_hook(CHECKED_ROOMS, "type_checks.checked")
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of large reference tensors and real videos beside the project; skips the test where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared folder beside the project: large reference tensors and real videos are not here")
    return SHARED


def command(*arguments: str) -> list[str]:
    """The command line of `python -m msg_jax.main` with the smoke preset of the main job."""
    return [sys.executable, "-m", "msg_jax.main", "--config=configs/avp_rpo.py:smoke", *arguments]


def environment() -> dict[str, str]:
    """One device, as a user has it, and the tests' compile cache."""
    return os.environ | {"XLA_FLAGS": _XLA_FLAGS, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(_CACHE)}


@pytest.fixture(scope="session")
def scenes_cache(tmp_path_factory) -> pathlib.Path:
    """Where the runs of this worker keep the scenes they write."""
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory, worker_id) -> pathlib.Path:
    """The folder of a finished main job at the smoke preset. Read it; copy it before changing anything.

    The worker that asks first makes it, for all of them; where that failed, the next one fails with the same words.
    """
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "smoke"
    with filelock.FileLock(f"{folder}.lock"):
        if not (folder / "run" / "results.json").exists():
            arguments = command(f"--workdir={folder / 'run'}", f"--config.data.cache={folder / 'scenes'}")
            subprocess.run(arguments, env=environment(), check=True, cwd=ROOT)
    return folder / "run"
