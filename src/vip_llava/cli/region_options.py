"""The options that mark regions: `--box`, `--arrow`, `--mask`, ... with `--color --alpha --width`.

Options become Regions in the order in which they were typed, which is also the order of their ids.
A style typed before the first region is the default for all regions; typed after a region, it
applies to that region alone. This module only reads text: `vip_llava.regions` checks the geometry.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from vip_llava.cli.legacy_options import LEGACY_NAMES, LegacyOptions, legacy_region
from vip_llava.cli.mask_files import outline_from_file, outline_from_json, read_json
from vip_llava.cli.option_groups import TypedOption
from vip_llava.cli.parsing import (
    is_number_text,
    parse_json,
    parse_numbers,
    parse_pairs,
    parse_polygons,
    shorten,
)
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

PANEL = "Regions (repeatable; ids 1, 2, ... in the order you type them)"
STYLE_PANEL = "Style (before the first region: of all; after a region: of that one)"

Texts: TypeAlias = list[str] | None
Place: TypeAlias = tuple[tuple[int, int], Literal["pixel", "unit"]]
"""(width, height) of the photo in pixels, and the frame of typed coordinates."""


def _option(flag: str, metavar: str, text: str, panel: str = PANEL) -> Any:
    return typer.Option(flag, metavar=metavar, help=text, rich_help_panel=panel)


def _style(flag: str, metavar: str, text: str) -> Any:
    return _option(flag, metavar, text, STYLE_PANEL)


_POINT = _option("--point", "X,Y[,RADIUS]", "A dot; the radius is in pixels of the photo.")
_CONTOUR = _option("--contour", "POLYGON|FILE", "An outline: x,y,x,y,... or a file as for --mask.")
_MASK = _option(
    "--mask",
    "FILE|POLYGON",
    "A filled area: an image as large as the photo (non-zero is inside), a JSON file with polygons "
    "or COCO RLE, or x,y,x,y,... (separate several polygons with ;).",
)
_REGIONS = _option("--regions", "FILE.json", "Regions from a JSON file, each with its own frame.")
_UNIT = "Coordinates are fractions 0..1 of the photo, a radius of its longer side."


@dataclasses.dataclass(frozen=True, slots=True)
class RegionOptions:
    """The values of each option; `option_groups.typed_options` has the order across options."""

    box: Annotated[Texts, _option("--box", "X1,Y1,X2,Y2", "A rectangle by two corners.")] = None
    ellipse: Annotated[
        Texts, _option("--ellipse", "X1,Y1,X2,Y2", "The ellipse that fills this box.")
    ] = None
    triangle: Annotated[Texts, _option("--triangle", "X,Y,X,Y,X,Y", "Three corners.")] = None
    point: Annotated[Texts, _POINT] = None
    arrow: Annotated[Texts, _option("--arrow", "X1,Y1,X2,Y2", "From the tail to the tip.")] = None
    scribble: Annotated[
        Texts, _option("--scribble", "X,Y,X,Y,...", "A free line through points.")
    ] = None
    contour: Annotated[Texts, _CONTOUR] = None
    mask: Annotated[Texts, _MASK] = None
    regions: Annotated[Texts, _REGIONS] = None
    unit: Annotated[bool, typer.Option("--unit", help=_UNIT, rich_help_panel=PANEL)] = False
    color: Annotated[
        Texts, _style("--color", "NAME|#RRGGBB", "red, lime, blue, ... or any colour.")
    ] = None
    alpha: Annotated[Texts, _style("--alpha", "0..255", "Opacity of the drawing.")] = None
    width: Annotated[Texts, _style("--width", "PIXELS", "Width of lines.")] = None


@dataclasses.dataclass(slots=True)
class _Draft:
    """Regions of one option (None: the original's flags describe it) and the styles after it."""

    regions: list[Region] | None
    style: dict[str, Any] = dataclasses.field(default_factory=dict)


def regions_from_typed(
    typed: Iterable[TypedOption],
    size: tuple[int, int],
    *,
    unit: bool = False,
    legacy: LegacyOptions | None = None,
) -> list[Region]:
    """Regions with their styles, in typed order.

    `size` is (width, height) of the photo in pixels. The region that the original's flags describe
    takes the place of the first of them. Raises RegionError, which names the option.
    """
    place: Place = (size, "unit" if unit else "pixel")
    legacy = legacy or LegacyOptions()
    legacy_pending = legacy.names_a_region()
    defaults: dict[str, Any] = {}
    drafts: list[_Draft] = []
    for option in typed:
        if option.name in SHAPE_OPTIONS:
            drafts.append(_Draft([region_from_text(option.name, option.value, place)]))
        elif option.name == "regions":
            drafts.append(_Draft(_regions_from_file(option.value)))
        elif option.name in STYLES:
            style = drafts[-1].style if drafts else defaults
            style[option.name] = style_from_text(option.name, option.value)
        elif option.name in LEGACY_NAMES and legacy_pending:
            drafts.append(_Draft(None))
            legacy_pending = False
    if legacy_pending:  # --shape or --rgb alone: `legacy_region` says what is missing
        drafts.append(_Draft(None))
    styled: list[Region] = []
    for draft in drafts:
        if draft.regions is None:
            styled.append(legacy_region(legacy, size, {**defaults, **draft.style}))
        else:
            styled += [_styled(region, defaults, draft.style) for region in draft.regions]
    return styled


def region_from_text(name: str, text: str, place: Place, **style: Any) -> Region:
    """One Region from the text of `--name`; `style` are keywords of the Region."""
    from vip_llava.regions import SHAPES

    option = f"--{name}"
    try:
        geometry = SHAPE_OPTIONS[name](text, option, place)
        return SHAPES[name](**{"frame": place[1], **geometry, **style})
    except RegionError as error:
        if str(error).startswith(option):
            raise
        raise RegionError(f"{option} {shorten(text)}: {error}") from error


def style_from_text(name: str, text: str) -> Any:
    """The value of `--color`, `--alpha` or `--width`; a RegionError names the option."""
    from vip_llava.regions import Box

    value = STYLES[name](text)
    try:
        Box(0, 0, 1, 1, **{name: value})  # all shapes check a style by the same rules
    except RegionError as error:
        reason = str(error).removeprefix("box: ")
        raise RegionError(f"--{name} {shorten(text)}: {reason}") from error
    return value


def _styled(region: Region, defaults: dict[str, Any], own: dict[str, Any]) -> Region:
    """The region with styles: `own` first, then what it has already, then the `defaults`."""
    change = {key: value for key, value in defaults.items() if getattr(region, key) is None}
    change.update(own)
    return dataclasses.replace(region, **change) if change else region


# The fields of a Region from an option's text: the geometry, and the frame if it is not `place`'s.


def _four(text: str, option: str, expected: str) -> list[float]:
    numbers = parse_numbers(text, option, expected)
    if len(numbers) != 4:
        raise RegionError(
            f"{option} {shorten(text)}: needs 4 numbers {expected}, got {len(numbers)}"
        )
    return numbers


def _corners(text: str, option: str, _place: Place) -> dict[str, Any]:
    return dict(zip(("x1", "y1", "x2", "y2"), _four(text, option, "x1,y1,x2,y2"), strict=True))


def _arrow(text: str, option: str, _place: Place) -> dict[str, Any]:
    x1, y1, x2, y2 = _four(text, option, "tail-x,tail-y,tip-x,tip-y")
    return {"tail": (x1, y1), "tip": (x2, y2)}


def _points(text: str, option: str, _place: Place) -> dict[str, Any]:
    return {"points": tuple(parse_pairs(text, option, "x,y,x,y,x,y,..."))}


def _point(text: str, option: str, _place: Place) -> dict[str, Any]:
    numbers = parse_numbers(text, option, "x,y or x,y,radius")
    if len(numbers) not in (2, 3):
        raise RegionError(
            f"{option} {shorten(text)}: needs x,y or x,y,radius, got {len(numbers)} numbers"
        )
    return dict(zip(("x", "y", "radius"), numbers, strict=False))


def _outline(text: str, option: str, place: Place) -> dict[str, Any]:
    """Polygons or RLE; rasters are always in pixels."""
    size, frame = place
    if is_number_text(text):
        return {"polygons": parse_polygons(text, option)}
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
        note(f"--regions {path}: the list of regions is empty")
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
        raise RegionError(f"--color {shorten(text)}: needs a name, #rrggbb or three whole numbers")
    return (int(numbers[0]), int(numbers[1]), int(numbers[2]))


def _alpha(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise RegionError(f"--alpha {shorten(text)}: needs a whole number 0..255") from error


def _width(text: str) -> float:
    try:
        width = float(text)
    except ValueError:
        width = math.nan
    if not 0 < width < math.inf:
        raise RegionError(f"--width {shorten(text)}: needs a number of pixels above 0")
    return width


SHAPE_OPTIONS: dict[str, Callable[[str, str, Place], dict[str, Any]]] = {
    "box": _corners,
    "ellipse": _corners,
    "triangle": _points,
    "point": _point,
    "arrow": _arrow,
    "scribble": _points,
    "contour": _outline,
    "mask": _outline,
}
STYLES: dict[str, Callable[[str], Any]] = {"color": _color, "alpha": _alpha, "width": _width}
