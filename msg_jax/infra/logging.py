"""Progress lines on the terminal, `metrics.jsonl` on disk and, optionally, TensorBoard and Weights & Biases."""

from collections.abc import Iterable, Iterator, Mapping
import hashlib
import io
import json
import logging
import math
import os
import sys
import tempfile
import time
from typing import Any

from absl import logging as absl_logging

from msg_jax import storage
from msg_jax.errors import UserError
from msg_jax.storage import write_atomically

_LOGGER = logging.getLogger("msg_jax")


def plain_terminal() -> None:
    """Prints our own lines to stdout without a prefix, and of libraries only errors. `--verbosity=-1` silences ours too."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may not be UTF-8
    _LOGGER.handlers = [logging.StreamHandler(sys.stdout)]
    _LOGGER.setLevel(logging.INFO if absl_logging.get_verbosity() >= absl_logging.INFO else logging.WARNING)
    _LOGGER.propagate = False
    absl_logging.set_verbosity(absl_logging.ERROR)


def info(message: str, *args: Any) -> None:
    """Prints a line, %-formatted with `args`."""
    _LOGGER.info(message, *args)


class Progress:
    """Prints `stage  step/steps  rate  ETA  metrics`, at most once per `every_sec` and at the end."""

    def __init__(self, stage: str, total: int, unit: str = "step", every_sec: float = 5.0, start: int = 0):
        self._stage, self._total, self._unit, self._every = stage, total, unit, every_sec
        self._first, self._begun, self._last = start, time.monotonic(), -math.inf

    def update(self, done: int, metrics: Mapping[str, float] | None = None) -> None:
        """Reports that `done` of the total are done."""
        now = time.monotonic()
        if now - self._last < self._every and done < self._total:
            return
        self._last = now
        rate = (done - self._first) / max(now - self._begun, 1e-9)
        eta = _clock((self._total - done) / rate) if rate > 0 else "?"
        shown = "  ".join(f"{name} {value:.4g}" for name, value in (metrics or {}).items())
        info("%-13s %s %d/%d  %.3g/s  ETA %s  %s", self._stage, self._unit, done, self._total, rate, eta, shown)

    def over(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yields `items` and reports each as done."""
        for done, item in enumerate(items, self._first + 1):
            yield item
            self.update(done)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


Row = Mapping[str, float | str | None]


class MetricsFile:
    """`metrics.jsonl`: one object per logged step. Drops rows after the resumed step, so a rerun writes no duplicates."""

    def __init__(self, path: str | os.PathLike, resumed_step: int = 0):
        self._path = storage.path(path)
        self.rows = [row for row in read_metrics(self._path) if row["step"] <= resumed_step]
        self._text = "".join(json.dumps(row) + "\n" for row in self.rows)
        write_atomically(self._path, self._text)

    def write(self, step: int, metrics: Row) -> None:
        """Appends the row of `step`."""
        line = json.dumps({"step": step, **metrics}) + "\n"
        if storage.in_bucket(self._path):  # an object cannot grow
            self._text += line
            write_atomically(self._path, self._text)
            return
        with self._path.open("a") as file:
            file.write(line)

    def close(self) -> None:
        pass


class TensorBoard:
    """TensorBoard event files of the same metrics, by tensorboardX. Raises UserError if the package is missing."""

    def __init__(self, folder: str | os.PathLike):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise UserError("config.log.tensorboard=True needs the package tensorboardX: install it, or set the field to "
                            "False.") from error
        self._writer = SummaryWriter(str(folder), flush_secs=30)

    def write(self, step: int, metrics: Row) -> None:
        for name, value in metrics.items():
            if isinstance(value, float):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A Weights & Biases run of the same metrics; a resumed run continues it. Raises UserError if the package is missing."""

    def __init__(self, project: str, folder: str | os.PathLike):
        try:
            import wandb  # pyright: ignore[reportMissingImports] optional, in no requirements file
        except ImportError as error:
            raise UserError(f"config.log.wandb={project!r} needs the package wandb: install it, or set the field to "
                            "an empty string.") from error
        folder = storage.path(folder)
        name = "/".join(storage.absolute(folder).parts[-3:])
        on_disk = tempfile.mkdtemp() if storage.in_bucket(folder) else str(folder)
        self._run = wandb.init(
            project=project, name=name, id=hashlib.sha256(name.encode()).hexdigest()[:16], resume="allow", dir=on_disk,
        )

    def write(self, step: int, metrics: Row) -> None:
        self._run.log({name: value for name, value in metrics.items() if isinstance(value, float)}, step=step)

    def close(self) -> None:
        self._run.finish()


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """Reads the rows of a `metrics.jsonl`, none if it does not exist. Ignores a last line that a kill cut off."""
    rows = []
    path = storage.path(path)
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def write_jsonl(path: storage.Path | str, rows: Iterable[Mapping]) -> None:
    """Writes one JSON object per line, atomically."""
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
