"""Cluster membership: requests signed with a shared secret that is never transmitted.

A signature covers method, path, time, a nonce and the body, so that a request can be neither
changed nor replayed. A challenge proves that a server knows the secret too. This module does not
know HTTP libraries, workers or models, and it does not encrypt.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

from vip_llava.errors import ServingError

__all__ = [
    "CHALLENGE_HEADER",
    "PROOF_HEADER",
    "SECRET_VARIABLE",
    "Secret",
    "SignatureError",
    "SignatureVerifier",
    "read_secret",
]

SECRET_VARIABLE = "VIP_LLAVA_CLUSTER_SECRET"
CHALLENGE_HEADER, PROOF_HEADER = "x-vip-llava-challenge", "x-vip-llava-proof"
_TIME, _NONCE, _SIGNATURE = "x-vip-llava-time", "x-vip-llava-nonce", "x-vip-llava-signature"
_MIN_LENGTH = 16
_MAX_FILE_BYTES = 4096
_NONCE_LENGTH = 32  # hexadecimal digits


class SignatureError(ServingError):
    """A request that is unsigned, wrongly signed, stale or replayed."""


class Secret:
    """The shared secret of a cluster; its repr does not show it."""

    def __init__(self, text: str) -> None:
        """Raises ServingError for fewer than 16 characters."""
        if len(text) < _MIN_LENGTH:
            raise ServingError(
                f"the cluster's secret has {len(text)} characters, but it must have at least "
                f'{_MIN_LENGTH}: make one with python -c "import secrets; '
                f'print(secrets.token_urlsafe(32))"'
            )
        self._key = text.encode()

    @classmethod
    def new(cls) -> Secret:
        """A random secret."""
        return cls(secrets.token_urlsafe(32))

    def text(self) -> str:
        """The secret itself, to pass to a child process through a pipe."""
        return self._key.decode()

    def __repr__(self) -> str:
        return "Secret(...)"

    @property
    def service_key(self) -> str:
        """The API key between controller and workers.

        Derived from the secret one way: it authorizes requests, but not registration.
        """
        return "vip-" + self._mac("service key")[:40]

    def sign(
        self, method: str, path: str, body: bytes, *, now: float | None = None
    ) -> dict[str, str]:
        """The headers that sign a request. `now`: seconds since 1970."""
        stamp = f"{time.time() if now is None else now:.3f}"
        nonce = secrets.token_hex(_NONCE_LENGTH // 2)
        signature = self.signature(method, path, stamp, nonce, body)
        return {_TIME: stamp, _NONCE: nonce, _SIGNATURE: signature}

    def proof(self, challenge: str, body: bytes) -> str:
        """The answer to a challenge; it also covers the response body."""
        return self._mac("proof", challenge, hashlib.sha256(body).hexdigest())

    def proves(self, proof: str | None, challenge: str, body: bytes) -> bool:
        """Whether the proof is right."""
        return hmac.compare_digest((proof or "").encode(), self.proof(challenge, body).encode())

    def signature(self, method: str, path: str, stamp: str, nonce: str, body: bytes) -> str:
        """The signature of a request."""
        return self._mac("request", method, path, stamp, nonce, hashlib.sha256(body).hexdigest())

    def _mac(self, *parts: str) -> str:
        # The first part separates proofs from signatures. No part contains a line break.
        text = "\n".join(("vip-llava 1", *parts))
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


class SignatureVerifier:
    """Verifies signatures and detects replays; not thread-safe."""

    def __init__(
        self,
        secret: Secret,
        *,
        window: float = 30.0,
        capacity: int = 100_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            window: allowed difference of two clocks plus the transmission time, in seconds.
            capacity: nonces to remember; more within a window are refused, never forgotten.
        """
        self._secret, self._window, self._capacity, self._clock = secret, window, capacity, clock
        self._seen: OrderedDict[str, float] = OrderedDict()

    def check(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> None:
        """Raise SignatureError unless the request is signed, recent and not a replay."""
        stamp, nonce = headers.get(_TIME, ""), headers.get(_NONCE, "")
        given = headers.get(_SIGNATURE, "")
        if not (stamp and nonce and given):
            raise SignatureError("the request is not signed with the cluster's secret")
        expected = self._secret.signature(method, path, stamp, nonce, body)
        if "\n" in path or not hmac.compare_digest(given.encode(), expected.encode()):
            raise SignatureError("wrong signature: another secret, or a modified request")
        # Only members get here, so others can't fill the memory of nonces.
        now = self._clock()
        age = now - float(stamp)
        if abs(age) > self._window:
            raise SignatureError(
                f"the request is {age:.0f} s old by this clock, but the limit is {self._window:.0f} s; "
                "synchronize the clocks of controller and worker"
            )
        self._remember(nonce, now)

    def _remember(self, nonce: str, now: float) -> None:
        # A time stamp may be one window ahead, so its nonce is kept for two.
        while self._seen and next(iter(self._seen.values())) < now - 2 * self._window:
            self._seen.popitem(last=False)
        if nonce in self._seen:
            raise SignatureError("the request was sent before (replay)")
        if len(self._seen) >= self._capacity:
            raise SignatureError("too many signed requests at once; retry in a minute")
        self._seen[nonce] = now


def read_secret(file: str | Path | None) -> Secret | None:
    """The secret from a file, or from the environment without a file; None if neither is set.

    Raises:
        ServingError: the file can't be read, or users other than its owner may read it.
    """
    if file is None:
        text = os.environ.get(SECRET_VARIABLE, "").strip()
        return Secret(text) if text else None
    path = Path(file)
    try:
        mode = path.stat().st_mode
        with path.open("rb") as content:
            text = content.read(_MAX_FILE_BYTES).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ServingError(f"{path}: the cluster's secret can't be read: {reason}") from error
    if os.name == "posix" and mode & 0o077:
        raise ServingError(
            f"{path}: other users may read the cluster's secret; run chmod 600 {path}"
        )
    return Secret(text)
