"""The shapes a person can point with: one class each, and `SHAPES`, the registry of them.

A shape brings its geometry, its JSON keys, its words and its strokes. Adding one takes a subclass of
`Region` (see there) and a line in `SHAPES`.
"""

from __future__ import annotations

from vip_llava.regions.shapes.areas import Contour, Mask
from vip_llava.regions.shapes.arrow import Arrow
from vip_llava.regions.shapes.base import ANCHOR, Frame, Region, Size, check_size
from vip_llava.regions.shapes.corners import Box, Ellipse
from vip_llava.regions.shapes.paths import Scribble, Triangle
from vip_llava.regions.shapes.point import Point

__all__ = [
    "ANCHOR",
    "SHAPES",
    "Arrow",
    "Box",
    "Contour",
    "Ellipse",
    "Frame",
    "Mask",
    "Point",
    "Region",
    "Scribble",
    "Size",
    "Triangle",
    "check_size",
]

#: Shape name -> class.
SHAPES: dict[str, type[Region]] = {
    kind.shape: kind for kind in (Box, Ellipse, Triangle, Point, Scribble, Arrow, Contour, Mask)
}
