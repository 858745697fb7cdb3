"""Valid polygons for a region, from a free-hand loop or a pixel mask.

A loop may cross itself and a mask may have many parts, but a region needs simple polygons. Pure
geometry.
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
_MIN_SHARE = 0.01  # smaller parts, relative to the largest, are dropped
_LARGEST_MASK = 1024


def of_loop(points: object) -> list[list[float]]:
    """The area enclosed by a loop, as flat polygons [x, y, x, y, ...], largest first.

    Args:
        points: 3 to 5,000 points [x, y]; the loop may cross itself.

    Raises:
        RegionError: anything else, or a loop that encloses nothing.
    """
    if not isinstance(points, list) or not 3 <= len(points) <= MAX_POINTS:
        raise RegionError(f"an outline must be a list of 3 to {MAX_POINTS} points [x, y]")
    try:
        ring = np.array(points, dtype=np.float64)
    except (TypeError, ValueError):
        ring = np.empty(0)
    if ring.ndim != 2 or ring.shape[1] != 2 or not np.isfinite(ring).all():
        raise RegionError("each point of an outline must be [x, y], two finite numbers")
    from shapely import LineString, polygonize, unary_union

    line = unary_union(LineString(np.vstack([ring, ring[:1]])))
    return _polygons(unary_union(list(polygonize([line]).geoms)))


def of_mask(mask: npt.NDArray[np.bool_]) -> list[list[float]]:
    """The outlines of a mask [height, width], as flat polygons in pixels, largest first.

    Holes are filled.

    Raises:
        RegionError: the mask is empty.
    """
    import cv2
    from shapely import Polygon, unary_union

    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    tolerance = 0.8 * max(1.0, max(mask.shape) / _LARGEST_MASK)
    rings = [cv2.approxPolyDP(each, tolerance, True)[:, 0, :] for each in found if len(each) >= 3]
    # Simplified outlines may touch or cross themselves; a zero-width buffer repairs them.
    parts = [Polygon(ring).buffer(0) for ring in rings if len(ring) >= 3]
    return _polygons(unary_union(parts))


def _polygons(area: Any) -> list[list[float]]:
    parts = sorted(
        (part for part in getattr(area, "geoms", [area]) if part.geom_type == "Polygon"),
        key=lambda part: -part.area,
    )
    if not parts or parts[0].area < 1:
        raise RegionError("the outline encloses nothing; draw around the object")
    kept = [part for part in parts if part.area >= max(1, _MIN_SHARE * parts[0].area)]
    return [
        [round(float(number), 2) for point in list(part.exterior.coords)[:-1] for number in point]
        for part in kept
    ]
