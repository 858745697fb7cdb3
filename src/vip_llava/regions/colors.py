"""The named palette, and the normalized spelling of colours.

A colour is one of nine names (those the model was trained to read in a question) or any RGB value.
The package stores every colour as a string: a name or "#rrggbb" in lower case. This module does not
know regions or images.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from vip_llava.errors import RegionError
from vip_llava.regions.geometry import brief

__all__ = ["PALETTE", "Color", "color_name", "normalize_color", "rgb"]

Color = str | tuple[int, int, int]

#: The nine trained names in the order of assignment (source: the original's data).
PALETTE: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "red": (255, 0, 0),
        "lime": (0, 255, 0),
        "blue": (0, 0, 255),
        "yellow": (255, 255, 0),
        "fuchsia": (255, 0, 255),
        "aqua": (0, 255, 255),
        "orange": (255, 165, 0),
        "purple": (128, 0, 128),
        "gold": (255, 215, 0),
    }
)
_NAMES = {value: name for name, value in PALETTE.items()}
_HEX = re.compile(r"#[0-9a-fA-F]{6}\Z")


def normalize_color(value: object, who: str = "colour") -> str:
    """A colour as a palette name or as "#rrggbb" in lower case.

    `value` is a palette name, "#rrggbb", or three whole numbers 0..255. `who` names the owner in
    the message. Raises RegionError for any other value.
    """
    if isinstance(value, str):
        if value in PALETTE:
            return value
        if _HEX.match(value):
            return value.lower()
    elif isinstance(value, (tuple, list)) and len(value) == 3:
        parts = [part for part in map(_channel, value) if part is not None]
        if len(parts) == 3:
            return "#{:02x}{:02x}{:02x}".format(*parts)
    raise RegionError(
        f"{who}: unknown colour {brief(value)}; give one of {', '.join(PALETTE)}, "
        'or "#rrggbb", or three whole numbers 0..255'
    )


def rgb(color: Color) -> tuple[int, int, int]:
    """Red, green, blue (0..255) of a colour in any accepted spelling. Raises RegionError."""
    named = PALETTE.get(color) if isinstance(color, str) else None
    if named is not None:
        return named
    text = normalize_color(color)
    return PALETTE.get(text) or (int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16))


def color_name(color: Color) -> str | None:
    """The palette name of a colour in any spelling, or None if it has no name."""
    return _NAMES.get(rgb(color))


def _channel(part: object) -> int | None:
    """One channel as an int, or None for booleans, floats and values out of range."""
    if isinstance(part, bool) or not hasattr(part, "__index__"):
        return None
    number = int(part.__index__())
    return number if 0 <= number <= 255 else None
