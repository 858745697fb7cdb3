"""Regions from JSON, strictly: the one format of files, requests and data rows.

{"id": "1", "shape": "box", "frame": "pixel", "box": [x1, y1, x2, y2], "color": "red", "alpha": 255,
"width": 3} - shape, frame and the shape's geometry are required, unknown keys are errors. Writing
is `Region.to_json`. This module reads no files and knows no images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vip_llava.errors import RegionError
from vip_llava.regions.geometry import brief
from vip_llava.regions.shapes import SHAPES, Region

__all__ = ["region_from_json", "regions_from_json"]

_COMMON = frozenset({"id", "shape", "frame", "color", "alpha", "width"})
#: Shape -> (keys of its geometry of which one set is required, further keys it may have).
_GEOMETRY: Mapping[str, tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]] = {
    "box": ((("box",),), ()),
    "ellipse": ((("box",),), ()),
    "triangle": ((("points",),), ()),
    "point": ((("point",),), ("radius",)),
    "scribble": ((("points",),), ()),
    "arrow": ((("tail", "tip"),), ("head", "filled")),
    "contour": ((("polygons",), ("rle",)), ()),
    "mask": ((("polygons",), ("rle",)), ()),
}


def region_from_json(value: object, *, index: int | None = None) -> Region:
    """The region of one JSON object.

    `index` is its place in a list, for messages. Raises RegionError for unknown or missing keys,
    an unknown shape, and everything that the shape itself refuses.
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
    _check_keys(value, shape, who)
    kind = SHAPES[shape]
    common: dict[str, Any] = {key: value[key] for key in _COMMON - {"shape"} if key in value}
    if isinstance(common.get("color"), list):
        common["color"] = tuple(common["color"])
    try:
        return kind(**kind._parse(value, who), **common)
    except RegionError as error:
        if index is None or isinstance(name, str):
            raise
        raise RegionError(f"region number {index + 1}: {error}") from None


def regions_from_json(value: object) -> tuple[Region, ...]:
    """The regions of a JSON list; messages name the place of a bad one. Raises RegionError."""
    if not isinstance(value, (list, tuple)):
        raise RegionError(f"regions must be a JSON list, not {type(value).__name__}")
    return tuple(region_from_json(each, index=index) for index, each in enumerate(value))


def _check_keys(value: Mapping[Any, Any], shape: str, who: str) -> None:
    choices, further = _GEOMETRY[shape]
    known = _COMMON.union(further, *choices)
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
