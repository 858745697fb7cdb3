"""Checks of numbers, points and polygons, and clipping of polygons and segments.

Every check raises a RegionError that names the owner (`who`, for example "region '2' (box)") and the
broken rule. The module does not know region types, colours, images or drawing. It imports shapely
only to test a polygon for self-intersection, to repair one, and to clip one at the image's border.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from vip_llava.errors import RegionError

__all__ = [
    "MAX_COORDINATE",
    "MAX_POINTS",
    "MAX_POLYGON_POINTS",
    "Bounds",
    "Point2",
    "Polygon",
    "brief",
    "clip_polygons",
    "clip_segments",
    "length",
    "number",
    "point",
    "points",
    "polygons",
    "repair_polygons",
]

#: Limits that bound the work of every later step: coordinates in either frame, points of a scribble,
#: and points of all polygons of one region.
MAX_COORDINATE = 1_000_000.0
MAX_POINTS = 10_000
MAX_POLYGON_POINTS = 20_000

Point2: TypeAlias = tuple[float, float]
Polygon: TypeAlias = tuple[float, ...]  # x, y, x, y, ...
Bounds: TypeAlias = tuple[float, float, float, float]  # x1, y1, x2, y2


def brief(value: object) -> str:
    """A short representation of any value, for error messages."""
    try:
        return reprlib.repr(value)[:80]
    except ValueError:  # an int of thousands of digits has no repr
        return type(value).__name__


def number(value: object, what: str, who: str) -> float:
    """`value` as a finite float within the coordinate limit; `what` names it ("x1")."""
    if type(value) is not float:  # the common case costs one comparison
        if isinstance(value, bool) or not hasattr(value, "__float__"):
            raise RegionError(f"{who}: {what} must be a number, not {brief(value)}")
        try:
            value = float(value)
        except (TypeError, ValueError, OverflowError):
            raise RegionError(
                f"{who}: {what} must be one finite number, not {brief(value)}"
            ) from None
    if not -MAX_COORDINATE <= value <= MAX_COORDINATE:
        if not math.isfinite(value):
            raise RegionError(f"{who}: {what} must be finite, not {value}")
        raise RegionError(f"{who}: {what} is {value:g}, beyond the limit of {MAX_COORDINATE:g}")
    return value


def length(value: object, what: str, limit: float, who: str) -> float:
    """`value` as a float over 0 and at most `limit`."""
    found = number(value, what, who)
    if not 0 < found <= limit:
        raise RegionError(f"{who}: {what} must be over 0 and at most {limit:g}, not {found:g}")
    return found


def point(value: object, what: str, who: str) -> Point2:
    """`value` as (x, y)."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise RegionError(f"{who}: {what} must be [x, y], not {brief(value)}")
    return number(value[0], f"{what} x", who), number(value[1], f"{what} y", who)


