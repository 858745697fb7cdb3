"""Regions that a person points at: shapes, JSON, phrases, random marks, and drawing.

Needs only numpy and Pillow (and shapely for polygons). It does not know torch, models, files or the
network.
"""

from __future__ import annotations

from vip_llava.regions.colors import PALETTE, color_name, rgb
from vip_llava.regions.draw import draw, draw_resolved
from vip_llava.regions.geometry import repair_polygons
from vip_llava.regions.phrases import collapse, expand, phrase
from vip_llava.regions.resolve import Resolution, resolve
from vip_llava.regions.rle import Rle
from vip_llava.regions.sampling import (
    find_policy,
    generator,
    sample_region,
    sample_visual_prompts,
)
from vip_llava.regions.serialize import region_from_json, regions_from_json
from vip_llava.regions.shapes import (
    SHAPES,
    Arrow,
    Box,
    Contour,
    Ellipse,
    Mask,
    Point,
    Region,
    Scribble,
    Triangle,
)

__all__ = [
    "PALETTE",
    "SHAPES",
    "Arrow",
    "Box",
    "Contour",
    "Ellipse",
    "Mask",
    "Point",
    "Region",
    "Resolution",
    "Rle",
    "Scribble",
    "Triangle",
    "collapse",
    "color_name",
    "draw",
    "draw_resolved",
    "expand",
    "find_policy",
    "generator",
    "phrase",
    "region_from_json",
    "regions_from_json",
    "repair_polygons",
    "resolve",
    "rgb",
    "sample_region",
    "sample_visual_prompts",
]
