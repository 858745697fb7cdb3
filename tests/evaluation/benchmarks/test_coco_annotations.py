"""Shapes and recognition over COCO-style files, invalid annotations included."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vip_llava.errors import DataError
from vip_llava.evaluation.benchmark import BenchmarkOptions
from vip_llava.evaluation.benchmarks import open_benchmark
from vip_llava.evaluation.benchmarks.labels import score_label
from vip_llava.evaluation.coco_annotations import read_annotations
from vip_llava.evaluation.results import Score
from vip_llava.evaluation.run import select_items
from vip_llava.regions import draw

ScoreOf = Callable[..., tuple[list[Any], list[Score]]]


def annotation(number: int, box: list[float], category: int, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 1, "category_id": category, "bbox": box, "iscrowd": 0, **more}


@pytest.fixture
def coco(tmp_path: Path, draw_image: Callable[..., None]) -> Path:
    """COCO's own layout: two people, a sofa, a crowd (no question), two invalid annotations."""
    draw_image(tmp_path / "val2017" / "1.jpg")
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 96, "height": 72}],
        "annotations": [
            annotation(1, [4, 4, 36, 26], 1, segmentation=[[4, 4, 40, 4, 40, 30, 4, 30]]),
            annotation(2, [50, 4, 40, 26], 1),
            annotation(3, [4, 40, 15, 18], 7),
            annotation(4, [0, 0, 96, 72], 1, iscrowd=1),
            annotation(5, [4, 40, 0, 18], 7),
            annotation(6, [4, 40, 9, 18], 99),
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 7, "name": "sofa"}],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(content), "utf-8")
    return tmp_path


def test_objects_of_a_coco_file(coco: Path) -> None:
    listing, [photo] = read_annotations(coco)
    assert listing.name == "instances_val2017.json" and photo.path.is_file()
    labels = [getattr(thing, "label", "broken") for thing in photo.objects]
    assert labels == ["person", "person", "couch", "broken", "broken"]


def test_recognition(coco: Path, score_of: ScoreOf) -> None:
    answers = {"box/1/0": "A person.", "box/1/1": "dog", "box/1/2": "person"}
    rows, scores = score_of("recognition", coco, answers)
    found = {(score.name, score.group): score for score in scores}
    right = found["right", ""]
    assert (right.value, right.count, right.failed) == (1 / 5, 5, 2)
    assert found["right, not people", ""].value == 0
    assert found['"person" of other things', ""].value == 1 / 3
    assert found["right by size", "20 to 56 pixels"].value == 1 / 2
    assert found["right by size", "0 to 20 pixels"].count == 3
    assert ["without area" in (row.failed or "") for row in rows][3]
    assert "99 is missing or unknown" in rows[4].failed


def test_shapes_ask_the_same_with_different_marks(coco: Path) -> None:
    items = {item.id: item for item in select_items(open_benchmark("shapes", coco))}
    assert len(items) == 20 * 5  # eight shapes, eight colours, three widths, the control
    made = {
        group: items[f"{group}/1/0"].build_request()
        for group in open_benchmark("shapes", coco).groups
    }
    assert {request.question for request in made.values()} == {
        "What is <region:1>?",
        "What is the object within the red rectangle?",
    }
    control = made.pop("control")
    assert not control.regions and "region" not in control.question
    for group, request in made.items():
        [region] = request.regions
        kind, _, what = group.partition("-")
        assert region.shape == (group if kind == group else "box")
        assert region.color == (what if kind == "color" else "red")
        assert region.width == (int(what) if kind == "width" else None)
    plain = np.asarray(control.image)
    for request in made.values():
        assert (np.asarray(draw(request.image, request.regions)) != plain).any()
    boxes = [made[name].regions[0].changed(color="red", width=None) for name in ("box", "color-blue", "width-8")]  # fmt: skip
    assert boxes[0] == boxes[1] == boxes[2]


def test_shapes_from_regions_jsonl(labelled_folder: Path, score_of: ScoreOf) -> None:
    groups = ("box", "control")
    benchmark = open_benchmark("shapes", labelled_folder, BenchmarkOptions(groups=groups))
    items = select_items(benchmark)
    assert len(items) == 2 * 8  # two photos of the validation split, four things each
    everything = open_benchmark(
        "shapes", labelled_folder, BenchmarkOptions(groups=groups, all_photos=True)
    )
    assert len(select_items(everything)) == 2 * 12
    answers = {item.id: item.expected if item.group == "box" else "nothing" for item in items}
    _, scores = score_of("shapes", labelled_folder, answers, groups=groups)
    found = {(score.name, score.group): score.value for score in scores}
    assert found["right", "box"] == 1.0 and found["right", "control"] == 0.0
    assert {score.axis for score in scores} == {"shape"}


def test_another_question(coco: Path) -> None:
    options = BenchmarkOptions(groups=("box",), question="Name <region:1> in one word.")
    assert (
        select_items(open_benchmark("shapes", coco, options))[0].build_request().question
        == options.question
    )


def test_an_image_of_another_size_fails(coco: Path, score_of: ScoreOf) -> None:
    from PIL import Image

    Image.new("RGB", (97, 72)).save(coco / "val2017" / "1.jpg")
    rows, _ = score_of("recognition", coco, {})
    assert "1.jpg is 97 x 72 pixels, but instances_val2017.json says 96 x 72" in rows[0].failed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "a JSON object with images"),
        ("{}", "'images' is missing"),
        ('{"images": [{}], "annotations": [], "categories": []}', "not a COCO instances file"),
        ('{"images": [], "annotations": [{"image_id": 4}], "categories": []}', "which is missing"),
        ('{"images": [], "annotations": [], "categories": []}', "no objects to ask about"),
        ("{", "not JSON"),
    ],
)
def test_a_file_of_another_format(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "instances.json").write_text(content, "utf-8")
    with pytest.raises(DataError, match=message):
        open_benchmark("recognition", tmp_path)


@pytest.mark.parametrize(
    ("answer", "right"),
    [("couch", True), (" A Couch. ", True), ("the sofa", True), ("couches", False), ("", False), ("a", False)],
)  # fmt: skip
def test_labels(answer: str, right: bool) -> None:
    assert score_label("couch", answer).right is right
