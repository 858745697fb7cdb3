"""Random marks against the distributions that the original drew.

`rendering/distributions.jsonl` sums up 200 drawings of each case, `organizer/distributions.jsonl` shape
and colour shares of 1000 calls for each data source. Both are samples, so nothing is compared to the
digit: a share of 200 recorded and `DRAWS` own drawings may differ by `SIGMAS` standard errors (about
three thousand comparisons, so one in ten thousand must still be allowed), and a length by a pixel,
where rounding decides.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from vip_llava.errors import RegionError
from vip_llava.regions import draw
from vip_llava.regions.colors import PALETTE
from vip_llava.regions.phrases import collapse
from vip_llava.regions.sampling import find_policy, generator, sample_region, sample_visual_prompts
from vip_llava.regions.shapes import SHAPES, Arrow, Box, Contour, Ellipse, Mask, Point, Region

from .conftest import recorded_cases, skip_without

pytestmark = pytest.mark.conformance

DRAWS = 300
SIGMAS = 4.5
NAMES = {"rectangle": "box", "mask contour": "contour"}
Record = dict[str, Any]
Values = npt.NDArray[np.float64]


def sampled(case: Record, count: int) -> list[Region]:
    rng = generator("conformance", case["id"])
    return [
        sample_region(
            case["bbox"],
            case["segmentation"],
            size=tuple(case["image_size"]),
            rng=rng,
            shape=NAMES.get(case["shape"], case["shape"]),
            color="#ffffff",
            style=case["visual_prompt_style"] or "free",
            anchor=case["image_size_anchor"],
        )
        for _ in range(count)
    ]


def measured(case: Record, region: Region) -> dict[str, float]:
    """The recorded quantities of one drawing: white ink on a black image."""
    image = draw(Image.new("RGB", tuple(case["image_size"])), [region])
    x1, y1, x2, y2 = case["bbox"]
    width, height = x2 - x1, y2 - y1
    found = image.getbbox()
    assert found is not None, "nothing was drawn"
    left, top, right, bottom = found
    ink = np.asarray(image.getchannel(0).crop(found))
    rows, columns = np.nonzero(ink)
    inside = (
        (columns + left >= x1) & (columns + left <= x2) & (rows + top >= y1) & (rows + top <= y2)
    )
    return {
        "left": (left - x1) / width,
        "top": (top - y1) / height,
        "right": (right - x1) / width,
        "bottom": (bottom - y1) / height,
        "fraction_inside_box": float(inside.mean()),
        "drawn_over_box_area": len(rows) / (width * height),
        "alpha_from_pixels": float(ink.max()),
    }


def arguments(case: Record, region: Region) -> dict[str, float]:
    """The recorded arguments of the drawing routine, read back from a Region."""
    values = {"alpha": float(region.alpha or 0), "line_width": float(region.width or 0)}
    if isinstance(region, Point):
        across, down = region.radii
        values |= {"radius": math.sqrt(across * down), "aspect_ratio": math.sqrt(across / down)}
    if isinstance(region, Ellipse):
        polygons = case["segmentation"]
        xs = [x for part in polygons for x in part[::2]] if polygons else case["bbox"][::2]
        values["size_ratio"] = (region.x2 - region.x1) / (max(xs) - min(xs))
    return values


def compare(name: str, own: Values, recorded: Record, slack: float) -> list[str]:
    """Complaints where the own values do not look like the recorded summary.

    The share of own values up to a recorded p-quantile must be p, within the sampling error of both;
    values within `slack` of the quantile may count to either side.
    """
    complaints = []
    for key in ("p05", "p25", "p50", "p75", "p95"):
        p = int(key[1:]) / 100
        allowed = SIGMAS * math.sqrt(p * (1 - p) * (1 / recorded["n"] + 1 / len(own)))
        below = float(np.mean(own < recorded[key] - slack))
        up_to = float(np.mean(own <= recorded[key] + slack))
        if below > p + allowed or up_to < p - allowed:
            complaints.append(
                f"{name} {key}: {recorded[key]:.4g} recorded, but a share of {below:.3f} is smaller "
                f"and {1 - up_to:.3f} larger (own median {np.median(own):.4g})"
            )
    return complaints


def rendering_complaints(case: Record) -> list[str]:
    regions = sampled(case, DRAWS)
    drawn = [measured(case, region) for region in regions]
    x1, y1, x2, y2 = case["bbox"]
    pixel = {"left": x2 - x1, "right": x2 - x1, "top": y2 - y1, "bottom": y2 - y1}
    complaints = []
    for name, recorded in case["rel_bbox"].items():
        own = np.array([each[name] for each in drawn])
        complaints += compare(name, own, recorded, 1.01 / pixel[name])
    for name in ("fraction_inside_box", "drawn_over_box_area", "alpha_from_pixels"):
        own = np.array([each[name] for each in drawn])
        # Line ends, joints and rims differ by single pixels, of many that are drawn.
        slack = {"alpha_from_pixels": 0.0}.get(name, 0.01 + 0.05 * case[name]["p50"])
        complaints += compare(name, own, case[name], slack)
    given = [arguments(case, region) for region in regions]
    for name, recorded in case["arguments"].items():
        if name == "max_arrow_length" or (name == "line_width" and case["shape"] == "mask"):
            continue  # a constant that is no part of a Region; a width that draws nothing
        own = np.array([each[name] for each in given])
        complaints += compare(name, own, recorded, 1e-9)
        if name in ("line_width", "radius"):
            # Of 200 whole numbers none misses the ends of a short range; of a long one some may.
            beyond = (recorded["max"] - recorded["min"]) // 20 + 0.01
            if own.min() < recorded["min"] - beyond or own.max() > recorded["max"] + beyond:
                complaints.append(f"{name}: {own.min():g} to {own.max():g} is out of range")
    return complaints


def test_marks_are_distributed_like_the_recorded_ones(family: Callable[[str], Path]) -> None:
    complaints = {}
    for case in recorded_cases(family("rendering") / "distributions.jsonl"):
        if case["errors"] or case["nothing_drawn"]:
            continue
        found = rendering_complaints(case)
        if found:
            complaints[case["id"]] = found
    assert not complaints, json.dumps(complaints, indent=1)


def test_where_the_original_failed_a_mark_lies_on_the_thing(family: Callable[[str], Path]) -> None:
    for case in recorded_cases(family("rendering") / "distributions.jsonl"):
        if not case["errors"]:
            continue
        x1, y1, x2, y2 = case["bbox"]
        for region in sampled(case, 50):
            assert measured(case, region)["fraction_inside_box"] > 0
            if isinstance(region, Point):
                assert x1 <= region.x <= x2
                assert y1 <= region.y <= y2


def test_all_single_drawings_can_be_sampled(family: Callable[[str], Path]) -> None:
    """Every box, outline, style and anchor of the recorded drawings; what is given is kept."""
    folder = family("rendering")
    size: dict[str, tuple[int, int]] = {}
    for case in recorded_cases(folder / "cases.jsonl"):
        if case["image"] not in size:
            with Image.open(next((folder / "inputs").glob(f"{case['image']}.*"))) as image:
                size[case["image"]] = image.size
        shape = NAMES.get(case["shape"], case["shape"])
        box = case["bbox"]
        if shape not in SHAPES or not (box[0] < box[2] and box[1] < box[3]):
            continue
        region = sample_region(
            box,
            case["segmentation"],
            size=size[case["image"]],
            rng=random.Random(case["seed"]),
            shape=shape,
            color=tuple(case["rgb"]) if isinstance(case["rgb"], list) else None,
            style=case["visual_prompt_style"] or "free",
            alpha=case["alpha"],
            anchor=case["image_size_anchor"],
        )
        assert region.alpha == case["alpha"] or case["alpha"] is None
        draw(Image.new("RGB", size[case["image"]]), [region])


def things(case: Record, rng: random.Random) -> list[int]:
    """How many boxes each thing of a source record has; one where the record holds no boxes itself."""
    source = case["source"]
    if "bbox" in source:
        return [len(boxes) for boxes in source["bbox"]]
    if "bboxes" in source:
        return [1] * len(source["bboxes"])
    mean = case["draws_per_call"]
    return [1] * (math.floor(mean) + (rng.random() < mean % 1))


def test_shape_and_colour_shares(family: Callable[[str], Path]) -> None:
    complaints = []
    for case in recorded_cases(family("organizer") / "distributions.jsonl"):
        rule = find_policy(case["type"], case["data_args"].get("visual_prompt_style"))
        rng = generator("shares", case["id"])
        shapes: Counter[str] = Counter()
        colors: Counter[str] = Counter()
        for _ in range(1000):
            counts = things(case, rng)
            for prompt, boxes in zip(
                sample_visual_prompts(rule, len(counts), rng), counts, strict=True
            ):
                shapes[prompt.shape] += boxes
                colors[prompt.color if isinstance(prompt.color, str) else "(not in pool)"] += boxes
        total = shapes.total()
        pairs = [(shapes, case["shape_share"]), (colors, case["colour_share"])]
        for own, recorded in pairs:
            named = {NAMES.get(name, name): share for name, share in recorded.items()}
            for name in named.keys() | own.keys():
                p, mine = named.get(name, 0.0), own[name] / total
                # Both are samples of the same size; boxes of one thing share their mark.
                allowed = SIGMAS * math.sqrt(2 * 2 * max(p, mine) * (1 - min(p, mine)) / total)
                if abs(mine - p) > allowed:
                    complaints.append(f"{case['id']} {name}: {mine:.3f} against {p:.3f}")
    assert not complaints, "\n".join(complaints)


def test_unknown_sources_and_styles_are_refused(family: Callable[[str], Path]) -> None:
    for case in recorded_cases(family("organizer") / "cases.jsonl"):
        if not str(case.get("error", "")).startswith("KeyError: '"):
            continue
        with pytest.raises(RegionError, match="known"):
            find_policy(case["source"]["id"], case["data_args"].get("visual_prompt_style"))


def stand_in(shape: str, rgb: list[int], number: int) -> Region:
    """A region of a recorded shape and colour; where it lies does not matter here."""
    x = 10.0 * number
    common: dict[str, Any] = {"color": tuple(rgb), "id": str(number)}
    if shape == "arrow":
        return Arrow(tail=(x, 0), tip=(x, 5), **common)
    if shape == "point":
        return Point(x, 0, **common)
    if shape in ("rectangle", "ellipse"):
        return {"rectangle": Box, "ellipse": Ellipse}[shape](x, 0, x + 5, 5, **common)
    if shape in ("mask", "mask contour"):
        kind = {"mask": Mask, "mask contour": Contour}[shape]
        return kind(polygons=[[x, 0, x + 5, 0, x, 5]], **common)
    return SHAPES[shape](points=[(x, 0), (x + 5, 0), (x, 5)], **common)  # type: ignore[call-arg]


def test_recorded_texts_use_no_other_wording(family: Callable[[str], Path]) -> None:
    """Once each drawn prompt's wording is back to its placeholder, no wording is left in a text."""
    colors = "|".join(PALETTE)
    shapes = "rectangle|ellipse|triangle|point|scribble|mask contour|mask|arrow"
    left_over = re.compile(
        rf"\b(?:within|with|at|pointed to by) (?:the )?(?:(?:{colors}) )?(?:{shapes})\b"
    )
    mentions = 0
    for case in recorded_cases(family("organizer") / "cases.jsonl"):
        if (
            case.get("error") or "first_pass" in case
        ):  # the second pass words the marks of the first
            continue
        marks = {(each["shape"], tuple(each["rgb"])): None for each in case["draws"]}
        regions = [stand_in(shape, list(rgb), index) for index, (shape, rgb) in enumerate(marks, 1)]
        for message in case["conversation"]:
            text = collapse(str(message["value"]), regions)
            mentions += text.count("<region:")
            assert not left_over.search(text), (case["id"], text)
    skip_without(mentions, "text that names a mark")
