"""Fetching image URLs: closed by default, and protected against SSRF if hosts are allowed.

The tests resolve host names themselves, so that no traffic leaves the machine; a TLS server on
loopback serves the files.
"""

from __future__ import annotations

import ast
import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trustme

from vip_llava.errors import ServingError
from vip_llava.serving.api.fetch import ImageFetcher, is_public, parse_url
from vip_llava.serving.middleware.errors import ApiError
from vip_llava.serving.settings import Limits, make_settings

SOURCE = Path(__file__).parents[3] / "src" / "vip_llava"
PUBLIC = "93.184.216.34"
Talk = Callable[[ssl.SSLSocket, str], None]


def refused(
    address: str,
    hosts: Sequence[str] = ("images.example",),
    answers: Sequence[str] = (PUBLIC,),
    **more: Any,
) -> ApiError:
    """The error of fetching a URL; no connection may be opened."""

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return answers

    fetcher = ImageFetcher(hosts, Limits(fetch_seconds=2), resolve=resolve, **more)
    with pytest.raises(ApiError) as caught:
        asyncio.run(fetcher.fetch(address))
    return caught.value


# 1 -----------------------------------------------------------------------------------------------


def test_the_default_fetches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *found, **_: asked.append(found))
    fetcher = ImageFetcher(make_settings().fetch_hosts, Limits())
    for address in ("https://images.example/a.png", "https://localhost/", "https://1.1.1.1/"):
        with pytest.raises(ApiError) as caught:
            asyncio.run(fetcher.fetch(address))
        assert caught.value.code == "address_refused"
    assert asked == []


# 2 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "host", "same"),
    [
        ("images.example", "images.example", True),
        ("images.example", "IMAGES.Example.", True),
        ("Images.EXAMPLE.", "images.example", True),
        ("bücher.example", "xn--bcher-kva.example", True),
        ("xn--bcher-kva.example", "BÜCHER.example", True),
        (
            "images.example",
            "ｉmages.example",
            True,
        ),  # full width: the same name after normalization
        ("images.example:8443", "images.example:8443", True),
        ("images.example", "images.example:8443", False),
        ("images.example", "www.images.example", False),
        ("images.example", "images.example.evil.example", False),
        ("images.example", "evilimages.example", False),
        ("images.example", "images-example", False),
        ("images.example", "images.exаmple", False),  # a Cyrillic letter
    ],
)
def test_allowed_hosts_match_exactly(listed: str, host: str, same: bool) -> None:
    # An allowed host fails later with another message, because its address is not public.
    error = refused(f"https://{host}/a.png", [listed], ["127.0.0.1"])
    assert ("operator allows" not in error.message) == same


@pytest.mark.parametrize("entry", ["", "*", "*.example", "1.2.3.4", "a b", "a.example:x", "[::1]"])
def test_an_invalid_allowed_host_is_an_error(entry: str) -> None:
    with pytest.raises(ServingError, match="fetch_hosts"):
        make_settings(fetch_hosts=[entry])


# 3, 4, 11 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "https://user@images.example/a.png",
        "https://user:password@images.example/a.png",
        "https://images.example@evil.example/",
        "https://evil.example#@images.example/",
        "https://images.example#.evil.example/",
        "https://evil.example\\@images.example/",
        "https://images.example\\.evil.example/",
        "https:\\\\images.example/a.png",
        "https:///images.example/a.png",
        "https://images.example:443:80/",
        "https://images.example:0/",
        "https://images.example:99999/",
        "https://images.example:/",
        "https://images.example/a b.png",
        "https://images.example/a\tb.png",
        "https://images.example/a\r\nHost: evil.example",
        "https://pic\ttures.example/",
        "https://pic\ntures.example/",
        " https://images.example/",
        "https://images%2eexample/",
        "https://%70ictures.example/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[fe80::1%25eth0]/",
        "https://[64:ff9b::7f00:1]/",
        "https://127.0.0.1/",
        "https://127.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0x7f.1/",
        "https://017700000001/",
        "https://0177.0.0.1/",
        "https://127.0.0.1./",
        "https://１２７.0.0.1/",
        "https://127。0。0。1/",
        "https://169.254.169.254/latest/meta-data/",
        "https://.example/",
        "https://a..example/",
        "https:///",
        "https://",
        "http://images.example/a.png",
        "file:///etc/hostname",
        "file://images.example/etc/hostname",
        "ftp://images.example/a.png",
        "gopher://images.example/1",
        "dict://images.example/",
        "//images.example/a.png",
        "\\\\images.example\\share\\a.png",
        "jar:https://images.example/a.png",
        "https://images.example/" + "a" * 3000,
    ],
)
def test_ambiguous_urls_are_refused(address: str) -> None:
    for hosts in (["images.example"], ["localhost", "images.example"]):
        error = refused(address, hosts, ["127.0.0.1"])
        assert (error.status, error.code) == (422, "address_refused")


