"""Who belongs to a cluster: requests signed with a secret that never travels.

A signature covers method, path, time, a number used once and the body, so that a request can be
neither changed nor sent again. A challenge proves that whoever answers at an address knows the
secret too. Knows nothing of HTTP libraries, workers or models; encryption is not its business.
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
    "ForgedError",
    "Secret",
    "Verifier",
    "read_secret",
]

SECRET_VARIABLE = "VIP_LLAVA_CLUSTER_SECRET"
CHALLENGE_HEADER, PROOF_HEADER = "x-vip-llava-challenge", "x-vip-llava-proof"
_TIME, _NONCE, _SIGNATURE = "x-vip-llava-time", "x-vip-llava-nonce", "x-vip-llava-signature"
_LEAST_LENGTH = 16
_SECRET_FILE_BYTES = 4096
_NONCE_LENGTH = 32  # hexadecimal digits


class ForgedError(ServingError):
    """A request among the members of a cluster that none of them can have sent just now."""


class Secret:
    """The shared secret of a cluster. It never shows in a representation, a log or a request."""

    def __init__(self, text: str) -> None:
        """At least 16 characters; ServingError for fewer."""
        if len(text) < _LEAST_LENGTH:
            raise ServingError(
                f"the cluster's secret has {len(text)} characters; it needs at least "
                f'{_LEAST_LENGTH}: make one with python -c "import secrets; '
                f'print(secrets.token_urlsafe(32))"'
            )
        self._key = text.encode()

    @classmethod
    def new(cls) -> Secret:
        """A random one."""
        return cls(secrets.token_urlsafe(32))

    def text(self) -> str:
        """The secret itself, to be handed to a child process through a pipe."""
        return self._key.decode()

    def __repr__(self) -> str:
        return "Secret(...)"

    @property
    def service_key(self) -> str:
        """The API key with which the controller asks a worker.

        Made of the secret in one direction: who sees it may ask, but can't join.
        """
        return "vip-" + self._mac("service key")[:40]

    def sign(
        self, method: str, path: str, body: bytes, *, now: float | None = None
    ) -> dict[str, str]:
        """The headers that make a request one of this cluster's. `now`: seconds since 1970."""
        stamp = f"{time.time() if now is None else now:.3f}"
        nonce = secrets.token_hex(_NONCE_LENGTH // 2)
        signature = self._request(method, path, stamp, nonce, body)
        return {_TIME: stamp, _NONCE: nonce, _SIGNATURE: signature}

    def proof(self, challenge: str, body: bytes) -> str:
        """What only a member can answer to a challenge; covers the body that it comes with."""
        return self._mac("proof", challenge, hashlib.sha256(body).hexdigest())

    def proves(self, proof: str | None, challenge: str, body: bytes) -> bool:
        """Whether that is the right proof."""
        return hmac.compare_digest((proof or "").encode(), self.proof(challenge, body).encode())

    def _request(self, method: str, path: str, stamp: str, nonce: str, body: bytes) -> str:
        return self._mac("request", method, path, stamp, nonce, hashlib.sha256(body).hexdigest())

    def _mac(self, *parts: str) -> str:
        # The first part keeps the uses apart: a proof is never a signature. No part has a line end.
        text = "\n".join(("vip-llava 1", *parts))
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


class Verifier:
    """Tells a fresh request of a member from all others. Not for several threads at once."""

    def __init__(
        self,
        secret: Secret,
        *,
        window: float = 30.0,
        capacity: int = 100_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """window: seconds that the clocks of two members may differ, the way included.

        capacity: numbers that are remembered; more within a window are refused, not forgotten.
        """
        self._secret, self._window, self._capacity, self._clock = secret, window, capacity, clock
        self._seen: OrderedDict[str, float] = OrderedDict()

    def check(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> None:
        """ForgedError unless a member sent exactly this, just now, for the first time."""
        stamp, nonce = headers.get(_TIME, ""), headers.get(_NONCE, "")
        given = headers.get(_SIGNATURE, "")
        if not (stamp and nonce and given):
            raise ForgedError("the request is not signed with the cluster's secret")
        right = self._secret._request(method, path, stamp, nonce, body)
        if "\n" in path or not hmac.compare_digest(given.encode(), right.encode()):
            raise ForgedError("the signature does not fit: another secret, or a changed request")
        # Only members come this far, so the memory can't be filled by others.
        now = self._clock()
        age = now - float(stamp)
        if abs(age) > self._window:
            raise ForgedError(
                f"the request is {age:.0f} s old by this clock and may be {self._window:.0f}; "
                f"set the clocks of controller and worker"
            )
        self._remember(nonce, now)

    def _remember(self, nonce: str, now: float) -> None:
        # A stamp may lie a window ahead, so its number counts for two.
        while self._seen and next(iter(self._seen.values())) < now - 2 * self._window:
            self._seen.popitem(last=False)
        if nonce in self._seen:
            raise ForgedError("the request was sent before")
        if len(self._seen) >= self._capacity:
            raise ForgedError("too many signed requests at once; try again in a minute")
        self._seen[nonce] = now


def read_secret(file: str | Path | None) -> Secret | None:
    """The secret of a file, else of the environment; None where there is neither.

    ServingError for a file that can't be read, or that others than its owner may read.
    """
    if file is None:
        text = os.environ.get(SECRET_VARIABLE, "").strip()
        return Secret(text) if text else None
    path = Path(file)
    try:
        mode = path.stat().st_mode
        with path.open("rb") as content:
            text = content.read(_SECRET_FILE_BYTES).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ServingError(f"{path}: the cluster's secret can't be read: {reason}") from error
    if os.name == "posix" and mode & 0o077:
        raise ServingError(f"{path}: others may read the cluster's secret; chmod 600 {path}")
    return Secret(text)
