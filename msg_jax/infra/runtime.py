"""What a process sets up before its first computation, and what it agrees on with the others."""

from collections.abc import Callable, Iterator
import contextlib
import errno
import itertools
import os
import sys
import threading

import jax
from jax.experimental import multihost_utils
import numpy as np
from orbax.checkpoint.multihost import get_barrier_sync_fn

from msg_jax.errors import UserError
from msg_jax.infra import logging, preemption
from msg_jax.infra.rollcall import roll_call

_STORAGE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS)  # Python does not always say of which file
_BARRIER_SEC = 6 * 3600  # the slowest share of a stage; a process that is lost ends the wait
_HEARTBEAT_SEC = 60  # after which a process that is not heard of counts as lost, and the others end


def start() -> None:
    """Terminal, SIGTERM, compile cache, and, when started as one of several processes, JAX's multi-process runtime.

    JAX_NUM_PROCESSES says how many processes there are. With JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID this process is told
    its place (launch/local_processes.sh, launch/gpu.sh); without them JAX finds it (TPU pods, SLURM, GKE; `auto` leaves the
    number to it as well). JAX_NUM_DEVICES, if set, is the number of devices that all of them must have together, and
    JAX_START_TIMEOUT_SEC (300) how long to wait for the others.

    Raises UserError, naming the processes that are missing where they were told their places: a pod that trains as isolated
    hosts is worse than one that stops.
    """
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
        raise UserError(f"JAX_NUM_PROCESSES={processes} is no number of processes: give one, or auto.")
    told = [os.environ.get(name) for name in ("JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_ID")]
    if any(told) and (not all(told) or processes == "auto"):
        raise UserError("JAX_NUM_PROCESSES, JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID go together: set all three, or leave "
                        "the last two to JAX's own detection of a cluster.")
    seconds = int(os.environ.get("JAX_START_TIMEOUT_SEC", 300))
    place = dict(coordinator_address=told[0], num_processes=int(processes), process_id=int(told[1])) if all(told) else {}
    if place:
        roll_call(place["coordinator_address"], place["num_processes"], place["process_id"], seconds)
    # JAX ends the process itself when time is over, without a sentence: ours comes before.
    watchdog = threading.Timer(seconds, _nobody_came, (seconds, processes))
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


def _nobody_came(seconds: int, processes: str) -> None:
    print(f"error: The processes of this run (JAX_NUM_PROCESSES={processes}) did not meet within JAX_START_TIMEOUT_SEC="
          f"{seconds}: see whether every host of the job runs, and reaches the first.", file=sys.stderr)
    leave(2)


def _expect(name: str, found: int, wanted: str | None) -> None:
    if wanted and wanted != "auto" and int(wanted) != found:
        raise UserError(f"{name}={wanted} but JAX found {found}: correct the variable, or look for the hosts that are missing.")


def use_compile_cache() -> None:
    """Keeps compiled programs on disk, in JAX_COMPILATION_CACHE_DIR or below the home folder."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/msg_jax/xla"))
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


_barriers = itertools.count()


def barrier(name: str) -> None:
    """Waits until every process is here, through the coordinator alone.

    To be called before the first collective of a program, too: on CPUs a process waits for the others' first collective no
    longer than 30 s, and some compile for minutes.
    """
    if jax.process_count() > 1:
        get_barrier_sync_fn()(key=f"{next(_barriers)} {name}", timeout_ms=1000 * _BARRIER_SEC)


def first_process_alone(function: Callable[[], None], name: str) -> None:
    """Runs `function` in process 0 while the others wait. A UserError there is one everywhere."""
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
            failure = UserError(f"{name}: process 0 says what is wrong.")
    if failure is not None:
        raise failure


def sentence(error: Exception) -> str | None:
    """What to tell the user of an error that is not the program's own; None for one that is."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and (error.filename is not None or error.errno in _STORAGE):
        where = "A file that the run writes" if error.filename is None else error.filename
        return f"{where}: {error.strerror}; put that right and run the same command, which continues from what is finished."
    if jax.process_count() > 1 and isinstance(error, jax.errors.JaxRuntimeError):
        lines = str(error).strip().splitlines() or ["no reason given"]
        return (f"Process {jax.process_index()} of {jax.process_count()} has lost another ({lines[0][:200]}): see what that "
                "one says, then start all of them again with the same command, which continues from the last checkpoint.")
    return None


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """A command's whole work: what is not the program's own error ends it with one sentence and code 2."""
    try:
        yield
    except Exception as error:
        text = sentence(error)
        if text is None:
            raise
        print(f"error: {text}", file=sys.stderr)
        leave(2)


def leave(code: int) -> None:
    """Ends the process at once: neither threads that hang nor processes that are lost are waited for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
