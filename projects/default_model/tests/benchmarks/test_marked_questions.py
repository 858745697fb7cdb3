"""Questions about marked things: the same for a seed, honest controls, and how answers are judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from default_model.benchmarks.marked_questions import (
    VARIANTS,
    Item,
    is_right,
    items_of,
    several_items,
)
from default_model.scenes.marking import SHAPES
from default_model.scenes.photos import Photo, read_regions
from default_model.scenes.words import COCO80
from vip_llava.errors import RequestError
from vip_llava.evaluation.coco_annotations import LabelledObject
from vip_llava.regions import Arrow, draw, resolve
from vip_llava.regions.phrases import phrase


@pytest.fixture(scope="module")
def photos(labelled_folder: Path) -> list[Photo]:
    return list(read_regions(labelled_folder))


def unequal(photo: Photo) -> Photo:
    """The photo with its first thing half as wide, so that one is larger than another."""
    first, *others = photo.objects
    x1, y1, x2, y2 = first.box
    return replace(photo, objects=(replace(first, box=(x1, y1, (x1 + x2) / 2, y2)), *others))


@pytest.mark.parametrize("variant", VARIANTS)
def test_items_are_the_same_every_time(photos: Sequence[Photo], variant: str) -> None:
    photos = [unequal(photo) for photo in photos]
    first, again = items_of(photos, variant), items_of(photos, variant)
    assert [(i.id, i.label, i.answer) for i in first] == [(i.id, i.label, i.answer) for i in again]
    for one, other in zip(first, again, strict=True):
        assert one.request["question"] == other.request["question"]
        assert one.request.get("regions") == other.request.get("regions")
    # An item does not depend on which other photos there are.
    known = {item.id: item.request.get("regions") for item in first}
    part = items_of(photos[1:], variant)
    assert part and all(known[item.id] == item.request.get("regions") for item in part)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_thing_is_asked_about_with_a_red_mark(photos: Sequence[Photo], shape: str) -> None:
    items = items_of(photos, shape)
    assert len(items) == 12  # four things in each of three photos; the last promises only people
    things = {f"{p.id}/{i}": t for p in photos for i, t in enumerate(p.objects)}
    for item in items:
        [region] = item.request["regions"]
        assert (region.shape, region.color, region.id) == (shape, "red", "1")
        assert region.alpha is None and region.width is None  # the drawing's own
        thing = things[item.id]
        assert item.answer == item.label == thing.label
        x1, y1, x2, y2 = region.bounds((96, 72))
        x, y = region.tip if isinstance(region, Arrow) else ((x1 + x2) / 2, (y1 + y2) / 2)
        assert thing.box[0] - 5 <= x <= thing.box[2] + 5
        assert thing.box[1] - 5 <= y <= thing.box[3] + 5


def test_controls_hold_no_geometry(photos: Sequence[Photo]) -> None:
    boxes, drawn, control = (items_of(photos, v) for v in ("box", "drawn", "control"))
    for box, seen, blind in zip(boxes, drawn, control, strict=True):
        assert box.id == seen.id == blind.id
        assert "regions" not in seen.request and "regions" not in blind.request
        words = "What is the object within the red rectangle?"
        assert seen.request["question"] == blind.request["question"] == words
        photo = next(p for p in photos if box.id.startswith(f"{p.id}/"))
        assert blind.request["image"] == photo.jpeg  # nothing is drawn
        wanted = draw(photo.open(), resolve(box.request["regions"], photo.size).regions)
        assert isinstance(seen.request["image"], Image.Image)
        assert np.array_equal(np.asarray(seen.request["image"]), np.asarray(wanted))


def test_most_spreads_evenly(photos: Sequence[Photo]) -> None:
    few, everything = items_of(photos, "box", 4), items_of(photos, "box")
    assert [item.id for item in few] == [everything[i].id for i in (0, 3, 6, 9)]
    assert len(items_of(photos, "box", 99)) == 12


def test_questions_about_several(photos: Sequence[Photo]) -> None:
    for item in several_items(photos, "four"):
        regions = item.request["regions"]
        assert len(regions) == 4 and len({region.color for region in regions}) == 4
        assert item.answer in "ABCD" and f"{item.answer}. " in item.request["question"]
    sides = several_items(photos, "sides")
    assert sides and {item.answer for item in sides} <= {
        *("yes", "no", "left", "right", "above", "below")
    }
    assert all(len(item.request["regions"]) == 2 for item in sides)


def test_questions_about_places_sizes_and_counts(photos: Sequence[Photo]) -> None:
    photos = [unequal(photo) for photo in photos]
    found = {name: several_items(photos, name) for name in ("furthest", "larger", "count")}
    for item in (*found["furthest"], *found["larger"]):
        regions = resolve(item.request["regions"], (1000, 1000)).regions
        words = [f"The object {phrase(region, regions)}" for region in regions]
        lettered = f"\n{item.answer}. " in item.request["question"]
        assert lettered or item.answer in words or item.answer.capitalize() in words
    assert found["furthest"] and {len(item.request["regions"]) for item in found["larger"]} == {2}
    names = {2: "two", 3: "three", 4: "four"}
    assert {item.answer for item in found["count"]} == set(names.values())
    for item in found["count"]:
        assert item.answer == names[len(item.request["regions"])]


def test_an_unknown_variant(photos: Sequence[Photo]) -> None:
    with pytest.raises(RequestError, match="'boxes'; known: box, "):
        items_of(photos, "boxes")


def items(*labels: str) -> list[Item]:
    return [Item(str(i), label, dict, label) for i, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("couch", True),
        (" Couch. ", True),
        ("sofa", True),
        ("a couch", False),
        ("chair", False),
        ("", False),
    ],
)
def test_what_counts_as_right(answer: str, right: bool) -> None:
    assert is_right(items("couch")[0], answer) is right


def test_only_photos_that_promise_all_coco_classes_count(photos: Sequence[Photo]) -> None:
    partly = [replace(photo, exhaustive_for=frozenset(COCO80[:79])) for photo in photos]
    assert all(items_of(partly, variant) == [] for variant in VARIANTS)
    odd = replace(photos[0], objects=(LabelledObject("zither", (1.0, 1.0, 20.0, 20.0)),))
    assert [item.label for item in items_of([odd], "box")] == ["zither"]
