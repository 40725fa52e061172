"""Process set-up, synchronisation with the other processes of a run, and error messages for the user."""

from collections.abc import Callable, Iterator
import contextlib
import ctypes
import errno
import itertools
import os
import sys
import threading
import time
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np
from orbax.checkpoint.multihost import get_barrier_sync_fn

from msg_jax import storage
from msg_jax.errors import UserError
from msg_jax.infra import logging, preemption
from msg_jax.infra.rollcall import roll_call

USER_ERROR = 2  # exit code: the user must change something first; the launchers never restart it
LOST_PROCESS = 75  # exit code (EX_TEMPFAIL): a host is gone or late, the same command may succeed; the launchers restart it
_STORAGE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS)  # Python does not always name the file of these
_BARRIER_SEC = 6 * 3600  # the slowest share of a stage; a lost process ends the wait
_HEARTBEAT_SEC = 60  # a process silent for this long counts as lost, and the others end
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h
_SHARED_SEC = 10  # how late a shared disk may show a new file to another host


def start() -> None:
    """Sets up heap, terminal, SIGTERM handler, compile cache and, for several processes, JAX's multi-process runtime.

    Environment variables:
      JAX_NUM_PROCESSES        the number of processes; `auto` leaves it to JAX's cluster detection
      JAX_COORDINATOR_ADDRESS  HOST:PORT of process 0 (launch/local_processes.sh, launch/gpu.sh)
      JAX_PROCESS_ID           the number of this process; without it and the address, JAX detects the cluster (TPU pods,
                               SLURM, GKE)
      JAX_NUM_DEVICES          the number of devices of all processes together; checked if set
      JAX_START_TIMEOUT_SEC    how long to wait for the other processes (300)

    Raises UserError if processes or devices are missing, naming the processes if their numbers were given. Otherwise a pod
    would train as isolated hosts.
    """
    keep_heap()
    logging.plain_terminal()
    if processes := os.environ.get("JAX_NUM_PROCESSES"):
        _join(processes)
    preemption.install()  # after JAX's own handlers
    _expect("JAX_NUM_PROCESSES", jax.process_count() if processes else 1, processes)
    if os.environ.get("JAX_NUM_DEVICES"):
        _expect("JAX_NUM_DEVICES", jax.device_count(), os.environ["JAX_NUM_DEVICES"])
    use_compile_cache()


def _join(processes: str) -> None:
    if processes != "auto" and not processes.isdecimal():
        raise UserError(f"JAX_NUM_PROCESSES={processes} is not a number of processes: give one, or auto.")
    coordinator, process = (os.environ.get(name) for name in ("JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_ID"))
    if bool(coordinator) != bool(process) or (coordinator and processes == "auto"):
        raise UserError("JAX_NUM_PROCESSES, JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID go together: set all three, or leave "
                        "the last two to JAX's own detection of a cluster.")
    seconds = int(os.environ.get("JAX_START_TIMEOUT_SEC", 300))
    place: dict[str, Any] = {}
    if coordinator and process:
        place = dict(coordinator_address=coordinator, num_processes=int(processes), process_id=int(process))
        roll_call(coordinator, int(processes), int(process), seconds)
    # at its own timeout JAX ends the process without a readable message, so end it before
    watchdog = threading.Timer(seconds, _exit_on_timeout, (seconds, processes))
    watchdog.daemon = True
    watchdog.start()
    try:
        jax.distributed.initialize(
            **place, initialization_timeout=seconds + 30, heartbeat_timeout_seconds=_HEARTBEAT_SEC, shutdown_timeout_seconds=60,
        )
    except (RuntimeError, ValueError, TypeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"JAX cannot join the processes of this run ({lines[0][:200]}): on a cluster that it does not detect, set "
            "JAX_NUM_PROCESSES, JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID."
        ) from error
    finally:
        watchdog.cancel()


def _exit_on_timeout(seconds: int, processes: str) -> None:
    print(f"error: The processes of this run (JAX_NUM_PROCESSES={processes}) did not meet within JAX_START_TIMEOUT_SEC="
          f"{seconds}: check that every host of the job runs and reaches the first.", file=sys.stderr)
    leave(LOST_PROCESS)


def _expect(name: str, found: int, wanted: str | None) -> None:
    """Raises UserError unless JAX found the number that the variable `name` asks for."""
    if wanted and wanted != "auto" and int(wanted) != found:
        raise UserError(f"{name}={wanted} but JAX found {found}: correct the variable, or look for the missing hosts.")


