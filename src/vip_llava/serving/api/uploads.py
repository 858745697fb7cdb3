"""`UploadStore`: uploaded images in memory, bounded by count, bytes and time.

An upload belongs to the client that sent it, under an id that can't be guessed. Nothing is written
to disk. A full store refuses new uploads rather than evicting those of other clients.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from vip_llava.serving.middleware.errors import ApiError
from vip_llava.serving.settings import Limits

__all__ = ["Upload", "UploadStore"]


@dataclass(frozen=True, slots=True)
class Upload:
    """The bytes of one image file. `expires`: seconds by the store's clock."""

    id: str
    owner: str
    data: bytes
    expires: float


class UploadStore:
    """The uploads of one server; for its event loop only."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.time) -> None:
        self._limits = limits
        self._clock = clock
        self._uploads: dict[str, Upload] = {}
        self.bytes = 0

    def add(self, owner: str, data: bytes) -> Upload:
        """Store an image. Raises ApiError 413 if it is too large, 503 if the store is full."""
        limits = self._limits
        if len(data) > limits.image_bytes:
            raise ApiError(
                413,
                f"the image has {len(data):,} bytes, but the limit is {limits.image_bytes:,} "
                "(image_bytes)",
                code="image_too_large",
            )
        self._expire()
        if len(self._uploads) >= limits.uploads or self.bytes + len(data) > limits.uploads_bytes:
            wait = min((each.expires for each in self._uploads.values()), default=0) - self._clock()
            raise ApiError(
                503,
                "the upload store is full; delete uploads, or send the image as a data: URL",
                code="uploads_full",
                retry_after=wait,
            )
        upload = Upload(
            secrets.token_urlsafe(18), owner, data, self._clock() + limits.upload_seconds
        )
        self._uploads[upload.id] = upload
        self.bytes += len(data)
        return upload

    def get(self, owner: str, upload_id: str) -> Upload:
        """An upload of this client; ApiError 404 for any other or expired one."""
        self._expire()
        found = self._uploads.get(upload_id)
        if found is None or found.owner != owner:
            raise ApiError(404, "no such upload; it may have expired", code="upload_not_found")
        return found

    def remove(self, owner: str, upload_id: str) -> None:
        """Delete an upload of this client; ApiError 404 as `get`."""
        self._drop(self.get(owner, upload_id))

    def _drop(self, upload: Upload) -> None:
        del self._uploads[upload.id]
        self.bytes -= len(upload.data)

    def _expire(self) -> None:
        now = self._clock()
        for upload in [each for each in self._uploads.values() if each.expires <= now]:
            self._drop(upload)
