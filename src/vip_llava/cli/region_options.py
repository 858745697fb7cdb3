"""Options that point at something: `--box`, `--arrow`, `--mask`, ... with `--color --alpha --width`.

Typed options become Regions in typed order, which is the order of their ids. A style typed before
the first region is the default of all; typed after a region, it is of that region alone. Geometry
rules belong to `vip_llava.regions`; this file only reads text.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vip_llava.cli.parsing import (
    is_number_text,
    parse_json,
    parse_numbers,
    parse_pairs,
    parse_polygons,
)
from vip_llava.cli.option_groups import Typed
from vip_llava.cli.legacy_options import LEGACY_NAMES, LegacyOptions, legacy_region
from vip_llava.cli.mask_files import outline_from_file, outline_from_json, read_json
from vip_llava.cli.terminal import note
from vip_llava.errors import RegionError

if TYPE_CHECKING:
    from vip_llava.regions import Region

__all__ = [
    "SHAPE_OPTIONS",
    "STYLES",
    "RegionOptions",
    "region_from_text",
    "regions_from_typed",
    "style_from_text",
]

PANEL = "Regions: what you point at (repeatable; ids 1, 2, ... in typed order)"
STYLE_PANEL = "Style: before the first region for all of them, after a region for that one"


def _option(flag: str, metavar: str, text: str, panel: str = PANEL) -> Any:
    return typer.Option(flag, metavar=metavar, help=text, rich_help_panel=panel)


@dataclasses.dataclass(frozen=True, slots=True)
class RegionOptions:
    """What was typed, per option; the order across options is in `groups.typed_options`."""

    box: Annotated[
        list[str] | None, _option("--box", "X1,Y1,X2,Y2", "A rectangle by two corners.")
    ] = None
    ellipse: Annotated[
        list[str] | None, _option("--ellipse", "X1,Y1,X2,Y2", "An ellipse that fills this box.")
    ] = None
    triangle: Annotated[
        list[str] | None, _option("--triangle", "X,Y,X,Y,X,Y", "A triangle by its corners.")
    ] = None
    point: Annotated[
        list[str] | None,
        _option(
            "--point",
            "X,Y[,RADIUS]",
            "A dot; the radius is in pixels (with --unit: of the longer side).",
        ),
    ] = None
    arrow: Annotated[
        list[str] | None, _option("--arrow", "X1,Y1,X2,Y2", "An arrow from its tail to its tip.")
    ] = None
    scribble: Annotated[
        list[str] | None, _option("--scribble", "X,Y,X,Y,...", "A free line through points.")
    ] = None
    contour: Annotated[
        list[str] | None,
        _option("--contour", "POLYGON|FILE", "An outline: x,y,x,y,... or a file as for --mask."),
    ] = None
    mask: Annotated[
        list[str] | None,
        _option(
            "--mask",
            "FILE|POLYGON",
            "A filled area: a PNG as large as the photo (non-zero inside), a JSON file with COCO "
            "RLE or polygons, or x,y,x,y,... (parts divided by ;).",
        ),
    ] = None
    regions: Annotated[
        list[str] | None,
        _option("--regions", "FILE.json", "Regions from a JSON file, each with its own frame."),
    ] = None
    unit: Annotated[
        bool,
        typer.Option(
            "--unit", help="Coordinates are shares of the photo, 0..1.", rich_help_panel=PANEL
        ),
    ] = False
    color: Annotated[
        list[str] | None,
        _option("--color", "NAME|#RRGGBB", "red, lime, blue, ... or any colour.", STYLE_PANEL),
    ] = None
    alpha: Annotated[
        list[str] | None, _option("--alpha", "0..255", "Opacity of the drawing.", STYLE_PANEL)
    ] = None
    width: Annotated[
        list[str] | None, _option("--width", "PIXELS", "Width of lines.", STYLE_PANEL)
    ] = None


@dataclasses.dataclass(slots=True)
class Draft:
    """Regions of one option (None: made later from the original's flags) and styles typed after it."""

    regions: list[Region] | None
    style: dict[str, Any]


Place = tuple[tuple[int, int], Literal["pixel", "unit"]]
"""(width, height) of the photo in pixels, and the frame that typed coordinates are in."""


def regions_from_typed(
    typed: Iterable[Typed],
    size: tuple[int, int],
    *,
    unit: bool = False,
    legacy: LegacyOptions | None = None,
) -> list[Region]:
    """Typed options -> Regions in typed order, with their styles.

    `size` is (width, height) of the photo in pixels. The one region that the original's flags
    describe stands where the first of them was typed. Raises RegionError naming the option.
    """
    place: Place = (size, "unit" if unit else "pixel")
    legacy = legacy or LegacyOptions()
    legacy_wanted = legacy.names_a_region()
    defaults: dict[str, Any] = {}
    drafts: list[Draft] = []
    for item in typed:
        if item.name in SHAPE_OPTIONS:
            drafts.append(Draft([region_from_text(item.name, item.value, place)], {}))
        elif item.name == "regions":
            drafts.append(Draft(_regions_from_file(item.value), {}))
        elif item.name in STYLES:
            style = drafts[-1].style if drafts else defaults
            style[item.name] = style_from_text(item.name, item.value)
        elif item.name in LEGACY_NAMES and legacy_wanted:
            drafts.append(Draft(None, {}))
            legacy_wanted = False
    if legacy_wanted:  # only --shape or --rgb: the message says what is missing
        drafts.append(Draft(None, {}))
    styled: list[Region] = []
    for draft in drafts:
        if draft.regions is None:
            styled.append(legacy_region(legacy, size, {**defaults, **draft.style}))
        else:
            styled += [_styled(region, defaults, draft.style) for region in draft.regions]
    return styled


def region_from_text(name: str, text: str, place: Place, **style: Any) -> Region:
    """One Region from the text of `--name`; `style` are keywords of the Region."""
    make = SHAPE_OPTIONS[name]
    try:
        return make(text, place, style)
    except RegionError as error:
        message = str(error)
        if message.startswith(f"--{name}"):
            raise
        raise RegionError(f"--{name} {_short(text)}: {message}") from error


def style_from_text(name: str, text: str) -> Any:
    """The value of `--color`, `--alpha` or `--width`; a RegionError names the option."""
    from vip_llava.regions import Box

    value = STYLES[name](text)
    try:
        Box(0, 0, 1, 1, **{name: value})  # the rules of a style are the same for every shape
    except RegionError as error:
        told = str(error).removeprefix("box: ")
        raise RegionError(f"--{name} {_short(text)}: {told}") from error
    return value


def _styled(region: Region, defaults: dict[str, Any], own: dict[str, Any]) -> Region:
    """`own` styles win over the region's, the region's over the `defaults`."""
    change = {key: value for key, value in defaults.items() if getattr(region, key) is None}
    change.update(own)
    return dataclasses.replace(region, **change) if change else region


def _four(name: str, text: str, wanted: str) -> tuple[float, float, float, float]:
    numbers = parse_numbers(text, f"--{name}", wanted)
    if len(numbers) != 4:
        raise RegionError(f"--{name} {_short(text)}: needs 4 numbers {wanted}, got {len(numbers)}")
    return (numbers[0], numbers[1], numbers[2], numbers[3])


def _box(text: str, place: Place, style: dict[str, Any]) -> Region:
    from vip_llava.regions import Box

    return Box(*_four("box", text, "x1,y1,x2,y2"), frame=place[1], **style)


def _ellipse(text: str, place: Place, style: dict[str, Any]) -> Region:
    from vip_llava.regions import Ellipse

    return Ellipse(*_four("ellipse", text, "x1,y1,x2,y2"), frame=place[1], **style)


def _arrow(text: str, place: Place, style: dict[str, Any]) -> Region:
    from vip_llava.regions import Arrow

    x1, y1, x2, y2 = _four("arrow", text, "tail-x,tail-y,tip-x,tip-y")
    return Arrow(tail=(x1, y1), tip=(x2, y2), frame=place[1], **style)


def _triangle(text: str, place: Place, style: dict[str, Any]) -> Region:
    from vip_llava.regions import Triangle

    points = parse_pairs(text, "--triangle", "x,y,x,y,x,y")
    return Triangle(points=tuple(points), frame=place[1], **style)


def _scribble(text: str, place: Place, style: dict[str, Any]) -> Region:
    from vip_llava.regions import Scribble

    points = parse_pairs(text, "--scribble", "x,y,x,y,...")
    return Scribble(points=tuple(points), frame=place[1], **style)


def _point(text: str, place: Place, style: dict[str, Any]) -> Region:
    from vip_llava.regions import Point

    numbers = parse_numbers(text, "--point", "x,y or x,y,radius")
    if len(numbers) not in (2, 3):
        raise RegionError(
            f"--point {_short(text)}: needs x,y or x,y,radius, got {len(numbers)} numbers"
        )
    radius = numbers[2] if len(numbers) == 3 else None
    return Point(numbers[0], numbers[1], radius=radius, frame=place[1], **style)


def _contour(text: str, place: Place, style: dict[str, Any]) -> Region:
    from vip_llava.regions import Contour

    return Contour(**_outline("contour", text, place), **style)


def _mask(text: str, place: Place, style: dict[str, Any]) -> Region:
    from vip_llava.regions import Mask

    return Mask(**_outline("mask", text, place), **style)


def _outline(name: str, text: str, place: Place) -> dict[str, Any]:
    """Keywords of a Contour or Mask: polygons or rle, and the frame (rasters are in pixels)."""
    size, frame = place
    option = f"--{name}"
    if is_number_text(text):
        return {"polygons": parse_polygons(text, option), "frame": frame}
    if text.lstrip().startswith("{"):
        found = outline_from_json(parse_json(text, option, "JSON polygons or RLE"), option)
    else:
        found = outline_from_file(Path(text).expanduser(), size, option)
    return {**found, "frame": "pixel" if "rle" in found else frame}


def _regions_from_file(text: str) -> list[Region]:
    from vip_llava.regions import regions_from_json

    path = Path(text).expanduser()
    found = read_json(path, "--regions")
    if isinstance(found, dict):
        found = found.get("regions", [found] if "shape" in found else None)
    if not isinstance(found, list):
        raise RegionError(
            f'--regions {path}: expected a list of regions like {{"shape": "box", "frame": "pixel", '
            '"box": [x1, y1, x2, y2]}'
        )
    if not found:
        note(f"--regions {path}: the list is empty, no region is in it")
    try:
        return list(regions_from_json(found))
    except RegionError as error:
        raise RegionError(f"--regions {path}: {error}") from error


def _color(text: str) -> str | tuple[int, int, int]:
    """A name or #rrggbb as typed; three numbers as RGB."""
    if not is_number_text(text):
        return text
    numbers = parse_numbers(text, "--color", "r,g,b")
    if len(numbers) != 3 or any(number != int(number) for number in numbers):
        raise RegionError(f"--color {_short(text)}: needs a name, #rrggbb or three whole numbers")
    return (int(numbers[0]), int(numbers[1]), int(numbers[2]))


def _alpha(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise RegionError(f"--alpha {_short(text)}: needs a whole number 0..255") from error


def _width(text: str) -> float:
    try:
        width = float(text)
    except ValueError:
        width = math.nan
    if not 0 < width < math.inf:
        raise RegionError(f"--width {_short(text)}: needs a number of pixels above 0")
    return width


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


SHAPE_OPTIONS: dict[str, Callable[[str, Place, dict[str, Any]], Region]] = {
    "box": _box,
    "ellipse": _ellipse,
    "triangle": _triangle,
    "point": _point,
    "arrow": _arrow,
    "scribble": _scribble,
    "contour": _contour,
    "mask": _mask,
}
STYLES: dict[str, Callable[[str], Any]] = {"color": _color, "alpha": _alpha, "width": _width}
