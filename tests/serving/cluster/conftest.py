"""A controller on a real port, and scripted workers that misbehave on demand."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from vip_llava.serving.cluster.controller import create_controller
from vip_llava.serving.cluster.heartbeat import HeartbeatClient
from vip_llava.serving.cluster.registry import WorkerStatus
from vip_llava.serving.cluster.signing import CHALLENGE_HEADER, PROOF_HEADER, Secret
from vip_llava.serving.middleware.server import background
from vip_llava.serving.settings import ServerSettings

SECRET = Secret("the secret of the cluster's tests")


class Scripted:
    """A worker that answers `{"from": name}` or follows `act`, a method of `_Handler`."""

    def __init__(self, name: str, *models: str, secret: Secret = SECRET) -> None:
        self.name, self.models, self.secret = name, list(models or ("m",)), secret
        self.act = "answer"
        self.asked = 0
        self.connections: list[socket.socket] = []
        self.asks: list[dict[str, str]] = []
        self.release = threading.Event()
        self.left = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("H", (_Handler,), {"w": self}))
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}
        )
        self._thread.start()

    def status(self) -> WorkerStatus:
        return WorkerStatus(model_names=self.models)

    def end(self) -> None:
        """Close the socket and all connections, like a killed process."""
        if not self._thread.is_alive():
            return
        self.release.set()
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    w: Scripted
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.w.connections.append(self.connection)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/worker_get_status":
            self._status()
            return
        self.w.asked += 1
        self.w.asks.append(dict(self.headers.items()) | {"body": body.decode()})
        getattr(self, f"_{self.w.act}")(self.path == "/worker_generate_stream")

    def _status(self) -> None:
        body = json.dumps(self.w.status().model_dump()).encode()
        proof = self.w.secret.proof(self.headers.get(CHALLENGE_HEADER, ""), body)
        self._send(200, body, "application/json", {PROOF_HEADER: proof})

    def _send(self, status: int, body: bytes, kind: str, fields: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {
            "content-type": kind,
            "content-length": str(len(body)),
            **fields,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _answer(self, legacy: bool) -> None:
        """A complete answer."""
        if legacy:
            pieces = [json.dumps({"text": text, "error_code": 0}) + "\0" for text in ("a", "ab")]
            self._send(200, "".join(pieces).encode(), "application/octet-stream", {})
            return
        said = json.dumps({"from": self.w.name}).encode()
        self._send(200, said, "application/json", {})

    def _busy(self, legacy: bool) -> None:
        """A full queue."""
        self._send(
            503, b'{"error": {"code": "queue_full"}}', "application/json", {"retry-after": "7"}
        )

    def _wrong(self, legacy: bool) -> None:
        """A client error."""
        self._send(422, b'{"error": {"code": "invalid_region"}}', "application/json", {})

    def _die(self, legacy: bool) -> None:
        """Close the connection without a byte."""
        self.close_connection = True

    def _break(self, legacy: bool) -> None:
        """Close the connection within an answer, streamed or not."""
        kind = "application/octet-stream" if legacy else "text/event-stream"
        if self.w.name.startswith("whole"):
            kind = "application/json"
        self._begin(kind)
        self._chunk(b'data: {"begun": true}\n\n' if not legacy else b'{"text": "a"}\0')
        self.close_connection = True

    def _either(self, legacy: bool) -> None:
        """Stall after the first chunk of a stream; close the connection of any other request."""
        if b"stream" in self.w.asks[-1]["body"].encode():
            self._begin("text/event-stream")
            self._chunk(b'data: {"begun": true}\n\n')
            self.w.release.wait(20)
            self._chunk(b'data: {"whole": true}\n\n')
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.close_connection = True

    def _hang(self, legacy: bool) -> None:
        """Send nothing until released, then stream until the client disconnects."""
        self.w.release.wait(20)
        self._begin("text/event-stream")
        try:
            for _ in range(2000):
                self._chunk(b"data: {}\n\n")
                if self.w.left.wait(0.01):
                    break
        except OSError:
            self.w.left.set()

    def _stall(self, legacy: bool) -> None:
        """Send one chunk, then nothing more."""
        self._begin("text/event-stream")
        self._chunk(b'data: {"begun": true}\n\n')
        self.w.release.wait(20)

    def _begin(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def _chunk(self, content: bytes) -> None:
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
        self.wfile.flush()


class Cluster:
    """A running controller with a client for it."""

    def __init__(self, app: Any, address: str) -> None:
        self.app, self.address = app, address
        self.controller = app.state.controller
        self.client = httpx.Client(base_url=address, timeout=20, trust_env=False)

    def signed(self, path: str, content: Any, secret: Secret = SECRET) -> httpx.Response:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.client.post(path, content=body, headers=secret.sign("POST", path, body))

    def register(self, worker: Scripted) -> httpx.Response:
        answer = self.signed("/register_worker", {"worker_name": worker.address})
        assert answer.status_code == 200, answer.text
        return answer

    def ask(self, model: str = "m", **more: Any) -> httpx.Response:
        return self.client.post("/v1/chat/completions", json={"model": model, **more})

    def addresses(self) -> set[str]:
        return {worker.address for worker in self.controller.registry.available}


@pytest.fixture
def cluster() -> Iterator[Callable[..., Cluster]]:
    """`cluster(expiry=..., dispatch=..., settings=...)` starts a controller."""
    with contextlib.ExitStack() as stack:

        def start(settings: ServerSettings | None = None, **given: Any) -> Cluster:
            settings = settings or ServerSettings(port=0)
            app = create_controller(settings, SECRET, **given)
            found = Cluster(app, stack.enter_context(background(app, settings)))
            stack.callback(found.client.close)
            return found

        yield start


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    """`scripted(name, *models)` starts a worker whose `act` may be set."""
    workers: list[Scripted] = []

    def start(name: str, *models: str, **given: Any) -> Scripted:
        workers.append(Scripted(name, *models, **given))
        return workers[-1]

    yield start
    for worker in workers:
        worker.end()


@pytest.fixture
def heartbeat_client() -> Callable[..., HeartbeatClient]:
    """`heartbeat_client(cluster, worker, secret=...)`: the worker's side of registration."""

    def make(cluster: Cluster | str, worker: Scripted, secret: Secret = SECRET) -> HeartbeatClient:
        address = cluster if isinstance(cluster, str) else cluster.address
        return HeartbeatClient(address, worker.address, secret, worker.status, interval=0.1)

    return make
