"""Our drawings against the recorded ones of the original, pixel by pixel.

Rectangle, ellipse, contour and mask are drawn from what the record gives, with the line width and
opacity that reached the original's drawing routine; a point's centre is read off the recorded image.
The random part of triangle, scribble and arrow is not recorded; their distributions are compared in
`test_sampling.py`.

"The same" is: every drawn pixel has a drawn neighbour in the other image, and where both are drawn the
values differ by at most one step. Where this program does otherwise on purpose, the rule is tested:

* geometry without area, a reversed box and polygons that can't be built or cross themselves are errors
  (a crossing polygon matches once `repair_polygons` made it simple);
* a box or outline that reaches over the image is cut off there and closed along the border, where
  the original leaves it open.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from vip_llava.errors import RegionError
from vip_llava.regions import (
    Box,
    Contour,
    Ellipse,
    Mask,
    Point,
    Region,
    draw,
    repair_polygons,
    resolve,
)

from .conftest import Tally, recorded_cases, skip_without

pytestmark = pytest.mark.conformance

Record = dict[str, Any]
Pixels = npt.NDArray[np.uint8]
Marks = npt.NDArray[np.bool_]


@pytest.fixture(scope="module")
def folder(family: Callable[[str], Path]) -> Path:
    return family("rendering")


@pytest.fixture(scope="module")
def records(folder: Path) -> list[Record]:
    return list(recorded_cases(folder / "cases.jsonl"))


def image_of(record: Record, folder: Path) -> Image.Image:
    with Image.open(folder / "inputs" / f"{record['image']}.png") as image:
        return image.convert("RGB")


def recorded(record: Record, folder: Path) -> Pixels:
    with Image.open(folder / record["output"]) as image:
        return np.asarray(image.convert("RGB"))


def changed(before: Image.Image, after: Pixels) -> Marks:
    return (np.asarray(before) != after).any(axis=2)


def grown(marks: Marks, reach: int = 1) -> Marks:
    padded = np.pad(marks, reach)
    height, width = marks.shape
    result = np.zeros_like(marks)
    for y, x in itertools.product(range(2 * reach + 1), repeat=2):
        result |= padded[y : y + height, x : x + width]
    return result


def alike(image: Image.Image, ours: Pixels, theirs: Pixels, ignore: Marks | None = None) -> bool:
    """Whether two drawings on an image are the same within one pixel; see above."""
    a, b = changed(image, ours), changed(image, theirs)
    both = a & b
    if both.any() and np.abs(ours[both].astype(int) - theirs[both]).max() > 1:
        return False
    lone = (a & ~grown(b)) | (b & ~grown(a))
    return not (lone if ignore is None else lone & ~ignore).any()


def polygons_of(record: Record) -> list[list[float]]:
    """What the original fills or outlines: the polygons, or the box where there is no mask."""
    x1, y1, x2, y2 = record["bbox"]
    given: list[list[float]] | None = record["segmentation"]
    return [[x1, y1, x2, y1, x2, y2, x1, y2]] if given is None else given


def looks_of(record: Record) -> dict[str, Any]:
    return {"color": tuple(record["rgb"]), "alpha": record["drawn_with"]["alpha"]}


def box(record: Record) -> Region:
    return Box(*record["bbox"], width=record["drawn_with"]["line_width"], **looks_of(record))


def ellipse(record: Record) -> Region:
    x1, y1, x2, y2 = record["bbox"]
    if record["segmentation"] is not None:
        across = [x for flat in record["segmentation"] for x in flat[0::2]]
        down = [y for flat in record["segmentation"] for y in flat[1::2]]
        x1, y1, x2, y2 = min(across), min(down), max(across), max(down)
    ratio = record["drawn_with"]["size_ratio"]
    x, y, half_x, half_y = (
        (x1 + x2) / 2,
        (y1 + y2) / 2,
        (x2 - x1) / 2 * ratio,
        (y2 - y1) / 2 * ratio,
    )
    width = record["drawn_with"]["line_width"]
    return Ellipse(x - half_x, y - half_y, x + half_x, y + half_y, width=width, **looks_of(record))


def contour(record: Record) -> Region:
    width = record["drawn_with"]["line_width"]
    return Contour(polygons_of(record), width=width, **looks_of(record))  # type: ignore[arg-type]


def mask(record: Record) -> Region:
    return Mask(polygons_of(record), **looks_of(record))  # type: ignore[arg-type]


BUILDERS: dict[str, Callable[[Record], Region]] = {
    "rectangle": box,
    "ellipse": ellipse,
    "mask contour": contour,
    "mask": mask,
}


def breaks_a_rule(record: Record) -> bool:
    """Whether our rules forbid what the record draws, judged without our own code."""
    import shapely

    x1, y1, x2, y2 = record["bbox"]
    flat_box = x1 >= x2 or y1 >= y2
    if record["shape"] == "rectangle" or record["segmentation"] is None:
        return bool(flat_box)
    if record["shape"] == "ellipse":
        return any(
            max(numbers) == min(numbers)
            for axis in (0, 1)
            if (numbers := [part for flat in record["segmentation"] for part in flat[axis::2]])
        )
    parts = [np.reshape(flat, (-1, 2)) for flat in record["segmentation"]]
    if not parts or any(len(part) < 3 for part in parts):
        return True
    shapes = [shapely.Polygon(part) for part in parts]
    crossing = ("Self-intersection", "Too few points")
    return any(
        not shape.area or shapely.is_valid_reason(shape).startswith(crossing) for shape in shapes
    )


def drawn_cases(records: list[Record], shape: str) -> Iterator[Record]:
    found = [record for record in records if record["shape"] == shape and "error" not in record]
    skip_without(len(found), f"drawing of a {shape}")
    yield from found


def border(record: Record, size: tuple[int, int], reach: int) -> Marks:
    """The image's edge, `reach` pixels deep, on the sides that the region reaches over."""
    parts = polygons_of(record) if record["shape"] == "mask contour" else [record["bbox"]]
    across = [x for flat in parts for x in flat[0::2]]
    down = [y for flat in parts for y in flat[1::2]]
    marks = np.zeros((size[1], size[0]), dtype=bool)
    if min(across) < 0:
        marks[:, :reach] = True
    if min(down) < 0:
        marks[:reach] = True
    if max(across) >= size[0]:
        marks[:, -reach:] = True
    if max(down) >= size[1]:
        marks[-reach:] = True
    return marks


