"""Admission of workers: forged, replayed, unreachable and unproved registrations are refused (test 54)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import pytest

from vip_llava.errors import ServingError
from vip_llava.serving.cluster.admission import AddressAllowList
from vip_llava.serving.cluster.controller import LOOPBACK
from vip_llava.serving.cluster.heartbeat import HeartbeatClient
from vip_llava.serving.cluster.signing import Secret
from vip_llava.serving.middleware.errors import ApiError
from vip_llava.serving.settings import ServerSettings

STRANGER = Secret("a secret that is not the cluster's")


def code(answer: Any) -> str:
    return str(answer.json()["error"]["code"])


def test_a_worker_registers_and_unregisters(cluster: Any, scripted: Any) -> None:
    controller, worker = cluster(), scripted("w", "m", "n")
    assert controller.client.get("/ready").status_code == 503
    assert controller.register(worker).json() == {"exist": True, "heart_beat_seconds": 15}
    assert controller.client.post("/list_models").json() == {"models": ["m", "n"]}
    assert controller.client.get("/ready").status_code == 200
    assert b"vip_llava_workers 1.0" in controller.client.get("/metrics").content
    name = {"worker_name": worker.address}
    beat = controller.signed("/receive_heart_beat", {**name, "queue_length": 3})
    assert beat.json() == {"exist": True}
    (registered,) = controller.controller.registry.available
    assert (registered.load, registered.speed) == (3, 1.0)
    assert controller.signed("/unregister_worker", name).json() == {"exist": True}
    assert controller.client.post("/list_models").json() == {"models": []}


def test_forged_registrations_are_refused(cluster: Any, scripted: Any) -> None:
    controller, worker = cluster(), scripted("w")
    registration = {"worker_name": worker.address}
    unsigned = controller.client.post("/register_worker", json=registration)
    assert (unsigned.status_code, code(unsigned)) == (403, "not_a_member")
    stranger = controller.signed("/register_worker", registration, STRANGER)
    assert (stranger.status_code, code(stranger)) == (403, "not_a_member")
    assert controller.addresses() == set() and worker.asked == 0


@pytest.mark.parametrize("path", ["/receive_heart_beat", "/unregister_worker", "/register_worker"])
def test_a_replayed_request_is_refused(cluster: Any, scripted: Any, path: str) -> None:
    controller, worker = cluster(), scripted("w")
    controller.register(worker)
    body = b'{"worker_name": "%s"}' % worker.address.encode()
    fields = controller.controller.secret.sign("POST", path, body)
    assert controller.client.post(path, content=body, headers=fields).status_code == 200
    again = controller.client.post(path, content=body, headers=fields)
    assert (again.status_code, code(again)) == (403, "not_a_member")
    other = "/receive_heart_beat" if path != "/receive_heart_beat" else "/unregister_worker"
    moved = controller.client.post(
        other, content=body, headers=controller.controller.secret.sign("POST", path, body)
    )
    assert moved.status_code == 403


def test_a_server_without_the_secret_is_not_admitted(cluster: Any, scripted: Any) -> None:
    """A signed registration with the address of a server that does not know the secret."""
    controller, impostor = cluster(), scripted("w", secret=STRANGER)
    answer = controller.signed("/register_worker", {"worker_name": impostor.address})
    assert (answer.status_code, code(answer)) == (403, "worker_not_proved")
    assert controller.addresses() == set()


def test_a_registration_of_other_models_is_refused(cluster: Any, scripted: Any) -> None:
    controller, worker = cluster(), scripted("w", "m")
    status = {"model_names": ["m", "gpt"], "speed": 1.0, "queue_length": 0}
    asked = {"worker_name": worker.address, "worker_status": status}
    answer = controller.signed("/register_worker", asked)
    assert (answer.status_code, code(answer)) == (409, "wrong_models")
    assert controller.addresses() == set()


def test_an_unreachable_worker_is_not_admitted(cluster: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        answer = cluster().signed("/register_worker", {"worker_name": address})
    assert (answer.status_code, code(answer)) == (502, "worker_unreachable")
    assert address not in answer.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"worker_name": 3}',
        b'{"worker_name": "http://127.0.0.1:9", "check_heart_beat": "no"}',
        b'{"worker_name": "http://127.0.0.1:9", "more": 1}',
        b'{"worker_name": "http://127.0.0.1:9", "worker_status": {"model_names": []}}',
    ],
)
def test_malformed_signed_registrations_are_refused(cluster: Any, body: bytes) -> None:
    answer = cluster().signed("/register_worker", body)
    assert answer.status_code in (400, 422)


@pytest.mark.parametrize(
    "address",
    [
        "http://10.0.0.1:80",
        "http://169.254.169.254:80",
        "http://[fe80::1]:80",
        "http://0.0.0.0:80",
        "http://2130706433:80",
        "http://0x7f.1:80",
        "http://0177.0.0.1:80",
        "http://[::ffff:10.0.0.1]:80",
        "http://example.org:80",
        "http://127.0.0.1.example.org:80",
    ],
)
def test_addresses_that_are_not_allowed_are_refused(address: str) -> None:
    with pytest.raises(ApiError, match=r"--allow-worker|must be the URL") as caught:
        AddressAllowList(LOOPBACK).check(address)
    assert caught.value.code in ("address_not_allowed", "invalid_request")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:80",
        "http://127.0.0.1",
        "ftp://127.0.0.1:80",
        "file:///etc/passwd",
        "http://user@127.0.0.1:80",
        "http://127.0.0.1:80/x",
        "http://127.0.0.1:80?x=1",
        "http://127.0.0.1:80#x",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:80\\@10.0.0.1",
        "http://127.0.0.1\t:80",
        "http://127.0.0.1:0080",
        "http://[::1%25eth0]:80",
        "",
    ],
)
def test_invalid_worker_urls_are_refused(address: str) -> None:
    with pytest.raises(ApiError) as caught:
        AddressAllowList(LOOPBACK).check(address)
    assert caught.value.status in (403, 422)


def test_allowed_networks_and_names() -> None:
    allowed = AddressAllowList(["10.1.0.0/16", "2001:db8::/32", "Worker-1.example.org."])
    for address in (
        "http://10.1.2.3:80",
        "https://[2001:db8::5]:443",
        "http://worker-1.example.org:80",
        "http://[::ffff:10.1.2.3]:80",
    ):
        assert allowed.check(address + "/") == address
    for address in ("http://127.0.0.1:80", "http://worker-2.example.org:80"):
        with pytest.raises(ApiError):
            allowed.check(address)
    for wrong in ("10.1.0.0/99", "10.1", "http://x", "a b", "", "*"):
        with pytest.raises(ServingError, match="must be a network, an address or a host name"):
            AddressAllowList([wrong])


def test_workers_register_at_a_controller_with_api_keys(
    cluster: Any, scripted: Any, heartbeat_client: Any
) -> None:
    key = "a-key-of-the-operator"
    settings = ServerSettings.model_validate({"port": 0, "keys": [key]})
    controller, worker = cluster(settings), scripted("w")

    # It does not unregister.
    asyncio.run(beat_once(heartbeat_client(controller, worker)))
    assert controller.client.post("/list_models").status_code == 401
    assert controller.ask().status_code == 401
    fields = {"authorization": f"Bearer {key}"}
    assert controller.client.post("/list_models", headers=fields).json() == {"models": ["m"]}
    answer = controller.client.post("/v1/chat/completions", json={"model": "m"}, headers=fields)
    assert answer.json() == {"from": "w"}
    # The client's key stays at the controller.
    assert key not in str(worker.asks)


def test_a_worker_registers_again_after_it_was_unregistered(
    cluster: Any, scripted: Any, heartbeat_client: Any
) -> None:
    controller, worker = cluster(expiry=1.5), scripted("w")

    async def life() -> None:
        member: HeartbeatClient = heartbeat_client(controller, worker)
        task = asyncio.ensure_future(member.run())
        await seen(controller, {worker.address})
        await asyncio.sleep(2)  # longer than the expiry: its heartbeats keep it registered
        assert controller.addresses() == {worker.address}
        gone = {"worker_name": worker.address}
        await asyncio.to_thread(controller.signed, "/unregister_worker", gone)
        assert controller.addresses() == set()
        await seen(controller, {worker.address})  # it registers again at its next heartbeat
        task.cancel()
        await seen(controller, set())  # no heartbeats
        await member.beat()
        await member.unregister()
        await member.aclose()
        assert controller.addresses() == set()

    asyncio.run(life())


async def beat_once(member: HeartbeatClient) -> None:
    """Register or send a heartbeat, and close the connection."""
    async with contextlib.aclosing(member):
        await member.beat()


async def seen(controller: Any, addresses: set[str]) -> None:
    async with asyncio.timeout(10):
        while controller.addresses() != addresses:
            await asyncio.sleep(0.02)


def test_a_worker_with_another_secret_is_refused(
    cluster: Any, scripted: Any, heartbeat_client: Any
) -> None:
    controller, worker = cluster(), scripted("w")
    with pytest.raises(ServingError, match="wrong signature"):
        asyncio.run(beat_once(heartbeat_client(controller, worker, STRANGER)))
    with pytest.raises(ServingError, match="does not respond"):
        asyncio.run(beat_once(heartbeat_client("http://127.0.0.1:9", worker)))
    for wrong in ("127.0.0.1:9", "http://", "http://127.0.0.1/x"):
        with pytest.raises(ServingError, match="must be the URL of a server"):
            heartbeat_client(wrong, worker)


def test_refresh_drops_impostors_and_suspects_silent_workers(cluster: Any, scripted: Any) -> None:
    controller, stays, goes = cluster(), scripted("a", "m"), scripted("b", "n")
    silent = scripted("c", "o")
    for worker in (stays, goes, silent):
        controller.register(worker)
    silent.end()
    goes.secret = STRANGER
    stays.models = ["m", "new"]
    answer = controller.client.post("/refresh_all_workers")
    assert (answer.status_code, answer.json()) == (200, None)
    assert controller.client.post("/list_models").json() == {"models": ["m", "new"]}
    known = {each.address for each in controller.controller.registry.registered}
    assert known == {stays.address, silent.address}


def test_client_rate_limits_do_not_affect_workers(cluster: Any, scripted: Any) -> None:
    limits = {"rate": 1, "burst": 5}
    controller = cluster(ServerSettings.model_validate({"port": 0, "limits": limits}))
    worker = scripted("w")
    controller.register(worker)
    assert {controller.ask().status_code for _ in range(8)} == {200, 429}
    beat = {"worker_name": worker.address, "queue_length": 0}
    assert [controller.signed("/receive_heart_beat", beat).status_code for _ in range(4)] == [
        200
    ] * 4
