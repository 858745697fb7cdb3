"""Point at something in an image and ask about it.

The public face of the package: an explicit list, frozen by a test. Names are looked up on first
use, so that `import vip_llava.regions` needs only Pillow and numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vip_llava.assistant import Answer, Assistant, Chat, load
    from vip_llava.errors import VipLlavaError
    from vip_llava.images import open_image
    from vip_llava.regions import (
        Arrow,
        Box,
        Contour,
        Ellipse,
        Mask,
        Point,
        Region,
        Scribble,
        Triangle,
        draw,
    )

__version__ = "0.1.0"

_HOMES = {
    "vip_llava.assistant": ("Answer", "Assistant", "Chat", "load"),
    "vip_llava.errors": ("VipLlavaError",),
    "vip_llava.images": ("open_image",),
    "vip_llava.regions": (
        "Arrow",
        "Box",
        "Contour",
        "Ellipse",
        "Mask",
        "Point",
        "Region",
        "Scribble",
        "Triangle",
        "draw",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Answer",
    "Arrow",
    "Assistant",
    "Box",
    "Chat",
    "Contour",
    "Ellipse",
    "Mask",
    "Point",
    "Region",
    "Scribble",
    "Triangle",
    "VipLlavaError",
    "__version__",
    "draw",
    "load",
    "open_image",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'vip_llava' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
