"""Images that clients leave here for a while, in memory and within bounds.

An upload belongs to the client that brought it and can't be guessed. Nothing is written to a disk,
and nothing is thrown away for somebody else's sake: a full store says so.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from vip_llava.serving.middleware.errors import Problem
from vip_llava.serving.settings import Limits

__all__ = ["Upload", "Uploads"]


@dataclass(frozen=True, slots=True)
class Upload:
    """The bytes of one image file. `expires`: by the store's clock, seconds."""

    id: str
    owner: str
    data: bytes
    expires: float


class Uploads:
    """The store of one server; used by its event loop only."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.time) -> None:
        self._limits = limits
        self._clock = clock
        self._kept: dict[str, Upload] = {}
        self.bytes = 0

    def add(self, owner: str, data: bytes) -> Upload:
        """Keep an image. Problem 413 if it is too large, 503 if the store is full."""
        limits = self._limits
        if len(data) > limits.image_bytes:
            raise Problem(
                413,
                f"the image has {len(data):,} bytes; at most {limits.image_bytes:,} are taken "
                "(image_bytes)",
                code="image_too_large",
            )
        self._expire()
        if len(self._kept) >= limits.uploads or self.bytes + len(data) > limits.uploads_bytes:
            # In the order of arrival, so the first is the first to go.
            wait = min((each.expires for each in self._kept.values()), default=0) - self._clock()
            raise Problem(
                503,
                "no more uploads are kept; delete some, or send the image as a data: address",
                code="uploads_full",
                retry_after=wait,
            )
        upload = Upload(
            secrets.token_urlsafe(18), owner, data, self._clock() + limits.upload_seconds
        )
        self._kept[upload.id] = upload
        self.bytes += len(data)
        return upload

    def get(self, owner: str, upload_id: str) -> Upload:
        """An upload of this client; Problem 404 for any other and for one that has expired."""
        self._expire()
        found = self._kept.get(upload_id)
        if found is None or found.owner != owner:
            raise Problem(
                404, "there is no such upload; it may have expired", code="upload_not_found"
            )
        return found

    def remove(self, owner: str, upload_id: str) -> None:
        """Forget an upload of this client; Problem 404 as `get`."""
        self._drop(self.get(owner, upload_id))

    def _drop(self, upload: Upload) -> None:
        del self._kept[upload.id]
        self.bytes -= len(upload.data)

    def _expire(self) -> None:
        now = self._clock()
        for upload in [each for each in self._kept.values() if each.expires <= now]:
            self._drop(upload)
