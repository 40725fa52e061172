"""Throughput of a training: rates, model FLOPs utilisation, data stalls and profiler traces."""

from collections.abc import Iterator
import contextlib
import os
import time
from typing import Any

import jax

from msg_jax import storage
from msg_jax.infra import devices as known_devices

LOSSES = ("restore", "compile", "wait", "save", "held_out")
"""What a training does beside its steps: it restores, compiles, waits for data, for a save, and measures on held-out clips."""
FIELDS = (
    "steps_per_sec", "examples_per_sec", "flops_per_sec", "mfu", "mfu_reason", "data_wait_share", "goodput",
    *(f"{name}_sec" for name in LOSSES),
)


class Goodput:
    """The share of the wall time since the training was started or continued that went into steps, and what took the rest.

    What runs in the background, such as reading ahead and writing a checkpoint, counts only where the training waits for it.
    """

    def __init__(self):
        self._begun = time.monotonic()
        self._lost: dict[str, float] = dict.fromkeys(LOSSES, 0.0)

    @contextlib.contextmanager
    def losing(self, name: str) -> Iterator[None]:
        """Counts the time in this context as lost to `name`, one of `LOSSES`."""
        begun = time.monotonic()
        yield
        self._lost[name] += time.monotonic() - begun

    def row(self) -> dict[str, float]:
        """`goodput`, and the seconds of each loss as NAME_sec."""
        seconds = max(time.monotonic() - self._begun, 1e-9)
        return {"goodput": 1 - sum(self._lost.values()) / seconds} | {f"{name}_sec": sec for name, sec in self._lost.items()}


class Meter:
    """Measures rates between two rows of `metrics.jsonl`.

    `flops` is the work of one step over all devices (`operations.count`); `examples` is the global batch size; `done` is the
    number of steps so far.
    """

    def __init__(
        self,
        flops: float,
        examples: int,
        devices: list[jax.Device],  # pyright: ignore[reportInvalidTypeForm] JAX exports it as a variable
        done: int = 0,
    ):
        self._flops, self._examples, self._devices = flops, examples, devices
        self._device = known_devices.find(devices[0].device_kind)
        self._done, self._begun, self._waited = done, time.monotonic(), 0.0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time in this context as waiting for data."""
        begun = time.monotonic()
        yield
        self._waited += time.monotonic() - begun

    def row(self, done: int) -> dict[str, float | str | None]:
        """The rates since the last row. An unknown `mfu` is None, with its reason in `mfu_reason`."""
        now = time.monotonic()
        seconds, rate = now - self._begun, (done - self._done) / max(now - self._begun, 1e-9)
        row: dict[str, float | str | None] = {
            "steps_per_sec": rate, "examples_per_sec": rate * self._examples,
            "flops_per_sec": rate * self._flops, "mfu": None,
            "data_wait_share": self._waited / max(seconds, 1e-9),
        }
        if self._device is None:
            row["mfu_reason"] = f"the peak of {self._devices[0].device_kind!r} is not in the table"
        else:
            row["mfu"] = rate * self._flops / (self._device.flops * len(self._devices))
        self._done, self._begun, self._waited = done, now, 0.0
        return row


class Profiler:
    """Writes a trace of the steps a <= step < b to `folder`, for TensorBoard or Perfetto; None disables it."""

    def __init__(self, steps: tuple[int, int] | None, folder: str | os.PathLike):
        self._steps, self._folder, self._trace = steps, storage.path(folder), contextlib.ExitStack()
        self._on = False

    def before(self, step: int) -> None:
        """Call it before each step."""
        if self._steps and self._steps[0] <= step < self._steps[1] and not self._on:
            jax.profiler.start_trace(self._trace.enter_context(storage.new_folder(self._folder)))
            self._on = True

    def after(self, done: int, result: Any) -> None:
        """Call it after each step, with the number of steps done; waits for `result` before it ends the trace."""
        if self._steps and self._on and done >= self._steps[1]:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends a trace that is still running."""
        if self._on:
            jax.profiler.stop_trace()
            self._trace.close()
            self._on = False
