"""What a person points at: regions, their JSON, their words, random ones, and drawing them.

Pure geometry, numpy and Pillow: no torch, no model, no files, no network.
"""

from __future__ import annotations

from vip_llava.regions.colors import PALETTE, color_name, rgb
from vip_llava.regions.draw import draw, draw_resolved, render
from vip_llava.regions.geometry import repair_polygons
from vip_llava.regions.phrases import collapse, expand, phrase
from vip_llava.regions.resolve import Resolution, resolve
from vip_llava.regions.rle import Rle
from vip_llava.regions.sampling import (
    generator,
    policy,
    sample_prompts,
    sample_region,
    sample_regions,
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
    "generator",
    "phrase",
    "policy",
    "region_from_json",
    "regions_from_json",
    "render",
    "repair_polygons",
    "resolve",
    "rgb",
    "sample_prompts",
    "sample_region",
    "sample_regions",
]
