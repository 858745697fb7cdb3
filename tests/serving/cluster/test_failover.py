"""Requests through a controller: dispatch and failover (test 53)."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from vip_llava.serving.settings import ServerSettings


def code(answer: Any) -> str:
    return str(answer.json()["error"]["code"])


def eventually(true: Any, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


def test_a_request_is_forwarded_unchanged(cluster: Any, scripted: Any) -> None:
    controller, worker = cluster(), scripted("w", "m")
    controller.register(worker)
    sent = b'{"model":"m",  "messages":[{"role":"user","content":"\\u00e9"}]}'
    answer = controller.client.post(
        "/v1/chat/completions", content=sent, headers={"x-request-id": "abc-1"}
    )
    assert answer.json() == {"from": "w"}
    assert answer.headers["x-request-id"] == "abc-1"
    (asked,) = worker.asks
    assert asked["body"] == sent.decode()
    assert asked["x-request-id"] == "abc-1"
    assert asked["authorization"] == f"Bearer {controller.controller.secret.service_key}"


def test_models_are_listed_and_unknown_ones_refused(cluster: Any, scripted: Any) -> None:
    controller = cluster()
    nobody = controller.ask()
    assert (nobody.status_code, code(nobody)) == (503, "no_worker")
    assert "retry-after" in nobody.headers
    controller.register(scripted("a", "m", "n"))
    listed = controller.client.get("/v1/models").json()
    assert [one["id"] for one in listed["data"]] == ["m", "n"]
    wrong = controller.ask("other")
    assert (wrong.status_code, code(wrong)) == (404, "model_not_found")
    unnamed = controller.client.post("/v1/chat/completions", json={})
    assert unnamed.status_code == 404
    assert controller.client.post("/get_worker_address", json={"model": "m"}).json() == {
        "address": controller.address
    }
    assert controller.client.post("/get_worker_address", json={"model": "x"}).json() == {
        "address": ""
    }


def test_the_model_name_is_optional_with_one_model(cluster: Any, scripted: Any) -> None:
    controller = cluster()
    controller.register(scripted("a", "m"))
    assert controller.client.post("/v1/chat/completions", json={}).json() == {"from": "a"}


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 400), (b"{", 400), (b"[1]", 400), (b'{"model": 1}', 422), (b"[" * 100_000, 400)],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/get_worker_address"])
def test_malformed_requests_are_refused_by_the_controller(
    cluster: Any, scripted: Any, path: str, body: bytes, status: int
) -> None:
    controller, worker = cluster(), scripted("w")
    controller.register(worker)
    assert controller.client.post(path, content=body).status_code == status
    assert worker.asked == 0


def test_requests_spread_over_workers(cluster: Any, scripted: Any) -> None:
    controller, workers = cluster(), [scripted(name) for name in "abc"]
    for worker in workers:
        controller.register(worker)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: controller.ask().status_code, range(30)))
    assert answers == [200] * 30
    assert sum(worker.asked for worker in workers) == 30
    assert all(worker.asked >= 4 for worker in workers)
    assert all(each.in_flight == 0 for each in controller.controller.registry.available)


@pytest.mark.parametrize("act", ["die", "busy"])
def test_another_worker_takes_over(cluster: Any, scripted: Any, act: str) -> None:
    controller, bad, good = cluster(), scripted("bad"), scripted("good")
    bad.act = act
    controller.register(bad)
    controller.register(good)
    workers = controller.controller.registry.available
    answers = [controller.ask() for _ in range(4)]
    assert [answer.json() for answer in answers] == [{"from": "good"}] * 4
    assert bad.asked >= 1
    assert [worker.in_flight for worker in workers] == [0, 0]
    if act != "busy":  # a lost worker is not tried again; a busy one stays registered
        assert bad.asked == 1 and controller.addresses() == {good.address}
    else:
        assert controller.addresses() == {good.address, bad.address}


def test_a_broken_unstreamed_answer_is_retried(cluster: Any, scripted: Any) -> None:
    """An unstreamed answer is buffered, so another worker can take over."""
    controller, bad, good = cluster(), scripted("whole-bad"), scripted("good")
    bad.act = "break"
    controller.register(bad)
    controller.register(good)
    assert controller.ask().json() == {"from": "good"}
    assert bad.asked == 1


def test_a_broken_stream_ends_with_an_error(cluster: Any, scripted: Any) -> None:
    controller, worker = cluster(), scripted("w")
    worker.act = "break"
    controller.register(worker)
    answer = controller.ask(stream=True)
    first, last = [part for part in answer.text.split("\n\n") if part]
    assert first == 'data: {"begun": true}'
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "worker_lost"
    assert controller.addresses() == set()


def test_a_request_kills_at_most_two_workers(cluster: Any, scripted: Any) -> None:
    controller, workers = cluster(), [scripted(name) for name in "abcd"]
    for worker in workers:
        worker.act = "die"
        controller.register(worker)
    answer = controller.ask()
    assert (answer.status_code, code(answer)) == (503, "worker_lost")
    assert "retry-after" in answer.headers
    assert sum(worker.asked for worker in workers) == 2
    assert all(worker.address not in answer.text for worker in workers)
    for worker in workers:
        controller.signed("/unregister_worker", {"worker_name": worker.address})
    early = controller.ask()
    assert (early.status_code, code(early)) == (503, "no_worker")  # expected back


def test_dead_workers_are_skipped(cluster: Any, scripted: Any) -> None:
    controller, gone, good = cluster(), scripted("gone"), scripted("good")
    controller.register(gone)
    controller.register(good)
    gone.end()
    assert [controller.ask().json() for _ in range(3)] == [{"from": "good"}] * 3
    good.act = "busy"
    refused = controller.ask()
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "7")


def test_a_client_error_is_not_retried(cluster: Any, scripted: Any) -> None:
    controller, workers = cluster(), [scripted("a"), scripted("b")]
    for worker in workers:
        worker.act = "wrong"
        controller.register(worker)
    answer = controller.ask()
    assert (answer.status_code, code(answer)) == (422, "invalid_region")
    assert sum(worker.asked for worker in workers) == 1


@pytest.mark.parametrize("act", ["hang", "stall"])
def test_requests_do_not_wait_for_a_dropped_worker(cluster: Any, scripted: Any, act: str) -> None:
    """The connection is open, but missing heartbeats end the request."""
    controller, silent = cluster(expiry=1.0), scripted("silent")
    silent.act = act
    controller.register(silent)
    began = time.monotonic()
    answer = controller.ask(stream=True)
    assert time.monotonic() - began < 8
    if act == "hang":
        assert (answer.status_code, code(answer)) == (503, "worker_lost")
    else:
        assert '"worker_lost"' in answer.text


def test_a_broken_connection_does_not_affect_other_answers(cluster: Any, scripted: Any) -> None:
    """The worker gets no new requests until its heartbeat, and its other answers finish."""
    controller, worker = cluster(), scripted("w")
    worker.act = "either"
    controller.register(worker)
    with controller.client.stream(
        "POST", "/v1/chat/completions", json={"model": "m", "stream": True}
    ) as answer:
        pieces = answer.iter_text()
        assert next(pieces) == 'data: {"begun": true}\n\n'
        assert controller.ask().status_code == 503
        assert controller.addresses() == set()
        worker.release.set()
        assert "".join(pieces) == 'data: {"whole": true}\n\n'
    beat = {"worker_name": worker.address, "queue_length": 0}
    assert controller.signed("/receive_heart_beat", beat).json() == {"exist": True}
    assert controller.addresses() == {worker.address}


def test_a_disconnect_cancels_the_workers_request(cluster: Any, scripted: Any) -> None:
    controller, worker = cluster(), scripted("w")
    worker.act = "hang"
    controller.register(worker)
    (registered,) = controller.controller.registry.available
    for stream in (False, True):
        worker.release.clear()
        worker.left.clear()
        with pytest.raises(httpx.ReadTimeout):
            controller.client.post(
                "/v1/chat/completions", json={"model": "m", "stream": stream}, timeout=0.3
            )
        eventually(lambda: registered.in_flight == 0)
        worker.release.set()
        assert worker.left.wait(10)
    worker.left.clear()
    with controller.client.stream("POST", "/v1/chat/completions", json={"model": "m"}) as answer:
        assert next(answer.iter_raw())
    assert worker.left.wait(10)
    eventually(lambda: registered.in_flight == 0)
    assert controller.addresses() == {worker.address}


def test_the_legacy_stream_is_forwarded(cluster: Any, scripted: Any) -> None:
    controller, worker = cluster(), scripted("w")
    controller.register(worker)
    answer = controller.client.post("/worker_generate_stream", json={"model": "m", "prompt": "x"})
    assert lines(answer) == [("a", 0), ("ab", 0)]


def test_errors_in_the_legacy_stream(cluster: Any, scripted: Any) -> None:
    controller, worker = cluster(), scripted("w")
    ask = {"model": "m", "prompt": "x"}
    nobody = controller.client.post("/worker_generate_stream", json=ask)
    assert lines(nobody) == [("no worker is available yet", 2)]
    worker.act = "break"
    controller.register(worker)
    broken = lines(controller.client.post("/worker_generate_stream", json=ask))
    assert broken[-1][1] == 1 and "during its answer" in broken[-1][0]
    assert controller.client.post("/worker_generate_stream", content=b"{").status_code == 400


def lines(answer: httpx.Response) -> list[tuple[str, int]]:
    found = [json.loads(part) for part in answer.content.split(b"\0") if part.startswith(b"{")]
    return [(one["text"], one.get("error_code", 0)) for one in found]


def test_workers_come_and_go_under_load(cluster: Any, scripted: Any) -> None:
    """Sixteen clients; workers die, unregister and register: every request is answered."""
    settings = ServerSettings.model_validate({"port": 0, "limits": {"rate": 0}})
    controller, steady = cluster(settings), scripted("steady")
    controller.register(steady)
    ended = threading.Event()

    def ask(_: int) -> list[int]:
        found = []
        with httpx.Client(base_url=controller.address, timeout=20, trust_env=False) as client:
            while not ended.is_set():
                found.append(client.post("/v1/chat/completions", json={"model": "m"}).status_code)
        return found

    with ThreadPoolExecutor(16) as pool:
        running = [pool.submit(ask, number) for number in range(16)]
        try:
            for number in range(6):
                come_and_go(controller, scripted(f"other-{number}"), number)
        finally:
            ended.set()
        answers = [status for each in running for status in each.result(timeout=30)]
    assert len(answers) > 50 and set(answers) == {200}


def come_and_go(controller: Any, worker: Any, number: int) -> None:
    # Never two that die at the same time: a request that kills two workers fails.
    worker.act = ("answer", "busy", "die")[number % 3]
    controller.register(worker)
    time.sleep(0.1)
    if number % 2:
        controller.signed("/unregister_worker", {"worker_name": worker.address})
    else:
        worker.end()
