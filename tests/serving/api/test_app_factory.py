"""The base application on a real server: request ids, keys, hosts, origins, bodies, rates, errors, metrics."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI, Request

from vip_llava.errors import RegionError, ServingError
from vip_llava.serving.middleware.app_factory import context_of, create_base_app
from vip_llava.serving.middleware.server import background, listen
from vip_llava.serving.settings import ServerSettings, is_loopback, make_settings

KEY = "a-key-of-enough-characters"
Served = Callable[..., httpx.Client]


def with_routes(settings: ServerSettings) -> FastAPI:
    app = create_base_app(settings, title="test")

    @app.post("/echo")
    async def echo(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    @app.get("/fail/{kind}")
    async def fail(kind: str) -> None:
        raise {"ours": RegionError("no such corner"), "bug": ZeroDivisionError("secret 4711")}[kind]

    return app


@pytest.fixture
def served() -> Iterator[Served]:
    """`served(keys=[...], limits={...})` starts a server and returns a client."""
    with ExitStack() as stack:

        def start(**values: Any) -> httpx.Client:
            settings = make_settings(port=0, **values)
            app = with_routes(settings)
            address = stack.enter_context(background(app, settings))
            client = stack.enter_context(httpx.Client(base_url=address, timeout=10))
            client.app = app  # type: ignore[attr-defined]
            return client

        yield start


def told(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of an error in the standard format."""
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error["code"]


def test_every_response_has_a_request_id(served: Served) -> None:
    client = served()
    first = client.get("/health").headers["x-request-id"]
    second = client.get("/nowhere").headers["x-request-id"]
    assert first != second
    assert client.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == (
        "mine-1"
    )
    made = client.get("/health", headers={"x-request-id": "two words"}).headers["x-request-id"]
    assert made != "two words"