@pytest.mark.parametrize("shape", list(BUILDERS))
def test_the_drawing_is_that_of_the_original(
    shape: str, records: list[Record], folder: Path, tally: Tally
) -> None:
    wrong, compared = [], 0
    for record in drawn_cases(records, shape):
        if breaks_a_rule(record):
            tally("rendering", f"refused, invalid geometry of a {shape}")
            continue
        tally("rendering", f"compared, {shape}")
        image, theirs = image_of(record, folder), recorded(record, folder)
        if not record["changed_pixels"]:  # the original drew nothing and said nothing
            with pytest.raises(RegionError, match=r"outside|inside"):
                draw(image, [BUILDERS[shape](record)])
            continue
        ours = np.asarray(draw(image, [BUILDERS[shape](record)]))
        closed = None
        if shape in ("rectangle", "mask contour"):
            closed = border(record, image.size, record["drawn_with"]["line_width"] + 1)
            # The line along the border is there, and only where the region is cut off.
            if closed.any() and not (changed(image, ours) & closed).any():
                wrong.append(record["id"])
        compared += 1
        if not alike(image, ours, theirs, closed):
            wrong.append(record["id"])
    skip_without(compared, f"comparable {shape}")
    assert not wrong


@pytest.mark.parametrize("shape", list(BUILDERS))
def test_forbidden_geometry_is_an_error_and_repairable_polygons_match(
    shape: str, records: list[Record], folder: Path
) -> None:
    wrong = []
    for record in drawn_cases(records, shape):
        if not breaks_a_rule(record):
            continue
        with pytest.raises(RegionError):
            BUILDERS[shape](record)
        if shape not in ("mask", "mask contour"):
            continue
        simple = repair_polygons(flat for flat in polygons_of(record) if len(flat) >= 6)
        if simple:
            image, theirs = image_of(record, folder), recorded(record, folder)
            repaired = BUILDERS[shape](record | {"segmentation": simple})
            if not alike(image, np.asarray(draw(image, [repaired])), theirs):
                wrong.append(record["id"])
    assert not wrong


def test_a_point_is_that_of_the_original(records: list[Record], folder: Path) -> None:
    wrong, compared = [], 0
    for record in drawn_cases(records, "point"):
        if not record["changed_pixels"]:
            continue
        image, theirs = image_of(record, folder), recorded(record, folder)
        used = record["drawn_with"]
        across, down = used["radius"] * used["aspect_ratio"], used["radius"] / used["aspect_ratio"]
        left, top, right, bottom = record["changed_bbox"]
        # The image's border may hide one side of the dot, so its centre is tried from both.
        centers = itertools.product(
            ((left + right) / 2, left + across, right - across),
            ((top + bottom) / 2, top + down, bottom - down),
        )
        drawings = (
            np.asarray(draw(image, [Point(x, y, radius=(across, down), **looks_of(record))]))
            for x, y in centers
        )
        compared += 1
        if not any(alike(image, ours, theirs) for ours in drawings):
            wrong.append(record["id"])
    skip_without(compared, "comparable point")
    assert not wrong


def test_what_fails_in_the_original_is_drawn_or_refused_here(
    records: list[Record], folder: Path
) -> None:
    for record in records:
        if "error" not in record:
            continue
        x1, y1, x2, y2 = record["bbox"]
        if x1 >= x2 or y1 >= y2:
            with pytest.raises(RegionError, match=r"reversed|no area"):
                Box(x1, y1, x2, y2)
            continue
        image = image_of(record, folder)
        center = min((x1 + x2) / 2, image.width - 1), min((y1 + y2) / 2, image.height - 1)
        region = Point(*center) if record["shape"] == "point" else Ellipse(x1, y1, x2, y2)
        assert changed(image, np.asarray(draw(image, [region]))).any(), record["id"]


def test_default_width_and_radius_are_the_constant_ones_of_the_original(folder: Path) -> None:
    compared = 0
    for record in recorded_cases(folder / "distributions.jsonl"):
        if record["visual_prompt_style"] != "constant" or record["image_size_anchor"] != 336:
            continue
        size = tuple(record["image_size"])
        used = record.get("arguments") or {}
        if record["shape"] == "rectangle" and "line_width" in used:
            compared += 1
            done = resolve([Box(1, 1, 9, 9)], size).regions[0]
            assert done.width == used["line_width"]["min"] == used["line_width"]["max"], record[
                "id"
            ]
        if record["shape"] == "point" and "radius" in used:
            compared += 1
            dot = resolve([Point(9, 9)], size).regions[0]
            assert isinstance(dot, Point)
            assert dot.radius == used["radius"]["min"] == used["radius"]["max"], record["id"]
    skip_without(compared, "constant rectangle or point")
