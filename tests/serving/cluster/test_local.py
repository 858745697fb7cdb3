"""Worker processes of one machine: wrong ones are given up, crashing ones started so often and no more."""

from __future__ import annotations

import threading

from vip_llava.serving.cluster.local import MOST_RESTARTS, RESTART_WINDOW, LocalWorker, LocalWorkers
from vip_llava.serving.cluster.signing import Secret

SECRET = Secret("the secret of the cluster's tests")


def test_workers_that_can_not_start_are_given_up_at_once() -> None:
    gone = threading.Event()
    workers = LocalWorkers(gone.set)
    workers.add("one", ["--bogus"], SECRET)
    workers.start()
    assert gone.wait(60)
    assert workers.reasons == ["the worker of one can't start as asked (see above)"]
    assert workers.workers[0].pid is None
    workers.stop(1)


def test_stopping_before_or_while_starting_leaves_nothing() -> None:
    workers = LocalWorkers(lambda: None)
    for name in ("one", "two"):
        workers.add(name, ["--check"], SECRET)
    workers.workers[0].start()
    workers.stop(60)
    assert [worker.pid for worker in workers.workers] == [None, None]


def test_restarts_are_bounded_within_a_time() -> None:
    now, told = [0.0], []
    worker = LocalWorker("one", [], SECRET, told.append, clock=lambda: now[0])
    pauses = [worker._pause(1) for _ in range(MOST_RESTARTS)]
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0]
    assert worker._pause(-9) is None
    assert told == ["the worker of one ended 6 times within 10 minutes, at last killed by signal 9"]
    now[0] += RESTART_WINDOW + 1  # long ago does not count
    assert worker._pause(1) == 0.5
    assert worker._pause(2) is None and "can't start as asked" in told[-1]
