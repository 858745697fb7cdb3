"""Outlines that a region may have, from what a hand drew or a model marked.

A free-hand loop crosses itself, and a mask has many parts; a region takes polygons that do neither.
Knows geometry only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vip_llava.errors import RegionError

__all__ = ["of_loop", "of_mask"]

Point = Sequence[float]
MAX_POINTS = 5000
_SMALL = 0.01  # parts under this share of the largest are left out
_LARGEST_MASK = 1024


def of_loop(points: object) -> list[list[float]]:
    """The area that a closed line goes around, as flat polygons [x, y, x, y, ...], largest first.

    points: 3 to 5,000 [x, y]; the line may cross itself. RegionError for anything else, and where
    it encloses nothing.
    """
    if not isinstance(points, list) or not 3 <= len(points) <= MAX_POINTS:
        raise RegionError(f"an outline is a list of 3 to {MAX_POINTS} points [x, y]")
    try:
        ring = np.array(points, dtype=np.float64)
    except (TypeError, ValueError):
        ring = np.empty(0)
    if ring.ndim != 2 or ring.shape[1] != 2 or not np.isfinite(ring).all():
        raise RegionError("each point of an outline is [x, y], two finite numbers")
    from shapely import LineString, polygonize, unary_union

    line = unary_union(LineString(np.vstack([ring, ring[:1]])))
    return _polygons(unary_union(list(polygonize([line]).geoms)))


def of_mask(mask: npt.NDArray[np.bool_]) -> list[list[float]]:
    """The outlines of a mask [height, width], as flat polygons in pixels, largest first.

    Holes are filled. RegionError where the mask is empty.
    """
    import cv2
    from shapely import Polygon, unary_union

    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    slack = 0.8 * max(1.0, max(mask.shape) / _LARGEST_MASK)
    rings = [cv2.approxPolyDP(each, slack, True)[:, 0, :] for each in found if len(each) >= 3]
    # Outlines that were made simpler may touch or cross themselves; this undoes it.
    parts = [Polygon(ring).buffer(0) for ring in rings if len(ring) >= 3]
    return _polygons(unary_union(parts))


def _polygons(area: Any) -> list[list[float]]:
    parts = sorted(
        (part for part in getattr(area, "geoms", [area]) if part.geom_type == "Polygon"),
        key=lambda part: -part.area,
    )
    if not parts or parts[0].area < 1:
        raise RegionError("the outline encloses nothing; draw around the thing")
    kept = [part for part in parts if part.area >= max(1, _SMALL * parts[0].area)]
    return [
        [round(float(number), 2) for point in list(part.exterior.coords)[:-1] for number in point]
        for part in kept
    ]
