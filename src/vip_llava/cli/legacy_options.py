"""The flags of the original program's command line, and the Region that they describe.

`--bbox --seg --shape --rgb` (with `--alpha --width`) describe one region. The original draws it with
random sizes and angles; here the drawing is the same every time. The original's line width applies
to an image whose longest side is 336 pixels, so it is scaled to the photo. `LEGACY_ALIASES` are the
original's names of options that exist here too.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vip_llava.cli.parsing import parse_numbers, parse_polygons
from vip_llava.errors import RegionError

if TYPE_CHECKING:
    from vip_llava.regions import Region

__all__ = [
    "LEGACY_ALIASES",
    "LEGACY_NAMES",
    "LEGACY_PANEL",
    "LEGACY_SHAPES",
    "LegacyOptions",
    "legacy_region",
]

LEGACY_PANEL = "Flags of the original program"
LEGACY_NAMES = ("bbox", "seg")
LEGACY_ALIASES = {
    "--model-path": "--model",
    "--model-base": "--base",
    "--conv-mode": "--template",
    "--image_aspect_ratio": "--image-aspect-ratio",
    "--max_new_tokens": "--max-new-tokens",
    "--top_p": "--top-p",
    "--controller-address": "--controller",
    "--controller-url": "--controller",
    "--model-name": "--name",
}
LEGACY_SHAPES = (
    "rectangle",
    "ellipse",
    "triangle",
    "point",
    "scribble",
    "mask contour",
    "mask",
    "arrow",
)
ANCHOR = 336
DEFAULT_RGB, DEFAULT_ALPHA, DEFAULT_WIDTH = (255, 0, 0), 128, 3
DOT_RADIUS = 8
ARROW_LENGTH = 50
# A cubic Bezier curve from lower left to upper right, as fractions of the box's sides.
SCRIBBLE_CORNERS = ((0.15, 0.75), (0.4, -0.1), (0.6, 1.1), (0.85, 0.25))
SCRIBBLE_POINTS = 24

Bounds = tuple[float, float, float, float]
Polygons = list[list[float]]


def _option(flag: str, metavar: str, text: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=text, rich_help_panel=LEGACY_PANEL)


@dataclasses.dataclass(frozen=True, slots=True)
class LegacyOptions:
    """Flags that only the original has. They describe one region; the last of a repeated flag wins."""

    image_file: Annotated[str | None, _option("--image-file", "PHOTO", "The photo.")] = None
    bbox: Annotated[
        list[str] | None, _option("--bbox", "X1,Y1,X2,Y2", "Box of the object, in pixels.")
    ] = None
    seg: Annotated[
        list[str] | None, _option("--seg", "POLYGONS", "Outline: x,y,x,y,... or JSON polygons.")
    ] = None
    shape: Annotated[
        str | None, _option("--shape", "NAME", f"What to draw: {', '.join(LEGACY_SHAPES)}.")
    ] = None
    rgb: Annotated[str | None, _option("--rgb", "R,G,B", "Colour (default: 255,0,0).")] = None

    def names_a_region(self) -> bool:
        """Whether any flag describes a region."""
        return any((self.bbox, self.seg, self.shape, self.rgb))


def legacy_region(options: LegacyOptions, size: tuple[int, int], style: dict[str, Any]) -> Region:
    """The region that the original's flags describe on a photo of `size` (width, height).

    `style` may hold `alpha` (0..255), `width` (in the original's unit) and `color`, which replaces a
    missing `--rgb`. Raises RegionError for an unknown shape, unreadable numbers, or neither
    `--bbox` nor `--seg`.
    """
    shape = (options.shape or "rectangle").replace("-", " ").replace("_", " ").strip().lower()
    if shape not in LEGACY_SHAPES:
        raise RegionError(f"--shape {options.shape!r}: must be one of {', '.join(LEGACY_SHAPES)}")
    polygons = _outline(options.seg[-1]) if options.seg else None
    if options.bbox:
        bounds = _bounds_of_text(options.bbox[-1])
    elif polygons:
        bounds = _bounds_of(polygons)
    else:
        raise RegionError("--shape and --rgb need --bbox x1,y1,x2,y2 or --seg x,y,x,y,...")
    scale = max(size) / ANCHOR
    common = {
        "color": _rgb(options.rgb) if options.rgb else style.get("color", DEFAULT_RGB),
        "alpha": style.get("alpha", DEFAULT_ALPHA),
        "width": max(int(style.get("width", DEFAULT_WIDTH) * scale), 1),
    }
    return _make(shape, bounds, polygons, size, common)


def _make(
    shape: str,
    bounds: Bounds,
    polygons: Polygons | None,
    size: tuple[int, int],
    common: dict[str, Any],
) -> Region:
    from vip_llava import regions as r

    x1, y1, x2, y2 = bounds
    scale = max(size) / ANCHOR
    if shape == "rectangle":
        return r.Box(x1, y1, x2, y2, **common)
    r.Box(x1, y1, x2, y2)  # checks the box from which the other shapes are made
    if shape == "ellipse":
        return r.Ellipse(*(_bounds_of(polygons) if polygons else bounds), **common)
    if shape == "triangle":
        return r.Triangle(points=(((x1 + x2) / 2, y1), (x2, y2), (x1, y2)), **common)
    if shape == "point":
        x, y = _inside(bounds, polygons)
        return r.Point(x, y, radius=max(int(DOT_RADIUS * scale), 1), **common)
    if shape == "scribble":
        return r.Scribble(points=tuple(_curve(bounds)), **common)
    if shape == "arrow":
        tip = _inside(bounds, polygons)
        return r.Arrow(tail=_tail(bounds, tip, size), tip=tip, **common)
    corners = [[x1, y1, x1, y2, x2, y2, x2, y1]]
    outline = tuple(tuple(flat) for flat in polygons or corners)
    if shape == "mask":
        return r.Mask(polygons=outline, **common)
    return r.Contour(polygons=outline, **common)


def _bounds_of_text(text: str) -> Bounds:
    numbers = parse_numbers(text, "--bbox", "x1,y1,x2,y2")
    if len(numbers) != 4:
        raise RegionError(f"--bbox {text!r}: needs 4 numbers x1,y1,x2,y2, got {len(numbers)}")
    return (numbers[0], numbers[1], numbers[2], numbers[3])


def _outline(text: str) -> Polygons:
    """The polygons of `--seg`; self-crossing ones, which occur in data files, are repaired."""
    from vip_llava.regions import Contour, repair_polygons

    polygons = parse_polygons(text, "--seg")
    try:
        Contour(polygons=tuple(map(tuple, polygons)))
        return polygons
    except RegionError as error:
        usable = all(
            len(flat) >= 6 and len(flat) % 2 == 0 and all(map(math.isfinite, flat))
            for flat in polygons
        )
        repaired = repair_polygons(polygons) if usable else None
        if not repaired:
            raise RegionError(f"--seg: {error}") from error
        return repaired


def _bounds_of(polygons: Polygons) -> Bounds:
    xs = [x for polygon in polygons for x in polygon[::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    return (min(xs), min(ys), max(xs), max(ys))


def _inside(bounds: Bounds, polygons: Polygons | None) -> tuple[float, float]:
    """The centre of the box, or a point inside the largest polygon if no polygon holds the centre."""
    x1, y1, x2, y2 = _bounds_of(polygons) if polygons else bounds
    centre = ((x1 + x2) / 2, (y1 + y2) / 2)
    if not polygons:
        return centre
    from shapely.geometry import Point, Polygon

    shapes = [
        Polygon(list(zip(flat[::2], flat[1::2], strict=False))).buffer(0) for flat in polygons
    ]
    if not shapes or any(shape.contains(Point(centre)) for shape in shapes):
        return centre
    place = max(shapes, key=lambda shape: shape.area).representative_point()
    return (place.x, place.y) if not place.is_empty else centre


def _tail(bounds: Bounds, tip: tuple[float, float], size: tuple[int, int]) -> tuple[float, float]:
    """The start of an arrow to `tip`: on the diagonal with the most room, inside the photo."""
    x1, y1, x2, y2 = bounds
    scale = max(size) / ANCHOR
    # The original draws lengths between 0.8 sides and 50 pixels; this is the middle.
    length = max((0.8 * min(x2 - x1, y2 - y1) + ARROW_LENGTH * scale) / 2, ARROW_LENGTH * scale / 2)
    step = length / 2**0.5
    x = tip[0] - step if tip[0] > size[0] / 2 else tip[0] + step
    y = tip[1] - step if tip[1] > size[1] / 2 else tip[1] + step
    return (min(max(x, 0.0), float(size[0])), min(max(y, 0.0), float(size[1])))


def _curve(bounds: Bounds) -> list[tuple[float, float]]:
    x1, y1, x2, y2 = bounds
    corners = [(x1 + x * (x2 - x1), y1 + y * (y2 - y1)) for x, y in SCRIBBLE_CORNERS]
    curve = []
    for index in range(SCRIBBLE_POINTS):
        t = index / (SCRIBBLE_POINTS - 1)
        weights = ((1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3)
        x = sum(weight * corner[0] for weight, corner in zip(weights, corners, strict=True))
        y = sum(weight * corner[1] for weight, corner in zip(weights, corners, strict=True))
        curve.append((x, y))
    return curve


def _rgb(text: str | None) -> tuple[int, int, int]:
    if text is None:
        return DEFAULT_RGB
    numbers = parse_numbers(text, "--rgb", "255,0,0")
    if len(numbers) != 3 or any(not 0 <= n <= 255 or n != int(n) for n in numbers):
        raise RegionError(f"--rgb {text!r}: needs three whole numbers 0..255 like 255,0,0")
    return (int(numbers[0]), int(numbers[1]), int(numbers[2]))
