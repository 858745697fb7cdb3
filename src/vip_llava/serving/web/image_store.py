"""`ImageStore`: the page's images in memory, under ids that can't be guessed.

It is bounded by count, bytes and age, evicts the least recently used image first, and writes
nothing to disk. It does not know conversations or HTTP.
"""

from __future__ import annotations

import io
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from vip_llava.serving.api.replies import as_png

__all__ = ["ImageStore", "StoredImage"]

_LOSSLESS_PIXELS = 2_000_000


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One image, and the file that a browser receives: `content` of the type `media_type`."""

    id: str
    image: Image.Image
    content: bytes
    media_type: str

    @property
    def bytes(self) -> int:
        """Approximate memory use."""
        return len(self.content) + 3 * self.image.width * self.image.height


class ImageStore:
    """The images of all visitors; thread-safe."""

    def __init__(
        self,
        *,
        count: int = 256,
        total_bytes: int = 1 << 30,
        seconds: float = 3600,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Hold at most `count` images of `total_bytes`, each for `seconds` after its last use."""
        self._count, self._total_bytes, self._seconds = count, total_bytes, seconds
        self._clock = clock
        # id -> (image, time of last use), least recently used first
        self._images: OrderedDict[str, tuple[StoredImage, float]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def put(self, image: Image.Image, *, lossless: bool | None = None) -> StoredImage:
        """Store an RGB image. `lossless`: PNG at any size; by default large images become JPEG."""
        exact = image.width * image.height <= _LOSSLESS_PIXELS if lossless is None else lossless
        if exact:
            content, media_type = as_png(image), "image/png"
        else:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=92, subsampling=0)
            content, media_type = buffer.getvalue(), "image/jpeg"
        stored = StoredImage(secrets.token_urlsafe(16), image, content, media_type)
        with self._lock:
            self._images[stored.id] = stored, self._clock()
            self._bytes += stored.bytes
            self._evict()
        return stored

    def get(self, image_id: object) -> StoredImage | None:
        """The image with this id, or None."""
        if not isinstance(image_id, str):
            return None
        with self._lock:
            self._evict()
            found = self._images.pop(image_id, None)
            if found is None:
                return None
            self._images[image_id] = found[0], self._clock()
            return found[0]

    def _evict(self) -> None:
        oldest = self._clock() - self._seconds
        while self._images:
            stored, used = next(iter(self._images.values()))
            full = len(self._images) > self._count or self._bytes > self._total_bytes
            # The newest image stays even if it exceeds the limit: it is needed now.
            if not (used < oldest or (full and len(self._images) > 1)):
                return
            del self._images[stored.id]
            self._bytes -= stored.bytes
