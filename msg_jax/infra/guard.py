"""When a training must stop before it does harm: a loss that is not finite or jumps, a batch that does not come."""

import collections
from collections.abc import Iterable, Iterator
import dataclasses
import math
import queue
import statistics
import threading
from typing import Any

import jax

from msg_jax.errors import UserError

_FEWEST = 20  # losses before a median means something


@dataclasses.dataclass(frozen=True)
class Limits:
    """The config's `guard` section."""

    spike: float = 20.0  # times the median of the last losses; 0: any finite loss will do
    window: int = 100  # losses in that median
    data_timeout_sec: float = 600.0  # for one batch


class LossWatch:
    """Looks at the loss of every step, but only when asked, so that the device is never waited for in between.

    `add` takes a step's loss as it is on the device; `check` says what is wrong with the first bad one, if any.
    """

    def __init__(self, limits: Limits, history: Iterable[float] = ()):
        self._limits, self._pending = limits, []
        self._history = collections.deque(history, maxlen=limits.window)

    def add(self, step: int, loss: jax.Array, ids: list[str] | None) -> None:
        self._pending.append((step, loss, ids))

    def check(self) -> str | None:
        """What is wrong, as the beginning of a sentence that names step and clips; None if nothing is."""
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


class Feed:
    """The batches of an iterator, each waited for at most `timeout_sec`: a worker that hangs must not hang a pod.

    The iterator is advanced only on demand, so that its state is always that of the batches handed out.
    """

    def __init__(self, iterator: Iterator[Any], timeout_sec: float, name: str):
        self._iterator, self._timeout, self._name = iterator, timeout_sec, name
        self._asked: queue.SimpleQueue = queue.SimpleQueue()
        self._answers: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._work, name=f"batches of {name}", daemon=True).start()

    def _work(self) -> None:
        while self._asked.get():
            try:
                self._answers.put((next(self._iterator), None))
            except BaseException as error:  # whatever it is, it belongs to the thread that asked
                self._answers.put((None, error))

    def next(self, step: int) -> Any:
        """The batch of `step`. Raises what the iterator raises, and UserError when nothing comes in time."""
        self._asked.put(True)
        try:
            batch, error = self._answers.get(timeout=self._timeout)
        except queue.Empty:
            raise UserError(
                f"{self._name}: no batch came within config.guard.data_timeout_sec={self._timeout:g} s at step {step}: reading "
                "hangs; look at the storage that config.data.source names, then run the same command, which continues."
            ) from None
        if error is not None:
            raise error
        return batch

    def close(self) -> None:
        self._asked.put(False)
