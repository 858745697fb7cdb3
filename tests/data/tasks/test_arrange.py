"""Properties of every task: deterministic, the row unchanged, distinct phrases, no markers left."""

from __future__ import annotations

import copy
import random
import re
from typing import Any

import pytest

from vip_llava.data.records import KINDS, parse_row
from vip_llava.data.tasks import TASKS, arrange
from vip_llava.errors import DataError
from vip_llava.regions import Box, phrase

SIZE = (320, 240)
BOX = [40, 30, 130, 110]
OTHER = [190, 60, 260, 160]
TALK = [{"from": "human", "value": "What is <bbox0>?"}, {"from": "gpt", "value": "A cup <bbox1>."}]


def rows(vcr_row: dict[str, Any]) -> list[dict[str, Any]]:
    two = {"image": "a.jpg", "bboxes": [BOX, OTHER]}
    return [
        {"id": "1", "image": "a.jpg", "conversations": [{"from": "human", "value": "Hi"}]},
        {**two, "id": "refcocog-1", "answer": "the man"},
        {**two, "id": "refcocog-gpt4v-1", "conversations": TALK},
        vcr_row,
        {**two, "id": "vg_rel-1", "answer": "a, b, c"},
        {**two, "id": "vg_rel-gpt4v-1", "conversations": TALK},
        {"id": "flickr30k-1", "image": "a.jpg", "bbox": [[BOX], [OTHER]], "grounding": "a <bbox0>"},
        {"id": "v7w-1", "image": "a.jpg", "bboxes": [BOX, OTHER, [1, 1, 9, 9], [9, 9, 19, 19]], "question": "Which?", "answer": BOX},
        {"id": "pointQA_twice-1", "image": "a.jpg", "bboxes": [BOX], "general_question": "How many?", "answer": "2"},
        {**two, "id": "mine", "conversations": TALK},
        {"id": "r", "image": "a.jpg", "regions": [{"shape": "box", "frame": "pixel", "box": BOX}], "conversations": [{"from": "human", "value": "What is <region:1>?"}]},
    ]  # fmt: skip


def test_every_kind_has_a_task(vcr_row: dict[str, Any]) -> None:
    assert set(TASKS) == set(KINDS)
    assert {parse_row(value).kind for value in rows(vcr_row)} == set(TASKS)


def test_the_generator_determines_the_result(vcr_row: dict[str, Any]) -> None:
    for value in rows(vcr_row):
        row = parse_row(value)
        first = [arrange(row, SIZE, random.Random(seed)) for seed in range(8)]
        assert first == [arrange(row, SIZE, random.Random(seed)) for seed in range(8)]
        if row.kind not in ("conversation", "regions"):
            assert len({each.regions for each in first}) == 8 or row.kind == "pointQA_twice"


def test_the_row_is_not_modified(vcr_row: dict[str, Any]) -> None:
    """Defect 3: the original wrote the first epoch's shape and another <image> into the record."""
    for value in rows(vcr_row):
        row, before = parse_row(value), copy.deepcopy(value)
        kept = row.model_copy(deep=True)
        for seed in (1, 2):
            text = arrange(row, SIZE, random.Random(seed)).turns[0].text
            assert text == arrange(parse_row(value), SIZE, random.Random(seed)).turns[0].text
        assert value == before
        assert row == kept


def test_no_placeholder_is_left(vcr_row: dict[str, Any]) -> None:
    for value in rows(vcr_row):
        for seed in range(5):
            turns = arrange(parse_row(value), SIZE, random.Random(seed)).turns
            assert turns[0].role == "user"
            assert not re.search(r"<image|<bbox|<region:", "".join(turn.text for turn in turns))


def test_phrases_are_distinct_and_regions_complete(vcr_row: dict[str, Any]) -> None:
    """Defect 4: two marks with the same phrase."""
    for value in rows(vcr_row):
        for seed in range(30):
            regions = arrange(parse_row(value), SIZE, random.Random(seed)).regions
            assert len({phrase(region) for region in regions}) == len(regions)
            for region in regions:
                assert region.frame == "pixel"
                assert None not in (region.id, region.color, region.alpha)


def test_turns_alternate_and_none_is_empty(vcr_row: dict[str, Any]) -> None:
    for value in rows(vcr_row):
        turns = arrange(parse_row(value), SIZE, random.Random(0)).turns
        assert [turn.role for turn in turns] == (["user", "assistant"] * 2)[: len(turns)]
        assert all(turn.text.strip() for turn in turns)


def test_alpha_can_be_fixed(vcr_row: dict[str, Any]) -> None:
    """Defect 11: the original's options for it were never read."""
    for value in rows(vcr_row)[1:-1]:
        regions = arrange(parse_row(value), SIZE, random.Random(0), alpha=77).regions
        assert {region.alpha for region in regions} == {77}


def test_a_box_outside_the_image_is_named_by_its_index() -> None:
    value = {
        "id": "vg_rel-7",
        "image": "a.jpg",
        "bboxes": [BOX, [400, 10, 500, 90]],
        "answer": "a, b, c",
    }
    with pytest.raises(
        DataError,
        match=r"^id 'vg_rel-7': field bboxes\[1\]: box .* outside the image of 320 x 240",
    ):
        arrange(parse_row(value), SIZE, random.Random(0))
    value = {
        "id": "flickr30k-7",
        "image": "a.jpg",
        "bbox": [[], [BOX], [[-9, -9, -1, -1]]],
        "grounding": "a <bbox2>",
    }
    with pytest.raises(DataError, match=r"field bbox\[2\]: "):
        arrange(parse_row(value), SIZE, random.Random(0))


def test_marking_needs_the_size_of_the_image() -> None:
    value = {"id": "vg_rel-7", "image": "a.jpg", "bboxes": [BOX, OTHER], "answer": "a, b, c"}
    with pytest.raises(DataError, match="marking it needs its size"):
        arrange(parse_row(value), None, random.Random(0))


@pytest.mark.parametrize("style", ["", "vcr", "constant"])
def test_an_unknown_style_is_refused(style: Any) -> None:
    row = parse_row({"id": "1", "conversations": [{"from": "human", "value": "Hi"}]})
    with pytest.raises(DataError, match='known: "vcr_qa", "vcr_qar"'):
        arrange(row, None, random.Random(0), style=style)


def test_more_marks_than_phrases() -> None:
    boxes = [[x, y, x + 8, y + 8] for x in range(0, 300, 10) for y in range(0, 230, 10)]
    value = {"id": "mine", "image": "a.jpg", "bboxes": boxes[:40], "conversations": TALK}
    assert len(arrange(parse_row(value), SIZE, random.Random(0)).regions) == 40
    with pytest.raises(DataError, match="no distinct phrases for 600 objects on one image"):
        arrange(parse_row(value | {"bboxes": boxes[:600]}), SIZE, random.Random(0))


def test_a_box_over_the_edge_is_cut_off() -> None:
    value = {
        "id": "pointQA_twice-1",
        "image": "a.jpg",
        "bboxes": [[-10, 100, 60, 300]],
        "general_question": "?",
        "answer": "1",
    }
    (region,) = arrange(parse_row(value), SIZE, random.Random(0)).regions
    assert isinstance(region, Box)
    assert (region.x1, region.y1, region.x2, region.y2) == (0, 100, 60, 240)
