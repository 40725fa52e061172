"""Throughput of a training: rates, model FLOPs utilisation, data stalls and profiler traces."""

from collections.abc import Iterator
import contextlib
import os
import time
from typing import Any

import jax

from msg_jax import storage

# Dense bfloat16 peak of one device in FLOP/s, from the vendors' data sheets, by prefix of JAX's `device_kind`; the longest
# match counts. JAX calls a v5p "TPU v5".
PEAK_FLOPS = {
    "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5": 459e12, "TPU v5p": 459e12, "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12, "NVIDIA H100": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA H200": 989e12, "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12, "NVIDIA B200": 2250e12, "NVIDIA GB200": 2450e12,
}
LOSSES = ("restore", "compile", "wait", "save", "held_out")
"""What a training does beside its steps: it restores, compiles, waits for data, for a save, and measures on held-out clips."""
FIELDS = (
    "steps_per_sec", "examples_per_sec", "flops_per_sec", "mfu", "mfu_reason", "data_wait_share", "goodput",
    *(f"{name}_sec" for name in LOSSES),
)


def peak_flops(device: jax.Device) -> float | None:  # pyright: ignore[reportInvalidTypeForm] JAX exports it as a variable
    """Dense bfloat16 FLOP/s of one device; None if the table lacks it."""
    known = [kind for kind in PEAK_FLOPS if device.device_kind.startswith(kind)]
    return PEAK_FLOPS[max(known, key=len)] if known else None


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

    `flops` is the work of one step over all devices, None if unknown; `examples` is the global batch size; `done` is the
    number of steps so far.
    """

    def __init__(
        self,
        flops: float | None,
        examples: int,
        devices: list[jax.Device],  # pyright: ignore[reportInvalidTypeForm] JAX exports it as a variable
        done: int = 0,
    ):
        self._flops, self._examples, self._devices = flops, examples, devices
        self._peak = peak_flops(devices[0])
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
            "flops_per_sec": None if self._flops is None else rate * self._flops, "mfu": None,
            "data_wait_share": self._waited / max(seconds, 1e-9),
        }
        if self._flops is None:
            row["mfu_reason"] = "XLA does not count this step's operations"
        elif self._peak is None:
            row["mfu_reason"] = f"the peak of {self._devices[0].device_kind!r} is not in the table"
        else:
            row["mfu"] = rate * self._flops / (self._peak * len(self._devices))
        self._done, self._begun, self._waited = done, now, 0.0
        return row


def step_flops(lowered: jax.stages.Lowered, accumulate: int) -> float | None:
    """Floating-point operations of one step over all devices, by XLA's count for the unoptimised program; None if unknown.

    Optimised programs hide matrix products in library calls, which XLA counts as zero. XLA counts a loop body once, hence
    the factor `accumulate`; it also multiplies the optimiser's few operations per parameter. Rematerialised operations
    count twice.
    """
    costs = lowered.cost_analysis() or {}
    return costs["flops"] * accumulate if costs.get("flops", 0) > 0 else None


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
