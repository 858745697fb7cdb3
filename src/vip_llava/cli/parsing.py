"""Parses option text into numbers, points and polygons: `1,2,3,4`, `x,y,x,y;x,y,...` or JSON lists.

It does not know shapes or images: a Region checks whether the numbers make sense.
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
    "shorten",
]

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
SEPARATOR = re.compile(r"\s*,\s*|\s+")
NUMBER_TEXT = re.compile(r"[\d\s.,;eE+-]+")


def is_number_text(text: str) -> bool:
    """Whether `text` can only be coordinates or a JSON list, not the name of a file."""
    text = text.strip()
    return text.startswith("[") or bool(NUMBER_TEXT.fullmatch(text) and re.search(r"\d", text))


def parse_numbers(text: str, option: str, expected: str) -> list[float]:
    """Numbers separated by commas or blanks, or a JSON list of numbers.

    `option` and `expected` (like "x1,y1,x2,y2") are for the message of the RegionError.
    """
    text = text.strip()
    if text.startswith("["):
        found = parse_json(text, option, expected)
        if not isinstance(found, list) or not all(_is_number(item) for item in found):
            raise _unreadable(text, option, expected)
        return _floats(found, option)
    items = SEPARATOR.split(text.strip(",")) if text else []
    if not items or not all(NUMBER.fullmatch(item) for item in items):
        raise _unreadable(text, option, expected)
    return [float(item) for item in items]


def parse_pairs(text: str, option: str, expected: str) -> list[tuple[float, float]]:
    """Points written x,y,x,y,... as pairs."""
    numbers = parse_numbers(text, option, expected)
    if len(numbers) % 2:
        raise RegionError(
            f"{option} {shorten(text)}: {len(numbers)} numbers do not form x,y pairs; "
            f"write {expected}"
        )
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def parse_polygons(text: str, option: str) -> list[list[float]]:
    """Polygons as [[x, y, x, y, ...], ...]: one, several separated by `;`, or JSON."""
    expected = "x,y,x,y,x,y (separate several polygons with ;)"
    if text.strip().startswith("["):
        return polygons_from(parse_json(text, option, expected), option)
    parts = [part for part in text.split(";") if part.strip()]
    if not parts:
        raise _unreadable(text, option, expected)
    pairs = [parse_pairs(part, option, expected) for part in parts]
    return [[number for pair in polygon for number in pair] for polygon in pairs]


def polygons_from(found: Any, where: str) -> list[list[float]]:
    """Polygons [[x, y, ...], ...] from JSON in any of the usual nestings.

    Accepts one flat list of numbers, a list of flat lists, a list of [x, y] pairs, or a list of
    those. `where` begins the message of the RegionError.
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


def parse_json(text: str, option: str, expected: str) -> Any:
    """`text` as JSON, or a RegionError that says what was `expected`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unreadable(text, option, expected) from error


def shorten(text: str) -> str:
    """`text` quoted for a message, cut to 60 characters."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _is_flat(found: Any) -> bool:
    return isinstance(found, list) and bool(found) and all(_is_number(item) for item in found)


def _floats(found: list[Any], where: str) -> list[float]:
    try:
        return [float(number) for number in found]
    except OverflowError as error:
        raise RegionError(f"{where}: a coordinate is too large for a float") from error


def _is_number(item: Any) -> bool:
    return isinstance(item, int | float) and not isinstance(item, bool)


def _unreadable(text: str, option: str, expected: str) -> RegionError:
    return RegionError(f"{option} {shorten(text)}: expected numbers like {expected}")