def test_an_ordinary_url_is_parsed() -> None:
    target = parse_url("https://Images.example:8443/a%20b/c.png?size=2&x=[1]".replace("[1]", "1"))
    assert (target.host, target.port) == ("images.example", 8443)
    assert target.path == "/a%20b/c.png?size=2&x=1"


# 4, 5, 6 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1",
        "169.254.169.254", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::7f00:1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b:1::a00:1",
        "2002:7f00:1::", "2001:db8::1", "2001:0:0:0:0:0:80ff:fffe", "not an address", "",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    assert not is_public(address)
    error = refused("https://images.example/", answers=[address])
    assert error.code == "address_refused"
    assert error.message == "this host does not resolve to public addresses"


@pytest.mark.parametrize("address", [PUBLIC, "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::101:101"])
def test_public_addresses_are_recognized(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("answers", [[PUBLIC, "10.0.0.1"], ["::1", PUBLIC], []])
def test_all_addresses_of_a_host_must_be_public(answers: list[str]) -> None:
    assert refused("https://images.example/", answers=answers).code == "address_refused"


# 7-10, 12: a real server -------------------------------------------------------------------------


class Host:
    """A TLS server for the test host names; `talk` answers each connection."""

    def __init__(self, talk: Talk, names: Sequence[str]) -> None:
        authority = trustme.CA()
        self.tls = ssl.create_default_context()
        authority.configure_trust(self.tls)
        served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*names).configure_cert(served)
        self._served = served
        self._talk = talk
        self.requests: list[str] = []
        self.dialled: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._socket.accept()
            except OSError:
                return
            try:
                with plain, self._served.wrap_socket(plain, server_side=True) as secure:
                    secure.settimeout(5)
                    head = b""
                    while not head.endswith(b"\r\n\r\n"):
                        head += secure.recv(1000)
                    self.requests.append(head.decode())
                    self._talk(secure, head.decode())
            except OSError:
                continue

    def close(self) -> None:
        self._socket.close()
        self._thread.join(0.1)

    def fetch(self, path: str, host: str = "images.example", **limits: Any) -> bytes:
        """Fetch from it by name; only the first resolved address may be connected to."""

        async def resolve(name: str, _port: int) -> Sequence[str]:
            self.dialled.append(name)
            # DNS rebinding: a second lookup returns another address.
            first = self.dialled.count(name) == 1
            return ["127.0.0.1"] if first or name == "images.example" else ["127.0.0.2"]

        fetcher = ImageFetcher(
            [f"images.example:{self.port}", f"other.example:{self.port}"],
            Limits(**{"fetch_seconds": 3, **limits}),
            resolve=resolve,
            allowed=lambda address: address == "127.0.0.1",
            tls=self.tls,
        )
        return asyncio.run(fetcher.fetch(f"https://{host}:{self.port}{path}"))

    def error(self, path: str = "/", host: str = "images.example", **limits: Any) -> ApiError:
        with pytest.raises(ApiError) as caught:
            self.fetch(path, host, **limits)
        told = caught.value.message
        # 12: no address in the message
        assert not any(word in told for word in ("127", "example", str(self.port), "refused:"))
        return caught.value