def test_every_route_but_health_requires_the_key(served: Served) -> None:
    client = served(keys=[KEY])
    assert client.get("/health").status_code == 200
    routes = {path for path in client.app.openapi()["paths"] if path != "/health"}  # type: ignore[attr-defined]
    assert {"/ready", "/metrics", "/echo"} <= routes
    for path in (*routes, "/openapi.json", "/nowhere"):
        method = "POST" if path == "/echo" else "GET"
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": KEY}):
            answer = client.request(method, path, headers=headers)
            assert told(answer) == (401, "invalid_api_key"), path
            assert answer.headers["www-authenticate"] == "Bearer"
    good = {"authorization": f"Bearer {KEY}"}
    assert client.get("/ready", headers=good).status_code == 200
    assert client.post("/echo", headers=good, content=b"abc").json() == {"bytes": 3}


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key is compared with `hmac.compare_digest`, whatever was sent."""
    import hmac

    from vip_llava.serving.middleware.access import AccessPolicy
    from vip_llava.serving.middleware.errors import ApiError

    seen: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def counted(one: bytes, other: bytes) -> bool:
        seen.append((len(one), len(other)))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    access = AccessPolicy(make_settings(keys=[KEY, KEY + "2", KEY + "3"]))
    assert access.check_key({"authorization": f"Bearer {KEY}"}) is not None
    for wrong in ("", "x", KEY[:-1], KEY + "4", "\ud800"):
        with pytest.raises(ApiError):
            access.check_key({"authorization": f"Bearer {wrong}"})
    assert seen == [(32, 32)] * 18


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:80", 200),
        ("LOCALHOST.", 200),
        ("127.0.0.1", 200),
        ("[::1]:99", 200),
        ("ours.example:8000", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("", 421),
    ],
)
def test_the_host_header_is_checked(served: Served, host: str, status: int) -> None:
    client = served(hosts=["ours.example"])
    assert client.get("/ready", headers={"host": host}).status_code == status


def test_pages_of_other_sites_are_refused(served: Served) -> None:
    client = served()
    own = str(client.base_url).rstrip("/")
    assert client.post("/echo", headers={"origin": own}).status_code == 200
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
    ):
        answer = client.post("/echo", headers=headers, content=b"{}")
        assert told(answer) == (403, "wrong_origin")
        assert "access-control-allow-origin" not in answer.headers
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in client.options("/echo", headers=asked).headers


def test_an_allowed_origin_is_accepted(served: Served) -> None:
    client = served(origins=["https://good.example"])
    asked = {"origin": "https://good.example", "access-control-request-method": "POST"}
    allowed = client.options("/echo", headers=asked)
    assert allowed.headers["access-control-allow-origin"] == "https://good.example"
    answer = client.post("/echo", headers={"origin": "https://good.example"})
    assert answer.headers["access-control-allow-origin"] == "https://good.example"
    refused = client.post("/echo", headers={"origin": "https://evil.example"})
    assert told(refused) == (403, "wrong_origin")


def test_bodies_are_limited_declared_or_not(served: Served) -> None:
    client = served(limits={"body_bytes": 1000})
    assert client.post("/echo", content=b"x" * 1000).json() == {"bytes": 1000}
    assert told(client.post("/echo", content=b"x" * 1001)) == (413, "body_too_large")

    def pieces() -> Iterator[bytes]:
        for _ in range(5):
            yield b"x" * 250

    assert told(client.post("/echo", content=pieces())) == (413, "body_too_large")


def test_a_slow_request_body_times_out(served: Served) -> None:
    client = served(limits={"body_seconds": 0.3})
    at = urlsplit(str(client.base_url))
    with socket.create_connection((at.hostname, at.port), timeout=5) as raw:  # type: ignore[arg-type]
        raw.sendall(b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\nxx")
        assert raw.recv(100).startswith(b"HTTP/1.1 408 ")


def test_the_total_of_all_bodies_is_limited(served: Served) -> None:
    client = served(limits={"bodies_bytes": 3000})
    for _ in range(5):
        assert client.post("/echo", content=b"x" * 2000).status_code == 200
    refused = client.post("/echo", content=b"x" * 3001)
    assert told(refused) == (503, "bodies_full")
    assert refused.headers["retry-after"] == "1"
    assert client.post("/echo", content=b"x" * 2000).status_code == 200


def test_a_rate_limited_client_gets_retry_after(served: Served) -> None:
    client = served(limits={"rate": 60, "burst": 3})
    assert [client.post("/echo").status_code for _ in range(3)] == [200] * 3
    refused = client.post("/echo")
    assert told(refused) == (429, "rate_limited")
    assert refused.headers["retry-after"] == "1"
    # Monitoring paths are not limited.
    assert [client.get("/ready").status_code for _ in range(5)] == [200] * 5


def test_wrong_keys_are_rate_limited(served: Served) -> None:
    client = served(keys=[KEY], limits={"rate": 60, "burst": 3})
    answers = [client.get("/ready").status_code for _ in range(5)]
    assert answers == [401, 401, 401, 429, 429]
    assert client.post("/echo", headers={"authorization": f"Bearer {KEY}"}).status_code == 200


def test_errors_have_one_format_and_bugs_reveal_nothing(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    client = served()
    assert told(client.get("/fail/ours")) == (422, "invalid_region")
    assert told(client.get("/nowhere")) == (404, "not_found")
    assert told(client.get("/echo")) == (405, "method_not_allowed")
    with caplog.at_level(logging.INFO):
        answer = client.get("/fail/bug")
    assert told(answer) == (500, "internal_error")
    assert answer.headers["x-request-id"] in answer.json()["error"]["message"]
    assert "4711" not in answer.text + caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_metrics_are_labelled_by_route(served: Served) -> None:
    client = served()
    client.post("/echo", content=b"abc")
    for number in range(3):
        client.get(f"/invented-{number}")
    http_client = http.client.HTTPConnection(urlsplit(str(client.base_url)).netloc)
    http_client.request("INVENT", "/echo")
    http_client.getresponse().read()
    http_client.close()
    text = client.get("/metrics").text
    assert 'vip_llava_http_requests_total{method="POST",path="/echo",status="200"} 1.0' in text
    assert 'vip_llava_http_requests_total{method="GET",path="other",status="404"} 3.0' in text
    assert "invented" not in text
    assert "INVENT" not in text


def test_not_ready_has_a_reason(served: Served) -> None:
    client = served()
    reasons: list[str | None] = [None, "the model is loading"]
    context_of(client.app).add_readiness_check(lambda: reasons[-1])  # type: ignore[attr-defined]
    answer = client.get("/ready")
    assert told(answer) == (503, "not_ready")
    assert "loading" in answer.text
    assert "retry-after" in answer.headers
    reasons.pop()
    assert client.get("/ready").status_code == 200


def test_a_draining_server_refuses_new_requests(served: Served) -> None:
    client = served()
    context_of(client.app).draining = True  # type: ignore[attr-defined]
    assert told(client.post("/echo")) == (503, "stopping")
    assert told(client.get("/ready")) == (503, "not_ready")
    assert client.get("/health").status_code == 200


def test_idle_and_surplus_connections_are_closed(served: Served) -> None:
    client = served(limits={"header_seconds": 0.5, "client_connections": 20})
    at = urlsplit(str(client.base_url))
    with ExitStack() as stack:
        idle = [
            stack.enter_context(socket.create_connection((at.hostname, at.port), timeout=5))  # type: ignore[arg-type]
            for _ in range(19)
        ]
        idle[0].sendall(b"GET /health HT")  # incomplete headers
        assert client.get("/health").status_code == 200
        surplus = stack.enter_context(socket.create_connection((at.hostname, at.port), timeout=5))  # type: ignore[arg-type]
        assert ended(surplus)
        began = time.monotonic()
        assert all(ended(one) for one in idle)
        assert time.monotonic() - began < 4.5  # less than the timeout of the test's sockets
    # With a new connection: the client's may just be closed as idle.
    fresh = httpx.get(client.base_url.join("/health"), trust_env=False)
    assert fresh.status_code == 200


def ended(one: socket.socket) -> bool:
    """Whether the server closes the connection without a response."""
    try:
        return one.recv(10) == b""
    except ConnectionResetError:
        return True


def test_the_default_settings_are_closed() -> None:
    settings = ServerSettings()
    assert is_loopback(settings.host)
    assert settings.origins == settings.fetch_hosts == ()
    assert settings.log_content is False
    settings.check_open()
    for host in ("0.0.0.0", "::", "192.0.2.1", "ours.example"):
        with pytest.raises(ServingError, match="API key"):
            make_settings(host=host).check_open()
        make_settings(host=host, keys=[KEY]).check_open()
        make_settings(host=host, open_to_all=True).check_open()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"port": 70000}, "port"),
        ({"keys": ["short"]}, "keys.*16"),
        ({"origins": ["*"]}, "origins.*must be an origin"),
        ({"limits": {"tokens": 0}}, "limits.tokens"),
        ({"limits": {"token": 5}}, "limits.token"),
    ],
)
def test_invalid_settings_are_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ServingError, match=words):
        make_settings(**values)


def test_keys_are_not_printed() -> None:
    settings = make_settings(keys=[KEY])
    assert KEY not in repr(settings) + settings.model_dump_json()
    with pytest.raises(ServingError) as error:
        make_settings(keys=["too short"])
    assert "too short" not in str(error.value)


def test_a_taken_port_is_reported() -> None:
    first = listen(make_settings(port=0))
    port = first.getsockname()[1]
    with first, pytest.raises(ServingError, match=f"port {port}"):
        listen(make_settings(port=port))


def test_every_limit_is_described() -> None:
    fields = type(ServerSettings().limits).model_fields
    assert len(fields) > 20
    assert all(field.description for field in fields.values())
    json.dumps(ServerSettings.model_json_schema())
