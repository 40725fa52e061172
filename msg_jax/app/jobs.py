"""A queue of jobs that run one at a time, in the order they came, and can be cancelled."""

from collections import deque
from collections.abc import Callable
import threading
import time
import traceback
from typing import Any

from msg_jax.errors import UserError

Work = Callable[[Callable[[float], None]], Any]
"""Takes the function to report progress to, from 0 to 1; that function raises CancelledError if the job was cancelled."""


class CancelledError(Exception):
    """The job was cancelled."""


class QueueFullError(UserError):
    """Too many jobs wait."""


class Job:
    """One piece of work. `state` is "waiting", "running", "done", "failed" or "cancelled"."""

    def __init__(self, work: Work):
        self.state, self.share = "waiting", 0.0
        self.result: Any = None
        self.error: Exception | None = None
        self._work, self._began = work, 0.0
        self._cancelled, self._over = threading.Event(), threading.Event()

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    def wait(self, seconds: float | None = None) -> bool:
        """Whether the job is over, after at most this time."""
        return self._over.wait(seconds)

    def seconds_left(self) -> float | None:
        """What is left at the pace so far; None if that cannot be said."""
        if self.state != "running" or not self.share:
            return None
        return (time.monotonic() - self._began) * (1 - self.share) / self.share

    def _report(self, share: float) -> None:
        self.share = max(self.share, share)
        if self._cancelled.is_set():
            raise CancelledError

    def _run(self) -> None:
        self.state, self._began = "running", time.monotonic()
        try:
            self._report(0.0)
            self.result = self._work(self._report)
            self.state = "done"
        except CancelledError:
            self.state = "cancelled"
        except Exception as error:  # whatever goes wrong with one job, the next one gets its turn
            self.state, self.error = "failed", error
            if not isinstance(error, UserError):
                traceback.print_exception(error)  # for whoever runs the server; the user gets a sentence
        finally:
            self._over.set()


class Queue:
    """Runs jobs in a thread of its own. At most `most_waiting` wait."""

    def __init__(self, most_waiting: int):
        self._most, self._waiting, self._running = most_waiting, deque[Job](), None
        self._change = threading.Condition()
        threading.Thread(target=self._work, daemon=True, name="jobs").start()

    def submit(self, work: Work) -> Job:
        """Raises QueueFullError if too many jobs wait."""
        with self._change:
            if len(self._waiting) >= self._most:
                raise QueueFullError(f"{len(self._waiting)} jobs are waiting already: try again in a few minutes")
            job = Job(work)
            self._waiting.append(job)
            self._change.notify()
        return job

    def cancel(self, job: Job) -> None:
        """End the job: now if it waits, else at its next report of progress."""
        with self._change:
            job._cancelled.set()
            if job in self._waiting:
                self._waiting.remove(job)
                job.state = "cancelled"
                job._over.set()

    def before(self, job: Job) -> int:
        """How many jobs come before this one."""
        with self._change:
            waiting = list(self._waiting)
            return waiting.index(job) + (self._running is not None) if job in waiting else 0

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting)
                self._running = job = self._waiting.popleft()
            job._run()
            with self._change:
                self._running = None