def use_compile_cache() -> None:
    """Caches compiled programs on disk, in JAX_COMPILATION_CACHE_DIR or below the home folder."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/msg_jax/xla"))
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def share_heap() -> None:
    """Lets all threads of the process share one heap, where the C library is glibc.

    Otherwise each decoding thread keeps a heap of its own, and memory grows with the number of videos or windows read.
    """
    _set_heap(_M_ARENA_MAX, 1)


def keep_heap() -> None:
    """Keeps what a step on the CPU has freed for the next one, where the C library is glibc. Call it before JAX has devices.

    Otherwise the step gives its activations back to the system, which clears their pages for the next step: a quarter of a
    training's time (benchmarks/heap.py). Only the heap of the first thread keeps large arrays, so that one runs the steps,
    once their inputs are there.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    _set_heap(_M_MMAP_MAX, 0)
    _set_heap(_M_TRIM_THRESHOLD, -1)


def _set_heap(parameter: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(parameter, value)


def trim_heap() -> None:
    """Gives memory that has been freed back to the system, where the C library is glibc. It takes milliseconds.

    Otherwise small arrays that live on keep the pages between them, as the features of windows do after the batches.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


_barriers = itertools.count()


def barrier(name: str) -> None:
    """Blocks until every process has called it. Uses only the coordinator.

    Call it also before the first collective of a program: on CPUs a process waits at most 30 s for the others' first
    collective, and some compile for minutes.
    """
    if jax.process_count() > 1:
        get_barrier_sync_fn()(key=f"{next(_barriers)} {name}", timeout_ms=1000 * _BARRIER_SEC)


def first_process_alone(function: Callable[[], object], name: str) -> None:
    """Runs `function` in process 0 while the others wait. A UserError there raises UserError in all processes."""
    failure = None
    if jax.process_index() == 0:
        try:
            function()
        except UserError as error:
            failure = error
    barrier(name)
    if jax.process_count() > 1:
        failed = multihost_utils.broadcast_one_to_all(np.array(failure is not None))
        if failed and failure is None:
            failure = UserError(f"{name}: process 0 failed; see its message.")
    if failure is not None:
        raise failure


def anywhere(flag: bool, name: str) -> bool:
    """Whether `flag` is true in any process. All of them must ask."""
    barrier(name)
    return bool(np.any(multihost_utils.process_allgather(np.array(flag)))) if jax.process_count() > 1 else flag


def check_shared(folder: storage.Path) -> None:
    """Raises UserError in every process unless all processes see `folder` on one disk. Creates the folder.

    Process 0 writes a file with a random name, and every process looks for it. A single process checks nothing.
    """
    if jax.process_count() == 1:
        return
    barrier("start of the workdir check")
    name = multihost_utils.broadcast_one_to_all(np.frombuffer(os.urandom(8), np.uint8))
    token = folder / f".shared-{np.asarray(name).tobytes().hex()}"

    def write() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            token.write_text("")
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}; give a --workdir that process 0 can write.") from error

    first_process_alone(write, str(folder))
    deadline = time.monotonic() + _SHARED_SEC
    while not (seen := token.exists()) and time.monotonic() < deadline:
        time.sleep(0.2)
    everywhere = multihost_utils.process_allgather(np.array(seen))
    if jax.process_index() == 0:
        token.unlink(missing_ok=True)
    if blind := np.flatnonzero(~everywhere).tolist():
        raise UserError(f"The workdir {folder} is not shared between the processes: {', '.join(map(str, blind))} of "
                        f"{len(everywhere)} do not see what process 0 writes there; put --workdir on a disk that all hosts "
                        "mount at the same path.")


def user_message(error: Exception) -> str | None:
    """The message for an error that the user can fix: bad input, storage, a lost process. None for a bug of the program."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and (error.filename is not None or error.errno in _STORAGE):
        where = "A file that the run writes" if error.filename is None else error.filename
        return f"{where}: {error.strerror}; fix that, then run the same command to continue from what is finished."
    if fault := storage.failure(error):
        return f"The bucket failed ({fault}): look at it, then run the same command to continue from what is finished."
    if jax.process_count() > 1 and isinstance(error, jax.errors.JaxRuntimeError):
        lines = str(error).strip().splitlines() or ["no reason given"]
        return (f"Process {jax.process_index()} of {jax.process_count()} has lost another ({lines[0][:200]}): see the output "
                "of that one, then start all of them with the same command to continue from the last checkpoint.")
    return None


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Context for all work of a command: prints the user message of an error and exits with 2, or 75 for a lost process.

    An error without a user message is a bug of the program and passes.
    """
    try:
        yield
    except Exception as error:
        text = user_message(error)
        if text is None:
            raise
        print(f"error: {text}", file=sys.stderr)
        leave(LOST_PROCESS if isinstance(error, jax.errors.JaxRuntimeError) else USER_ERROR)


def leave(code: int) -> None:
    """Ends the process at once, without waiting for hanging threads or lost processes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
