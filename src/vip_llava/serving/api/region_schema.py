"""The JSON schema of a Region, for the OpenAPI document.

It only documents: `regions` validates, and a test checks that both agree.
"""

from __future__ import annotations

from typing import Any

__all__ = ["region_schema"]

_NUMBER = {"type": "number"}
_POINT = {"type": "array", "items": _NUMBER, "minItems": 2, "maxItems": 2}
_CORNERS = {
    "type": "array",
    "items": _NUMBER,
    "minItems": 4,
    "maxItems": 4,
    "description": "x1, y1, x2, y2",
}
_COMMON: dict[str, Any] = {
    "id": {
        "type": "string",
        "description": 'Named by <region:ID> in texts; default "1", "2", ...',
    },
    "frame": {
        "enum": ["pixel", "unit"],
        "description": "pixel: of the EXIF-turned image; unit: 0..1 of it.",
    },
    "color": {
        "anyOf": [
            {"type": "string"},
            {"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 3},
        ],
        "description": 'A named colour, "#rrggbb" or [r, g, b]; default: the next unused one.',
    },
    "alpha": {"type": "integer", "minimum": 0, "maximum": 255},
    "width": {"type": "number", "exclusiveMinimum": 0, "description": "Line width in pixels."},
}
_POLYGONS = {
    "type": "array",
    "items": {"type": "array", "items": _NUMBER, "minItems": 6},
    "minItems": 1,
    "description": "Each x, y, x, y, ...",
}
_RLE = {
    "type": "object",
    "required": ["size", "counts"],
    "properties": {
        "size": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
        "counts": {"description": "COCO run lengths: a string, or a list of numbers."},
    },
}
_SHAPES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "box": ({"box": _CORNERS}, ("box",)),
    "ellipse": ({"box": _CORNERS}, ("box",)),
    "triangle": (
        {"points": {"type": "array", "items": _POINT, "minItems": 3, "maxItems": 3}},
        ("points",),
    ),
    "point": ({"point": _POINT, "radius": {"anyOf": [_NUMBER, _POINT]}}, ("point",)),
    "scribble": ({"points": {"type": "array", "items": _POINT, "minItems": 2}}, ("points",)),
    "arrow": (
        {"tail": _POINT, "tip": _POINT, "head": {"type": "number"}, "filled": {"type": "boolean"}},
        ("tail", "tip"),
    ),
    "contour": ({"polygons": _POLYGONS, "rle": _RLE}, ()),
    "mask": ({"polygons": _POLYGONS, "rle": _RLE}, ()),
}


def region_schema() -> dict[str, Any]:
    """One alternative for each shape, distinguished by `shape`."""
    return {"title": "Region", "oneOf": [_shape(name) for name in _SHAPES]}


def _shape(name: str) -> dict[str, Any]:
    own, required = _SHAPES[name]
    schema: dict[str, Any] = {
        "title": name,
        "type": "object",
        "required": ["shape", "frame", *required],
        "properties": {"shape": {"const": name}, **_COMMON, **own},
        "additionalProperties": False,
    }
    if not required:
        schema["oneOf"] = [{"required": ["polygons"]}, {"required": ["rle"]}]
    return schema
