"""Text of the command line -> numbers and polygons: `1,2,3,4`, `x,y,x,y;x,y,...` or JSON lists.

Says what was expected when the text is something else. Knows no shapes and no images; whether
the numbers make sense is decided where a Region is made.
"""

from __future__ import annotations

import json
import re
from typing import Any

from vip_llava.errors import RegionError

__all__ = [
    "is_number_text",
    "parse_json",
    "parse_numbers",
    "parse_pairs",
    "parse_polygons",
    "polygons_from",
]

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
SEPARATOR = re.compile(r"\s*,\s*|\s+")
NUMBER_TEXT = re.compile(r"[\d\s.,;eE+-]+")


def is_number_text(text: str) -> bool:
    """True if `text` can only be meant as coordinates (or a JSON list), not as the name of a file."""
    text = text.strip()
    return text.startswith("[") or bool(NUMBER_TEXT.fullmatch(text) and re.search(r"\d", text))


def parse_numbers(text: str, option: str, wanted: str) -> list[float]:
    """Numbers separated by commas or blanks, or a JSON list of them.

    `option` and `wanted` (like "x1,y1,x2,y2") are for the message of the RegionError.
    """
    text = text.strip()
    if text.startswith("["):
        found = parse_json(text, option, wanted)
        if not isinstance(found, list) or not all(_is_number(item) for item in found):
            raise _unreadable(text, option, wanted)
        return _floats(found, option)
    items = SEPARATOR.split(text.strip().strip(",")) if text else []
    if not items or not all(NUMBER.fullmatch(item) for item in items):
        raise _unreadable(text, option, wanted)
    return [float(item) for item in items]


def parse_pairs(text: str, option: str, wanted: str) -> list[tuple[float, float]]:
    """Points written x,y,x,y,... as pairs."""
    numbers = parse_numbers(text, option, wanted)
    if len(numbers) % 2:
        raise RegionError(
            f"{option} {text!r}: {len(numbers)} numbers are no pairs of x,y; write {wanted}"
        )
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def parse_polygons(text: str, option: str) -> list[list[float]]:
    """Polygons as [[x, y, x, y, ...], ...]: one, several parted by `;`, or JSON."""
    wanted = "x,y,x,y,x,y (several polygons parted by ;)"
    if text.strip().startswith("["):
        return polygons_from(parse_json(text, option, wanted), option)
    parts = [part for part in text.split(";") if part.strip()]
    if not parts:
        raise _unreadable(text, option, wanted)
    pairs = [parse_pairs(part, option, wanted) for part in parts]
    return [[number for pair in polygon for number in pair] for polygon in pairs]


def polygons_from(found: Any, where: str) -> list[list[float]]:
    """JSON polygons in any usual nesting -> [[x, y, ...], ...].

    Takes one flat list of numbers, a list of flat lists, a list of [x, y] pairs, or a list of those.
    """
    if _is_flat(found):
        return [_floats(found, where)]
    if isinstance(found, list) and found:
        if all(_is_flat(item) for item in found):
            if all(len(item) == 2 for item in found):
                return [_floats([number for pair in found for number in pair], where)]
            return [_floats(item, where) for item in found]
        if all(isinstance(item, list) and item and not _is_number(item[0]) for item in found):
            return [polygon for item in found for polygon in polygons_from(item, where)]
    raise RegionError(f"{where}: expected polygons like [[x, y, x, y, x, y, ...], ...]")


def _is_flat(found: Any) -> bool:
    return isinstance(found, list) and bool(found) and all(_is_number(item) for item in found)


def _floats(found: list[Any], where: str) -> list[float]:
    try:
        return [float(number) for number in found]
    except OverflowError as error:
        raise RegionError(f"{where}: a coordinate is too large to be one") from error


def _is_number(item: Any) -> bool:
    return isinstance(item, int | float) and not isinstance(item, bool)


def parse_json(text: str, option: str, wanted: str) -> Any:
    """`text` as JSON, or a RegionError that says what `wanted` looks like."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unreadable(text, option, wanted) from error


def _unreadable(text: str, option: str, wanted: str) -> RegionError:
    shown = text if len(text) <= 60 else text[:57] + "..."
    return RegionError(f"{option} {shown!r}: expected numbers like {wanted}")
