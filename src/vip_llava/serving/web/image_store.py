"""Images that a page shows, held in memory under names that can't be guessed.

Bounded by count, bytes and age; the oldest go first. Nothing is written to a disk. Knows no
conversations and no HTTP.
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

__all__ = ["Held", "Shelf", "as_png"]

_LOSSLESS_PIXELS = 2_000_000


def as_png(image: Image.Image) -> bytes:
    """An image as a PNG file, quickly made."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class Held:
    """One image. `content` is what a browser is sent, of the type `media_type`."""

    id: str
    image: Image.Image
    content: bytes
    media_type: str

    @property
    def bytes(self) -> int:
        """Memory that it takes, about."""
        return len(self.content) + 3 * self.image.width * self.image.height


class Shelf:
    """The images of all visitors. May be used from several threads."""

    def __init__(
        self,
        *,
        count: int = 256,
        total_bytes: int = 1 << 30,
        seconds: float = 3600,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """At most `count` images of `total_bytes` together, each `seconds` after its last use."""
        self._limits = count, total_bytes, seconds
        self._clock = clock
        self._held: OrderedDict[str, tuple[Held, float]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def put(self, image: Image.Image, *, lossless: bool | None = None) -> Held:
        """Hold an RGB image. `lossless`: whether browsers get its exact pixels whatever its size."""
        exact = image.width * image.height <= _LOSSLESS_PIXELS if lossless is None else lossless
        if exact:
            content, kind = as_png(image), "image/png"
        else:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=92, subsampling=0)
            content, kind = buffer.getvalue(), "image/jpeg"
        held = Held(secrets.token_urlsafe(16), image, content, kind)
        with self._lock:
            self._held[held.id] = held, self._clock()
            self._bytes += held.bytes
            self._tidy()
        return held

    def get(self, name: object) -> Held | None:
        """The image of a name, or None where there is none (any more)."""
        if not isinstance(name, str):
            return None
        with self._lock:
            self._tidy()
            found = self._held.pop(name, None)
            if found is None:
                return None
            self._held[name] = found[0], self._clock()
            return found[0]

    def _tidy(self) -> None:
        count, total_bytes, seconds = self._limits
        oldest = self._clock() - seconds
        while self._held:
            held, used = next(iter(self._held.values()))
            full = len(self._held) > count or self._bytes > total_bytes
            # The one that was just put there stays, however large: it is needed now.
            if not (used < oldest or (full and len(self._held) > 1)):
                return
            del self._held[held.id]
            self._bytes -= held.bytes
