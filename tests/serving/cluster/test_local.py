"""Worker processes: usage errors are given up at once, crashes restarted a limited number of times."""

from __future__ import annotations

import threading

from vip_llava.serving.cluster.signing import Secret
from vip_llava.serving.cluster.worker_processes import (
    MAX_RESTARTS,
    RESTART_WINDOW,
    WorkerProcess,
    WorkerProcesses,
)

SECRET = Secret("the secret of the cluster's tests")


def test_usage_errors_are_given_up_at_once() -> None:
    gone = threading.Event()
    workers = WorkerProcesses(gone.set)
    workers.add("one", ["--bogus"], SECRET)
    workers.start()
    assert gone.wait(60)
    assert workers.reasons == ["the worker of one can't start (see above)"]
    assert workers.workers[0].pid is None
    workers.stop(1)


def test_stopping_during_start_leaves_no_process() -> None:
    workers = WorkerProcesses(lambda: None)
    for name in ("one", "two"):
        workers.add(name, ["--check"], SECRET)
    workers.workers[0].start()
    workers.stop(60)
    assert [worker.pid for worker in workers.workers] == [None, None]


def test_restarts_are_limited() -> None:
    now, reasons = [0.0], []
    worker = WorkerProcess("one", [], SECRET, reasons.append, clock=lambda: now[0])
    backoffs = [worker._backoff(1) for _ in range(MAX_RESTARTS)]
    assert backoffs == [0.5, 1.0, 2.0, 4.0, 8.0]
    assert worker._backoff(-9) is None
    assert reasons == [
        "the worker of one exited 6 times within 10 minutes, the last time with signal 9"
    ]
    now[0] += RESTART_WINDOW + 1  # the window has passed
    assert worker._backoff(1) == 0.5
    assert worker._backoff(2) is None and "can't start" in reasons[-1]