@pytest.fixture
def host() -> Iterator[Callable[..., Host]]:
    made: list[Host] = []

    def make(talk: Talk, names: Sequence[str] = ("images.example", "other.example")) -> Host:
        made.append(Host(talk, names))
        return made[-1]

    yield make
    for each in made:
        each.close()


def send(*parts: bytes, pause: float = 0) -> Talk:
    def talk(secure: ssl.SSLSocket, _head: str) -> None:
        for part in parts:
            secure.sendall(part)
            time.sleep(pause)

    return talk


def whole(body: bytes, *fields: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


def test_an_image_is_fetched_from_the_checked_address(host: Callable[..., Host]) -> None:
    server = host(send(whole(b"image")))
    assert server.fetch("/a.png?b=c") == b"image"
    head = server.requests[0]
    assert head.startswith("GET /a.png?b=c HTTP/1.1\r\n")
    assert f"host: images.example:{server.port}\r\n" in head.lower()
    assert "accept-encoding: identity" in head.lower()
    assert "cookie" not in head.lower()


def test_a_host_is_resolved_once_for_a_connection(host: Callable[..., Host]) -> None:
    server = host(send(whole(b"image")))
    assert server.fetch("/", host="other.example") == b"image"
    # A second lookup would have returned an address that is not allowed.
    assert server.dialled == ["other.example"]


def test_the_certificate_is_verified_for_the_host_name(host: Callable[..., Host]) -> None:
    server = host(send(whole(b"image")), names=["else.example"])
    assert server.error().code == "fetch_failed"
    assert server.requests == []


def redirect(*locations: str) -> Talk:
    left = list(locations)

    def talk(secure: ssl.SSLSocket, head: str) -> None:
        if left:
            location = left.pop(0).replace(
                "PORT", head.lower().split("host: ")[1].split(":")[1][:5]
            )
            location = location.replace("\r", "").strip()
            secure.sendall(
                f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
            )
        else:
            secure.sendall(whole(b"image"))

    return talk


def test_redirects_to_allowed_hosts_are_followed(host: Callable[..., Host]) -> None:
    server = host(redirect("/b.png", "https://other.example:PORT/c.png"))
    assert server.fetch("/a.png") == b"image"
    assert [head.split()[1] for head in server.requests] == ["/a.png", "/b.png", "/c.png"]


@pytest.mark.parametrize(
    "location",
    [
        "https://evil.example/",
        "https://127.0.0.1/",
        "http://images.example/",
        "//evil.example/a.png",
        "/\\evil.example/",
        "file:///etc/hostname",
        "gopher://images.example/",
        "https://images.example@evil.example/",
        "b.png",
        "",
    ],
)
def test_redirects_to_other_hosts_are_refused(host: Callable[..., Host], location: str) -> None:
    server = host(redirect(location))
    assert server.error().status in (422, 502)
    assert len(server.requests) == 1


def test_a_redirect_is_resolved_and_checked_again(host: Callable[..., Host]) -> None:
    """A host that resolves to a private address the second time is refused."""
    server = host(redirect("https://images.example:PORT/b", "https://other.example:PORT/c"))
    server.dialled.append("other.example")  # as if it had been resolved before
    assert server.error().code == "address_refused"
    assert len(server.requests) == 2


def test_redirects_are_limited(host: Callable[..., Host]) -> None:
    server = host(redirect(*["/again"] * 10))
    assert server.error(fetch_redirects=3).code == "fetch_failed"
    assert len(server.requests) == 4


def test_fetched_bodies_are_limited_declared_or_not(host: Callable[..., Host]) -> None:
    most = {"image_bytes": 1000}
    assert host(send(whole(b"x" * 1000))).fetch("/", **most) == b"x" * 1000
    assert host(send(whole(b"x" * 1001))).error(**most).code == "image_too_large"
    endless = [b"HTTP/1.1 200 OK\r\n\r\n", *[b"x" * 500] * 50]
    assert host(send(*endless)).error(**most).code == "image_too_large"
    chunk = b"1f4\r\n" + b"x" * 500 + b"\r\n"
    chunked = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", *[chunk] * 50]
    assert host(send(*chunked)).error(**most).code == "image_too_large"


def test_a_truncated_body_is_refused(host: Callable[..., Host]) -> None:
    server = host(send(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nxx"))
    assert server.error().code == "fetch_failed"


def test_a_slow_body_times_out(host: Callable[..., Host]) -> None:
    drip = [b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n", *[b"x"] * 80]
    began = time.monotonic()
    assert host(send(*drip, pause=0.1)).error(fetch_seconds=0.5).code == "fetch_failed"
    assert time.monotonic() - began < 5


def test_a_silent_host_times_out(host: Callable[..., Host]) -> None:
    began = time.monotonic()
    assert host(send(b"", pause=8)).error(fetch_seconds=0.4).code == "fetch_failed"
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "deflate"])
def test_content_encodings_are_refused(host: Callable[..., Host], coding: str) -> None:
    server = host(send(whole(b"\x1f\x8b" + b"\0" * 100, f"Content-Encoding: {coding}")))
    assert server.error().code == "fetch_failed"


@pytest.mark.parametrize(
    "status", ["404 Not Found", "500 Error", "204 Empty", "206 Part", "101 Up"]
)
def test_other_statuses_are_refused(host: Callable[..., Host], status: str) -> None:
    server = host(send(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()))
    assert server.error().code == "fetch_failed"


def test_an_unreachable_host_is_reported(host: Callable[..., Host]) -> None:
    server = host(send())
    server.close()
    time.sleep(0.1)
    assert server.error().code == "fetch_failed"


def test_a_chat_request_with_a_fetched_image(
    host: Callable[..., Host], serve: Callable[..., Any], photo_file: bytes, photo_address: str
) -> None:
    server = host(send(whole(photo_file)))

    async def resolve(_name: str, _port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    door = ImageFetcher(
        [f"images.example:{server.port}"],
        Limits(),
        resolve=resolve,
        allowed=lambda _address: True,
        tls=server.tls,
    )
    api = serve(make={"fetcher": door})

    def part(address: str) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": address}}

    told = api.told(part(f"https://images.example:{server.port}/a.png"), "What?")
    assert told["choices"] == api.told(part(photo_address), "What?")["choices"]
    refused = api.refused(part("https://evil.example/a.png"), "What?")
    assert refused == (422, "address_refused", "messages[0].content[0].image_url.url")


# 13 ----------------------------------------------------------------------------------------------

#: The modules that may open a connection, and to what. Only the first one takes URLs of requests.
MAY_CONNECT = {
    "serving/api/fetch.py": "hosts that the operator allows",
    "serving/middleware/server.py": "nothing; it listens",
    "cli/server_process.py": "nothing; it passes a listening socket on",
    "serving/cluster/worker_connections.py": "registered workers",
    "serving/cluster/controller.py": "registered workers",
    "serving/cluster/admission.py": "workers that register, at allowed addresses",
    "serving/cluster/heartbeat.py": "the controller that the operator names",
    "serving/web/asking_http.py": "the server that the operator names",
    "evaluation/judge/endpoint.py": "the judge that the operator names",
}
NETWORK = {"httpx", "requests", "aiohttp", "urllib3", "http.client", "urllib.request", "socket"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def test_only_known_modules_open_connections() -> None:
    """Only the chat API may use the fetcher, whatever the entry point."""
    paths = sorted(SOURCE.rglob("*.py"))
    network = {
        path.relative_to(SOURCE).as_posix()
        for path in paths
        if any(
            name == one or name.startswith(f"{one}.") for name in imports(path) for one in NETWORK
        )
    }
    assert network - set(MAY_CONNECT) == set()
    users = {
        path.relative_to(SOURCE).as_posix()
        for path in paths
        if any(name.startswith("vip_llava.serving.api.fetch") for name in imports(path))
    }
    assert users == {"serving/api/app.py", "serving/api/chat.py", "serving/api/completions.py"}
    # `open_image`, which all entry points share, refuses URLs (tests/images).
    assert not network & {p.relative_to(SOURCE).as_posix() for p in (SOURCE / "images").iterdir()}
