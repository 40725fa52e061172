"""The queue: order, progress, cancelling, and failures that cost one job."""

import threading

import pytest

from msg_jax.app.jobs import Job, Queue, QueueFullError


def held(gate: threading.Event, value, order: list | None = None):
    """Work that reports 0.5 until the gate opens."""

    def work(report):
        while not gate.wait(0.002):
            report(0.5)
        if order is not None:
            order.append(value)
        return value

    return work


def test_jobs_run_one_after_another_in_their_order():
    queue, gate, order = Queue(10), threading.Event(), []
    jobs = [queue.submit(held(gate, i, order)) for i in range(4)]
    while jobs[0].state != "running" or not jobs[0].share:
        pass
    assert [queue.before(job) for job in jobs] == [0, 1, 2, 3]
    assert [job.state for job in jobs] == ["running", "waiting", "waiting", "waiting"]
    gate.set()
    assert all(job.wait(5) for job in jobs) and order == [0, 1, 2, 3]
    assert [(job.state, job.result) for job in jobs] == [("done", i) for i in range(4)]


def test_a_cancelled_job_ends_at_its_next_report_and_a_waiting_one_at_once():
    queue, gate = Queue(10), threading.Event()
    first, second, third = (queue.submit(held(gate, i)) for i in range(3))
    while first.state != "running":
        pass
    queue.cancel(second)
    assert second.is_over and second.state == "cancelled" and queue.before(third) <= 1
    queue.cancel(first)
    assert first.wait(5) and first.state == "cancelled" and first.result is None
    gate.set()
    assert third.wait(5) and third.result == 2


def test_a_failure_costs_one_job(capsys):
    queue = Queue(10)
    bad, good = queue.submit(lambda report: 1 / 0), queue.submit(lambda report: "sound")
    assert bad.wait(5) and bad.state == "failed" and isinstance(bad.error, ZeroDivisionError)
    assert good.wait(5) and good.result == "sound" and "ZeroDivisionError" in capsys.readouterr().err


def test_a_full_queue_is_refused():
    queue, gate = Queue(2), threading.Event()
    running = queue.submit(held(gate, 0))
    while running.state != "running":
        pass
    queue.submit(held(gate, 1)), queue.submit(held(gate, 2))
    with pytest.raises(QueueFullError, match="2 jobs are waiting already"):
        queue.submit(held(gate, 3))
    gate.set()


def test_time_left_follows_the_pace(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("msg_jax.app.jobs.time.monotonic", lambda: now[0])
    lefts = []

    def work(report):
        for share, later in ((0.25, 10), (0.5, 12), (0.4, 1)):  # a share never falls
            now[0] += later
            report(share)
            lefts.append(job.seconds_left())

    job = Job(work)
    assert job.seconds_left() is None
    job._run()
    assert lefts == [30.0, 22.0, 23.0] and job.seconds_left() is None and job.share == 0.5
