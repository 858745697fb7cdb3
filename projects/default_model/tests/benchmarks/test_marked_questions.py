"""Questions about marked objects: reproducible, with honest controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from default_model.benchmarks.marked import Marked
from default_model.benchmarks.marked_questions import GROUPS, marked_items
from default_model.scenes.marking import SHAPES
from default_model.scenes.photos import Photo, read_regions
from default_model.scenes.words import COCO80
from vip_llava.errors import RequestError
from vip_llava.evaluation.benchmark import BenchmarkItem, BenchmarkOptions
from vip_llava.evaluation.coco_annotations import LabelledObject
from vip_llava.evaluation.results import ResultRow
from vip_llava.regions import Arrow, draw, resolve
from vip_llava.regions.phrases import phrase


@pytest.fixture(scope="module")
def photos(labelled_folder: Path) -> list[Photo]:
    return list(read_regions(labelled_folder))


def unequal(photo: Photo) -> Photo:
    """The photo with its first object half as wide, so that one is larger than another."""
    first, *others = photo.objects
    x1, y1, x2, y2 = first.box
    return replace(photo, objects=(replace(first, box=(x1, y1, (x1 + x2) / 2, y2)), *others))


def asked(item: BenchmarkItem) -> tuple[Any, ...]:
    request = item.build_request()
    return item.id, item.expected, item.facts, request.question, request.regions


@pytest.mark.parametrize("group", GROUPS)
def test_items_are_reproducible(photos: Sequence[Photo], group: str) -> None:
    photos = [unequal(photo) for photo in photos]
    first = [asked(item) for item in marked_items(photos, group)]
    assert first == [asked(item) for item in marked_items(photos, group)]
    # An item does not depend on which other photos there are.
    part = [asked(item) for item in marked_items(photos[1:], group)]
    assert part and all(item in first for item in part)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_object_is_asked_about_with_a_red_mark(photos: Sequence[Photo], shape: str) -> None:
    items = marked_items(photos, shape)
    assert len(items) == 12  # four objects in three photos; in the last, only people are complete
    targets = {f"{p.id}/{i}": each for p in photos for i, each in enumerate(p.objects)}
    for item in items:
        [region] = item.build_request().regions
        assert (region.shape, region.color, region.id) == (shape, "red", "1")
        assert region.alpha is None and region.width is None  # the default style
        target = targets[item.facts["place"]]
        assert item.expected == item.facts["label"] == target.label
        x1, y1, x2, y2 = region.bounds((96, 72))
        x, y = region.tip if isinstance(region, Arrow) else ((x1 + x2) / 2, (y1 + y2) / 2)
        assert target.box[0] - 5 <= x <= target.box[2] + 5
        assert target.box[1] - 5 <= y <= target.box[3] + 5


def test_controls_have_no_geometry(photos: Sequence[Photo]) -> None:
    groups = (marked_items(photos, group) for group in ("box", "drawn", "control"))
    for items in zip(*groups, strict=True):
        assert len({item.facts["place"] for item in items}) == 1
        box, drawn, control = (item.build_request() for item in items)
        assert not drawn.regions and not control.regions
        words = "What is the object within the red rectangle?"
        assert drawn.question == control.question == words
        photo = next(p for p in photos if p.id == items[0].image)
        assert control.image == photo.jpeg  # nothing is drawn
        expected = draw(photo.open(), resolve(box.regions, photo.size).regions)
        assert isinstance(drawn.image, Image.Image)
        assert np.array_equal(np.asarray(drawn.image), np.asarray(expected))


def test_questions_about_several_marks(photos: Sequence[Photo]) -> None:
    for item in marked_items(photos, "four"):
        request = item.build_request()
        assert len(request.regions) == 4 and len({r.color for r in request.regions}) == 4
        assert item.expected in "ABCD" and f"{item.expected}. " in request.question
    sides = marked_items(photos, "sides")
    assert sides and {item.expected for item in sides} <= {
        *("yes", "no", "left", "right", "above", "below")
    }
    assert all(len(item.build_request().regions) == 2 for item in sides)


def test_questions_about_places_sizes_and_counts(photos: Sequence[Photo]) -> None:
    photos = [unequal(photo) for photo in photos]
    found = {name: marked_items(photos, name) for name in ("furthest", "larger", "count")}
    for item in (*found["furthest"], *found["larger"]):
        request = item.build_request()
        regions = resolve(request.regions, (1000, 1000)).regions
        words = [f"The object {phrase(region, regions)}" for region in regions]
        lettered = f"\n{item.expected}. " in request.question
        assert lettered or item.expected in words or item.expected.capitalize() in words
    sizes = {len(item.build_request().regions) for item in found["larger"]}
    assert found["furthest"] and sizes == {2}
    names = {2: "two", 3: "three", 4: "four"}
    assert {item.expected for item in found["count"]} == set(names.values())
    for item in found["count"]:
        assert item.expected == names[len(item.build_request().regions)]


def test_an_unknown_group(photos: Sequence[Photo]) -> None:
    with pytest.raises(RequestError, match="'boxes'; known: box, "):
        marked_items(photos, "boxes")


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
def test_which_answers_are_right(answer: str, right: bool) -> None:
    assert Marked.score("couch", answer).right is right


def test_only_photos_with_all_coco_classes_labelled_count(photos: Sequence[Photo]) -> None:
    partly = [replace(photo, exhaustive_for=frozenset(COCO80[:79])) for photo in photos]
    assert all(marked_items(partly, group) == [] for group in GROUPS)
    odd = replace(photos[0], objects=(LabelledObject("zither", (1.0, 1.0, 20.0, 20.0)),))
    assert [item.expected for item in marked_items([odd], "box")] == ["zither"]


def test_the_benchmark_asks_about_the_validation_split(labelled_folder: Path) -> None:
    benchmark = Marked(labelled_folder, BenchmarkOptions(groups=("box", "sides")))
    items = benchmark.items()
    assert {item.group for item in items} == {"box", "sides"}
    assert len([item for item in items if item.group == "box"]) == 2 * 4
    every = Marked(labelled_folder, BenchmarkOptions(groups=("box",), all_photos=True))
    assert len(every.items()) == 3 * 4
    rows: list[ResultRow] = [Marked.scored_row(item, str(item.expected)) for item in items]
    scores = {(score.name, score.group): score for score in Marked.aggregate(rows)}
    assert scores["right", "box"].value == scores["right", "sides"].value == 1.0
    assert scores["right", "sides"].axis == "several marks"
