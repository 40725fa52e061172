"""Preemption by SIGTERM: finish the current step or shard, save, exit with code 143."""

import collections
import functools
import signal
import sys

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

EXIT_CODE = 128 + signal.SIGTERM  # 143: the work is saved but not finished; the launchers restart it

_requested = False
_LAG = 4  # steps between a process's SIGTERM and the step after which all processes stop


def install() -> None:
    """Installs a SIGTERM handler that records the request instead of ending the process."""

    def record(signum, frame):
        global _requested
        _requested = True

    signal.signal(signal.SIGTERM, record)


def requested() -> bool:
    """Whether this process got a SIGTERM."""
    return _requested


class Agreement:
    """Makes all processes of a mesh stop after the same step, whichever of them got the SIGTERM.

    At each step the processes reduce a flag on the devices and read the flag of a few steps before. That one has long been
    computed, so nothing blocks. A single process reads its own flag.
    """

    def __init__(self, mesh: Mesh):
        self._mesh = mesh
        self._flags: collections.deque = collections.deque()

    @functools.cached_property
    def _any(self):
        return jax.jit(jnp.max, out_shardings=NamedSharding(self._mesh, P()))

    def requested(self) -> bool:
        """Whether to stop after this step, the same answer in all processes. Call it once per step."""
        if jax.process_count() == 1:
            return requested()
        mine = np.full(len(self._mesh.local_devices), requested(), np.int32)
        sharding = NamedSharding(self._mesh, P(self._mesh.axis_names))
        self._flags.append(self._any(jax.make_array_from_process_local_data(sharding, mine, (self._mesh.size,))))
        return len(self._flags) > _LAG and bool(self._flags.popleft())


def stop(what: str) -> None:
    """Ends the process with `EXIT_CODE` once everything is saved; `what` tells the user where the work stands."""
    print(f"Stopped by SIGTERM at {what}; run the same command to continue from here.", file=sys.stderr)
    sys.exit(EXIT_CODE)


def exit_if_requested(what: str) -> None:
    """Calls `stop` if this process got a SIGTERM."""
    if _requested:
        stop(what)
