"""Registration, expiry and dispatch, with the test's own clock and random numbers."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from pydantic import ValidationError

from vip_llava.errors import ServingError
from vip_llava.serving.cluster.registry import WorkerRegistry, WorkerStatus

A, B, C = (f"http://10.0.0.{number}:21002" for number in (1, 2, 3))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def registry(clock: Clock, dispatch: str = "shortest_queue", capacity: int = 256) -> WorkerRegistry:
    return WorkerRegistry(dispatch, expiry=90, clock=clock, rng=random.Random(7), capacity=capacity)


def status(*models: str, speed: float = 1.0, queue: int = 0) -> WorkerStatus:
    return WorkerStatus(model_names=list(models), speed=speed, queue_length=queue)


def test_workers_register_and_unregister(clock: Clock) -> None:
    known = registry(clock)
    assert known.models() == [] and known.pick("m") is None
    known.add(A, status("m", "n"))
    known.add(B, status("n"))
    assert known.models() == ["m", "n"]
    assert [worker.address for worker in known.available] == [A, B]
    assert known.drop(A, "left") and not known.drop(A, "left")
    assert known.models() == ["n"] and known.pick("m") is None


def test_a_worker_that_registers_again_is_updated(clock: Clock) -> None:
    known = registry(clock)
    first = known.add(A, status("m"))
    first.in_flight = 3
    again = known.add(A, status("n", speed=2, queue=1))
    assert again is first and again.models == ("n",) and again.load == 3


def test_workers_without_heartbeats_are_dropped(clock: Clock) -> None:
    known = registry(clock)
    silent = known.add(A, status("m"))
    known.add(B, status("m"))
    trusted = known.add(C, status("m"), expires=False)
    clock.now += 89
    assert known.heartbeat(B, 5) and known.drop_expired() == []
    clock.now += 2
    assert known.drop_expired() == [silent]
    assert "no heartbeat" in silent.drop_reason and not trusted.drop_reason
    assert not known.heartbeat(A, 0)  # it must register again
    assert {worker.address for worker in known.available} == {B, C}


def test_drop_callbacks_run_once(clock: Clock) -> None:
    known = registry(clock)
    worker, calls = known.add(A, status("m")), []
    worker.on_drop(lambda: calls.append("first"))
    cancel = worker.on_drop(lambda: calls.append("second"))
    cancel()
    cancel()
    known.drop(A, "killed")
    assert calls == ["first"] and worker.drop_reason == "killed"
    worker.on_drop(lambda: calls.append("late"))
    assert calls == ["first", "late"]


def test_shortest_queue_counts_requests_in_flight(clock: Clock) -> None:
    known = registry(clock)
    known.add(A, status("m", queue=2))
    known.add(B, status("m", queue=1))
    picked = []
    for _ in range(3):
        worker = known.pick("m")
        assert worker is not None
        worker.in_flight += 1
        picked.append(worker.address)
    # B until its load equals that of A, then in turns.
    assert picked[:2] == [B, B] and picked[2] == A


def test_shortest_queue_weighs_speed_and_rotates(clock: Clock) -> None:
    known = registry(clock)
    known.add(A, status("m", speed=4, queue=4))
    known.add(B, status("m", speed=1, queue=2))
    assert known.pick("m") is known.available[0]
    known.add(A, status("m"))
    known.add(B, status("m"))
    turns = [known.pick("m") for _ in range(4)]
    assert turns[0] is turns[2] and turns[1] is turns[3] and turns[0] is not turns[1]


def test_lottery_weighs_speed(clock: Clock) -> None:
    known = registry(clock, "lottery")
    known.add(A, status("m", speed=3))
    known.add(B, status("m", speed=1))
    known.add(C, status("other", speed=100))
    drawn = Counter(worker.address for _ in range(4000) if (worker := known.pick("m")))
    assert set(drawn) == {A, B}
    assert 0.70 < drawn[A] / 4000 < 0.80


@pytest.mark.parametrize("dispatch", ["lottery", "shortest_queue"])
def test_tried_workers_are_excluded(clock: Clock, dispatch: str) -> None:
    known = registry(clock, dispatch)
    first, second = known.add(A, status("m")), known.add(B, status("m"))
    assert all(known.pick("m", {first}) is second for _ in range(20))
    assert known.pick("m", {first, second}) is None


def test_the_registry_is_bounded(clock: Clock) -> None:
    known = registry(clock, capacity=1)
    known.add(A, status("m"))
    known.add(A, status("n"))
    with pytest.raises(ServingError, match="1 workers are registered"):
        known.add(B, status("m"))


def test_unknown_dispatch_is_refused() -> None:
    with pytest.raises(ServingError, match="shortest_queue, lottery"):
        WorkerRegistry("fastest")


@pytest.mark.parametrize(
    "wrong",
    [
        {"model_names": []},
        {"model_names": ["a b"]},
        {"model_names": ["a\nb"]},
        {"model_names": ["x" * 201]},
        {"model_names": ["m"], "speed": 0},
        {"model_names": ["m"], "speed": float("nan")},
        {"model_names": ["m"], "speed": float("inf")},
        {"model_names": ["m"], "queue_length": -1},
        {"model_names": ["m"], "queue_length": "3"},
        {"model_names": ["m"], "address": "x"},
    ],
)
def test_an_invalid_status_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        WorkerStatus.model_validate(wrong)


def test_models_of_lost_workers_are_expected_for_a_while(clock: Clock) -> None:
    known = registry(clock)
    assert not known.is_expected("m")
    known.expect("own")
    for end in (known.drop, lambda address, _reason: known.unregister(address)):
        known.add(A, status("m"))
        end(A, "killed")
        assert known.is_expected("m") and not known.is_expected("other")
        clock.now += 121
        assert not known.is_expected("m") and known.is_expected("own")


def test_a_suspected_worker_gets_no_requests_until_its_heartbeat(clock: Clock) -> None:
    known = registry(clock)
    worker, calls = known.add(A, status("m")), []
    worker.on_drop(lambda: calls.append("dropped"))
    known.suspect(A)
    known.suspect(B)  # unknown
    assert known.pick("m") is None and known.models() == []
    assert known.is_expected("m") and known.available == () and known.registered == (worker,)
    assert calls == []  # its requests in flight go on
    assert known.heartbeat(A, 0) and known.pick("m") is worker
    known.suspect(A)
    known.add(A, status("m"))
    assert known.pick("m") is worker
    known.suspect(A)
    clock.now += 91
    assert known.drop_expired() == [worker] and calls == ["dropped"]
