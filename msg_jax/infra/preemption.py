"""SIGTERM: finish the step or shard at hand, save, exit with code 0."""

import collections
import functools
import signal
import sys

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

_requested = False
_LAG = 4  # steps from one process's SIGTERM to the step after which all processes stop


def install() -> None:
    """From now on SIGTERM is noted instead of ending the process at once."""

    def note(signum, frame):
        global _requested
        _requested = True

    signal.signal(signal.SIGTERM, note)


def requested() -> bool:
    return _requested


class Agreement:
    """All processes of a mesh stop after the same step, whichever of them got the SIGTERM.

    Every step the processes share a flag on the devices, and read the one of a few steps before, which has long been
    there: nothing waits. One process alone needs no agreement.
    """

    def __init__(self, mesh: Mesh):
        self._mesh = mesh
        self._flags: collections.deque = collections.deque()

    @functools.cached_property
    def _any(self):
        return jax.jit(jnp.max, out_shardings=NamedSharding(self._mesh, P()))

    def requested(self) -> bool:
        """Called once a step."""
        if jax.process_count() == 1:
            return requested()
        mine = np.full(len(self._mesh.local_devices), requested(), np.int32)
        sharding = NamedSharding(self._mesh, P(self._mesh.axis_names))
        self._flags.append(self._any(jax.make_array_from_process_local_data(sharding, mine, (self._mesh.size,))))
        return len(self._flags) > _LAG and bool(self._flags.popleft())


def stop(what: str) -> None:
    """Ends the process, where everything so far is on disk; `what` tells the user where the work stands."""
    print(f"Stopped by SIGTERM at {what}; the same command continues from here.", file=sys.stderr)
    sys.exit(0)


def exit_if_requested(what: str) -> None:
    """`stop` if SIGTERM came."""
    if _requested:
        stop(what)
