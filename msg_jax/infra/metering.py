"""How fast a training goes and what it waits for."""

from collections.abc import Iterator
import contextlib
import time

import jax

# Dense bfloat16 peak of one device in FLOP/s, from the makers' data sheets, by the beginning of JAX's `device_kind`;
# the longest match counts. "TPU v5" is how JAX calls a v5p.
PEAK_FLOPS = {
    "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5": 459e12, "TPU v5p": 459e12, "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12, "NVIDIA H100": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA H200": 989e12, "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12, "NVIDIA B200": 2250e12, "NVIDIA GB200": 2450e12,
}
FIELDS = ("steps_per_sec", "examples_per_sec", "flops_per_sec", "mfu", "mfu_reason", "data_wait_share")


def peak_flops(device: jax.Device) -> float | None:
    """Dense bfloat16 FLOP/s of one device, None where the table does not know it."""
    known = [kind for kind in PEAK_FLOPS if device.device_kind.startswith(kind)]
    return PEAK_FLOPS[max(known, key=len)] if known else None


class Meter:
    """Rates between two rows of `metrics.jsonl`; `flops` are those of one step over all devices, None if unknown."""

    def __init__(self, flops: float | None, examples: int, devices: list[jax.Device], done: int = 0):
        self._flops, self._examples, self._devices = flops, examples, devices
        self._peak = peak_flops(devices[0])
        self._done, self._begun, self._waited = done, time.monotonic(), 0.0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self._waited += time.monotonic() - begun

    def row(self, done: int) -> dict[str, float | str | None]:
        """`FIELDS` since the last row; what cannot be said is None, with the reason beside it."""
        now = time.monotonic()
        seconds, rate = now - self._begun, (done - self._done) / max(now - self._begun, 1e-9)
        row = {
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
    """Floating-point operations of one step over all devices, as XLA counts them in the unoptimised program.

    Optimised programs hide matrix products in library calls that count as nothing. A loop's body counts once, hence
    times `accumulate`; the optimiser's own operations, a few per parameter, are then counted as often. What
    rematerialisation computes again is counted again.
    """
    costs = lowered.cost_analysis() or {}
    return costs["flops"] * accumulate if costs.get("flops", 0) > 0 else None


class Profiler:
    """Writes a trace of the steps a <= step < b to `folder`, for TensorBoard's or Perfetto's profile view."""

    def __init__(self, steps: tuple[int, int] | None, folder):
        self._steps, self._folder, self._on = steps, folder, False

    def before(self, step: int) -> None:
        if self._steps and self._steps[0] <= step < self._steps[1] and not self._on:
            jax.profiler.start_trace(str(self._folder))
            self._on = True

    def after(self, done: int, result) -> None:
        if self._on and done >= self._steps[1]:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        if self._on:
            jax.profiler.stop_trace()
            self._on = False
