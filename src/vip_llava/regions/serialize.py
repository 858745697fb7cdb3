"""Regions from JSON: the one format of files, requests and data rows.

{"id": "1", "shape": "box", "frame": "pixel", "box": [x1, y1, x2, y2], "color": "red", "alpha": 255,
"width": 3} - shape, frame and the shape's geometry are required, unknown keys are errors. The
inverse is `Region.to_json`. This module does not know files or images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vip_llava.errors import RegionError
from vip_llava.regions.geometry import brief
from vip_llava.regions.shapes import SHAPES, Region

__all__ = ["region_from_json", "regions_from_json"]

_COMMON = frozenset({"id", "shape", "frame", "color", "alpha", "width"})


def region_from_json(value: object, *, index: int | None = None) -> Region:
    """The region of one JSON object.

    `index` is its position in a list, for messages. Raises RegionError for unknown or missing keys,
    an unknown shape, and invalid values.
    """
    where = "region" if index is None else f"region number {index + 1}"
    if not isinstance(value, Mapping):
        raise RegionError(f"{where}: must be a JSON object, not {type(value).__name__}")
    shape = value.get("shape")
    if "shape" not in value:
        raise RegionError(f'{where}: the key "shape" is missing; give one of {", ".join(SHAPES)}')
    if not isinstance(shape, str) or shape not in SHAPES:
        raise RegionError(f"{where}: unknown shape {brief(shape)}; give one of {', '.join(SHAPES)}")
    name = value.get("id")
    who = f"region {brief(name)} ({shape})" if isinstance(name, str) else f"{where} ({shape})"
    kind = SHAPES[shape]
    _check_keys(value, kind, who)
    common: dict[str, Any] = {key: value[key] for key in _COMMON - {"shape"} if key in value}
    if isinstance(common.get("color"), list):
        common["color"] = tuple(common["color"])
    try:
        return kind(**kind.geometry_from_json(value, who), **common)
    except RegionError as error:
        if index is None or isinstance(name, str):
            raise
        raise RegionError(f"region number {index + 1}: {error}") from None


def regions_from_json(value: object) -> tuple[Region, ...]:
    """The regions of a JSON list. Raises RegionError that names the position of an invalid one."""
    if not isinstance(value, (list, tuple)):
        raise RegionError(f"regions must be a JSON list, not {type(value).__name__}")
    return tuple(region_from_json(each, index=index) for index, each in enumerate(value))


def _check_keys(value: Mapping[Any, Any], kind: type[Region], who: str) -> None:
    choices = kind.required_keys
    known = _COMMON.union(kind.optional_keys, *choices)
    unknown = sorted(str(key) for key in value if key not in known)
    if unknown:
        raise RegionError(
            f"{who}: unknown key {brief(unknown[0])}; known: {', '.join(sorted(known))}"
        )
    if "frame" not in value:
        raise RegionError(f'{who}: the key "frame" is missing; give "pixel" or "unit"')
    given = [choice for choice in choices if all(key in value for key in choice)]
    if len(given) != 1:
        wanted = " or ".join(" and ".join(f'"{key}"' for key in choice) for choice in choices)
        count = "both are given" if len(given) > 1 else "missing"
        raise RegionError(f"{who}: needs {wanted} ({count})")
