"""Stop a training before it does harm: on a loss that is not finite or spikes, and on a data loader that hangs."""

import collections
from collections.abc import Iterable, Iterator
import dataclasses
import math
import queue
import statistics
import threading
from typing import Any

import jax
from jaxtyping import Float

from msg_jax.errors import UserError
from msg_jax.types import Array

_FEWEST = 20  # losses that a meaningful median needs


@dataclasses.dataclass(frozen=True)
class Limits:
    """The config's `guard` section."""

    spike: float = 20.0  # largest loss, as a multiple of the running median; 0 disables the check
    window: int = 100  # losses in the running median
    data_timeout_sec: float = 600.0  # longest wait for one batch


class LossWatch:
    """Checks the loss of every step without blocking the device at every step.

    `add` queues a step's loss while it is still on the device. `check` fetches the queued losses and reports the first bad
    one. `history` holds earlier losses, for the median of a resumed run.
    """

    def __init__(self, limits: Limits, history: Iterable[float] = ()):
        self._limits, self._pending = limits, []
        self._history = collections.deque(history, maxlen=limits.window)

    def add(self, step: int, loss: Float[Array, ""], ids: list[str] | None) -> None:
        """Queues the loss of `step`; `ids` names the clips of its batch."""
        self._pending.append((step, loss, ids))

    def check(self) -> str | None:
        """Describes the first bad loss since the last check, with its step and clips; None if all are good."""
        pending, self._pending = self._pending, []
        for (step, _, ids), value in zip(pending, jax.device_get([loss for _, loss, _ in pending])):
            value = float(value)
            clips = f" (clips {_few(ids)})" if ids else ""
            if not math.isfinite(value):
                return f"the loss is {value} at step {step}{clips}"
            if self._limits.spike and len(self._history) >= min(_FEWEST, self._limits.window):
                median = statistics.median(self._history)
                if value > self._limits.spike * median > 0:
                    return (f"the loss is {value:.4g} at step {step}{clips}, more than config.guard.spike="
                            f"{self._limits.spike:g} times the running median {median:.4g}")
            self._history.append(value)
        return None


def _few(ids: list[str], most: int = 8) -> str:
    return ", ".join(ids[:most]) + (f" and {len(ids) - most} more" if len(ids) > most else "")


class BatchReader:
    """Reads batches from an iterator in a thread, with a timeout, so that a hanging worker does not hang a pod.

    The iterator advances only on demand, so its state is always that of the batches handed out.
    """

    def __init__(self, iterator: Iterator[Any], timeout_sec: float, name: str):
        self._iterator, self._timeout, self._name = iterator, timeout_sec, name
        self._requests: queue.SimpleQueue = queue.SimpleQueue()
        self._results: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._work, name=f"batches of {name}", daemon=True).start()

    def _work(self) -> None:
        while self._requests.get():
            try:
                self._results.put((next(self._iterator), None))
            except BaseException as error:  # raised again in the thread that requested the batch
                self._results.put((None, error))

    def next(self, step: int) -> Any:
        """The batch of `step`. Raises what the iterator raises, and UserError if no batch arrives in time."""
        self._requests.put(True)
        try:
            batch, error = self._results.get(timeout=self._timeout)
        except queue.Empty:
            raise UserError(
                f"{self._name}: no batch came within config.guard.data_timeout_sec={self._timeout:g} s at step {step}; check "
                "the storage of config.data.source, then run the same command to continue."
            ) from None
        if error is not None:
            raise error
        return batch

    def close(self) -> None:
        """Ends the thread."""
        self._requests.put(False)