def points(value: object, least: int, most: int, who: str) -> tuple[Point2, ...]:
    """`value` as `least`..`most` points [[x, y], ...]."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise RegionError(f"{who}: points must be a list of [x, y], not {type(value).__name__}")
    if not least <= len(value) <= most:
        wanted = str(least) if least == most else f"{least} to {most}"
        raise RegionError(f"{who}: needs {wanted} points, got {len(value)}")
    return tuple(point(each, f"point {index + 1}", who) for index, each in enumerate(value))


def polygons(value: object, who: str) -> tuple[Polygon, ...]:
    """`value` as one or more simple polygons, each a flat tuple (x, y, x, y, ...).

    A polygon may be given flat, as COCO does, or as points [[x, y], ...]. Each needs three
    corners, a non-zero area, and must not cross itself. Polygons of one region may overlap.
    """
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, (list, tuple)) or not value:
        raise RegionError(f"{who}: polygons must be a list with at least one [x, y, x, y, ...]")
    if not isinstance(value[0], (list, tuple, np.ndarray)):
        raise RegionError(f"{who}: polygons is a list of polygons: write [[x, y, x, y, ...]]")
    result = []
    count = 0
    for index, each in enumerate(value):
        label = f"{who}: polygon {index + 1}"
        flat = _flat(each, label)
        count += len(flat) // 2
        if count > MAX_POLYGON_POINTS:
            raise RegionError(f"{who}: more than {MAX_POLYGON_POINTS} polygon points")
        _check_simple(flat, label)
        result.append(flat)
    return tuple(result)


def _flat(value: object, who: str) -> Polygon:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise RegionError(f"{who} must be [x, y, x, y, ...], not {brief(value)}")
    if len(value) > 2 * MAX_POLYGON_POINTS:
        raise RegionError(f"{who} has more than {MAX_POLYGON_POINTS} points")
    if value and isinstance(value[0], (list, tuple, np.ndarray)):
        pairs = [point(each, f"point {index + 1}", who) for index, each in enumerate(value)]
        flat = tuple(part for pair in pairs for part in pair)
    else:
        if len(value) % 2:
            raise RegionError(f"{who} has {len(value)} numbers; they come in pairs x, y")
        flat = tuple(number(part, f"number {index + 1}", who) for index, part in enumerate(value))
    if len(flat) < 6:
        raise RegionError(f"{who} needs at least 3 points, got {len(flat) // 2}")
    return flat


def _check_simple(flat: Polygon, who: str) -> None:
    """Raise unless a polygon has an area and does not cross itself. It may touch itself in a point."""
    corners = np.array(flat, dtype=np.float64).reshape(-1, 2)
    offsets = corners - corners[0]
    # A polygon with any number of corners may lie on one line.
    farthest = offsets[np.abs(offsets).sum(axis=1).argmax()]
    if not (offsets[:, 0] * farthest[1] != offsets[:, 1] * farthest[0]).any():
        raise RegionError(f"{who} has no area")
    if len(corners) == 3:  # a triangle can't cross itself
        return
    import shapely

    shape = shapely.Polygon(corners)
    if shapely.is_valid(shape):
        return
    reason = str(shapely.is_valid_reason(shape))
    if reason.startswith("Self-intersection"):
        place = reason.partition("[")[2].rstrip("]").replace(" ", ", ")
        raise RegionError(f"{who} crosses itself near ({place}); give one that does not")
    if reason.startswith("Too few points"):
        raise RegionError(f"{who} has no area")


def repair_polygons(value: Iterable[Sequence[float]]) -> list[list[float]]:
    """Simple polygons that cover the same area as self-crossing ones, holes filled.

    For data files, whose polygons often cross themselves in a pixel or two. Parts without area
    are dropped, so the result may be empty. Numbers must be finite.
    """
    import shapely

    result: list[list[float]] = []
    for each in value:
        corners = np.array(each, dtype=np.float64).reshape(-1, 2)
        if len(corners) < 3:
            continue
        repaired = shapely.make_valid(shapely.Polygon(corners))
        result += [list(ring) for ring in _rings(shapely.get_parts(repaired))]
    return result


def clip_polygons(parts: Sequence[Polygon], width: float, height: float) -> tuple[Polygon, ...]:
    """The parts of polygons inside 0..width x 0..height; empty if all lie outside."""
    import shapely

    frame = shapely.box(0, 0, width, height)
    result: list[Polygon] = []
    for flat in parts:
        corners = np.array(flat, dtype=np.float64).reshape(-1, 2)
        low, high = corners.min(axis=0), corners.max(axis=0)
        if low.min() >= 0 and high[0] <= width and high[1] <= height:
            result.append(flat)
            continue
        cut = shapely.intersection(shapely.make_valid(shapely.Polygon(corners)), frame)
        result += _rings(cut)
    return tuple(result)


def _rings(shape: Any) -> list[Polygon]:
    """The outer rings of all polygons in a shapely geometry or array of geometries."""
    import shapely

    rings = []
    for part in shapely.get_parts(shape):
        if part.geom_type == "Polygon" and part.area > 0:
            corners = np.asarray(part.exterior.coords)[:-1]
            rings.append(tuple(float(number) for number in corners.ravel()))
    return rings


def clip_segments(
    starts: npt.NDArray[np.float64], ends: npt.NDArray[np.float64], frame: Bounds
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Clip segments at a frame (Liang-Barsky).

    Args:
        starts: first points, [n, 2].
        ends: last points, [n, 2].
        frame: x1, y1, x2, y2.

    Returns:
        Clipped starts [n, 2], clipped ends [n, 2], and which segments touch the frame [n].
    """
    direction = ends - starts
    low = np.zeros(len(starts))
    high = np.ones(len(starts))
    kept = np.ones(len(starts), dtype=bool)
    for axis in (0, 1):
        step, origin = direction[:, axis], starts[:, axis]
        still = step == 0
        safe = np.where(still, 1.0, step)
        near = (frame[axis] - origin) / safe
        far = (frame[axis + 2] - origin) / safe
        low = np.where(still, low, np.maximum(low, np.minimum(near, far)))
        high = np.where(still, high, np.minimum(high, np.maximum(near, far)))
        kept &= ~still | ((origin >= frame[axis]) & (origin <= frame[axis + 2]))
    kept &= low <= high
    cut_starts = np.where((low > 0)[:, None], starts + low[:, None] * direction, starts)
    cut_ends = np.where((high < 1)[:, None], starts + high[:, None] * direction, ends)
    return cut_starts, cut_ends, kept
