"""Numbers and point lists: what is accepted as geometry, and the few computations on it.

Every check names its owner (`who`, for example "region '2' (box)") and the rule that was broken.
This module knows nothing of region types, colours, images or drawing. shapely is imported only
where a polygon is checked for crossing itself or is cut off at the image's border.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from vip_llava.errors import RegionError

__all__ = [
    "MAX_COORDINATE",
    "MAX_POINTS",
    "MAX_POLYGON_POINTS",
    "Frame",
    "Point2",
    "brief",
    "clip_polygons",
    "clip_segments",
    "number",
    "point",
    "points",
    "polygons",
    "repair_polygons",
]

#: Limits that keep every later step short: coordinates of either frame, points of a scribble,
#: points of all polygons of one region.
MAX_COORDINATE = 1_000_000.0
MAX_POINTS = 10_000
MAX_POLYGON_POINTS = 20_000

Point2 = tuple[float, float]
Polygon = tuple[float, ...]
Bounds = tuple[float, float, float, float]
Frame = str


def brief(value: object) -> str:
    """A value as messages show it: short, whatever it is."""
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
    corners, some area, and must not cross itself (several polygons of one region may overlap).
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
    """A polygon needs area and must not cross itself; touching itself in a point is allowed."""
    corners = np.array(flat, dtype=np.float64).reshape(-1, 2)
    offsets = corners - corners[0]
    # Three corners can't cross; a polygon of any size may lie on one line.
    farthest = offsets[np.abs(offsets).sum(axis=1).argmax()]
    if not (offsets[:, 0] * farthest[1] != offsets[:, 1] * farthest[0]).any():
        raise RegionError(f"{who} has no area")
    if len(corners) == 3:
        return
    import shapely

    shape = shapely.Polygon(corners)
    if shapely.is_valid(shape):
        return
    reason = str(shapely.is_valid_reason(shape))
    if reason.startswith("Self-intersection"):
        place = reason.partition("[")[2].rstrip("]")
        raise RegionError(
            f"{who} crosses itself near ({place.replace(' ', ', ')}); draw it without crossing"
        )
    if reason.startswith("Too few points"):
        raise RegionError(f"{who} has no area")


def repair_polygons(value: Iterable[Sequence[float]]) -> list[list[float]]:
    """Simple polygons that cover what self-crossing ones cover; holes are filled.

    For data files, whose polygons often cross themselves in a pixel or two. Parts without area
    are dropped, so the result may be empty; numbers must be finite. Uses shapely.
    """
    import shapely

    result: list[list[float]] = []
    for each in value:
        corners = np.array(each, dtype=np.float64).reshape(-1, 2)
        if len(corners) < 3:
            continue
        repaired = shapely.make_valid(shapely.Polygon(corners))
        for part in shapely.get_parts(shapely.get_parts(repaired)):
            if part.geom_type == "Polygon" and part.area > 0:
                ring = np.asarray(part.exterior.coords)[:-1]
                result.append([float(number) for number in ring.ravel()])
    return result


def clip_polygons(parts: Sequence[Polygon], width: float, height: float) -> tuple[Polygon, ...]:
    """The polygons' parts inside 0..width x 0..height; empty when nothing is inside."""
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
        for part in shapely.get_parts(cut):
            if part.geom_type == "Polygon" and part.area > 0:
                ring = np.asarray(part.exterior.coords)[:-1]
                result.append(tuple(float(number) for number in ring.ravel()))
    return tuple(result)


def clip_segments(
    starts: npt.NDArray[np.float64], ends: npt.NDArray[np.float64], frame: Bounds
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Segments cut off at a frame (Liang-Barsky): cut starts [n, 2], cut ends [n, 2], kept [n].

    Keeps what lies inside, so that drawing never walks along millions of pixels outside.
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
