"""Parsed rows: their kind, their fields, and the message of every rule."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pydantic import ValidationError

from vip_llava.data import records
from vip_llava.data.records import KINDS, parse_row
from vip_llava.errors import DataError
from vip_llava.regions import Arrow

HUMAN = {"from": "human", "value": "<image>\nWhat is this?"}
GPT = {"from": "gpt", "value": "A cup."}
BOX = [10, 20, 110, 90]
ROWS: dict[str, dict[str, Any]] = {
    "conversation": {"id": "000001", "image": "a.jpg", "conversations": [HUMAN, GPT]},
    "refcocog": {"id": "refcocog-1", "image": "a.jpg", "bboxes": [BOX], "answer": "a cup"},
    "refcocog-gpt4v": {
        "id": "refcocog-gpt4v-1",
        "image": "a.jpg",
        "bboxes": [BOX],
        "conversations": [{"from": "human", "value": "Who is <bbox>?"}, GPT],
    },
    "vcr": {
        "id": "vcr-1",
        "image": "a.jpg",
        "question": ["Why", "is", [0], "here", "?"],
        "answer_choices": [[[0], "sits", "."], ["No", "."], [[1], "stands", "."], ["Yes", "."]],
        "answer_label": 2,
        "rationale_choices": [["a", "."], ["b", "."], ["c", "."], ["d", "."]],
        "rationale_label": 0,
        "class_names": ["person", "dog"],
        "meta_dir": "./dataset/a.json",
    },
    "vg_rel": {
        "id": "vg_rel-1",
        "image": "a.jpg",
        "bboxes": [BOX, [1, 1, 5, 5]],
        "answer": "man, holds, cup",
    },
    "vg_rel-gpt4v": {
        "id": "vg_rel-gpt4v-1",
        "image": "a.jpg",
        "bboxes": [BOX, [1, 1, 5, 5]],
        "conversations": [{"from": "human", "value": "<bbox0> and <bbox1>?"}, GPT],
    },
    "flickr30k": {
        "id": "flickr30k-1",
        "image": "a.jpg",
        "bbox": [[BOX], []],
        "grounding": "a man <bbox0> in a hat <bbox1>",
    },
    "v7w": {
        "id": "v7w-1",
        "image": "a.jpg",
        "question": "Which?",
        "bboxes": [BOX, [1, 1, 5, 5], [2, 2, 6, 6], [3, 3, 7, 7]],
        "answer": [2, 2, 6, 6],
    },
    "pointQA_twice": {
        "id": "pointQA_twice-1",
        "image": "a.jpg",
        "bboxes": [BOX],
        "general_question": "How many?",
        "answer": 2,
    },
    "custom": {
        "id": "mine",
        "image": "a.jpg",
        "bboxes": [BOX, [1, 1, 5, 5]],
        "conversations": [{"from": "human", "value": "<bbox0> or <bbox1>?"}, GPT],
    },
    "regions": {
        "id": "r",
        "image": "a.jpg",
        "regions": [{"shape": "arrow", "frame": "unit", "tail": [0.1, 0.1], "tip": [0.5, 0.5]}],
        "conversations": [{"from": "human", "value": "What is <region:1>?"}, GPT],
    },
}


def row(kind: str, **changes: Any) -> dict[str, Any]:
    """The row of a kind with other values; None removes a key."""
    return {
        key: part for key, part in (copy.deepcopy(ROWS[kind]) | changes).items() if part is not None
    }


@pytest.mark.parametrize("kind", ROWS)
def test_each_kind_is_recognized(kind: str) -> None:
    parsed = parse_row(ROWS[kind])
    assert type(parsed) is KINDS[kind]
    assert parsed.kind == kind
    assert parsed.images == ("a.jpg",)


def test_every_kind_has_an_example_here() -> None:
    assert set(ROWS) == set(KINDS)


def test_names_are_public() -> None:
    for name in records.__all__:
        assert hasattr(records, name)


def test_a_row_keeps_its_fields() -> None:
    parsed = parse_row(row("conversation", id=7, source="web", model_name="x"))
    assert parsed.id == "7"
    assert [(turn.role, turn.text) for turn in parsed.turns] == [
        ("user", "<image>\nWhat is this?"),
        ("assistant", "A cup."),
    ]
    assert parsed.model_extra == {"source": "web", "model_name": "x"}


def test_the_parsed_object_is_left_alone_and_rows_can_not_be_changed() -> None:
    value = row("flickr30k")
    before = copy.deepcopy(value)
    parsed = parse_row(value)
    assert value == before
    with pytest.raises(ValidationError):
        parsed.id = "other"  # type: ignore[misc]


def test_a_table_s_nulls_count_as_missing() -> None:
    nulls = dict.fromkeys(("regions", "bboxes", "answer", "meta_dir"))
    assert parse_row(row("conversation") | nulls).kind == "conversation"
    region = {**ROWS["regions"]["regions"][0], "box": None, "color": None}
    parsed = parse_row(row("regions", regions=[region]))
    assert isinstance(parsed, KINDS["regions"])
    assert parsed.regions[0].shape == "arrow"


@pytest.mark.parametrize(
    ("image", "names"), [(None, ()), (["a.png", "b.png"], ("a.png", "b.png")), ([], ())]
)
def test_a_conversation_has_any_number_of_images(image: object, names: object) -> None:
    assert parse_row(row("conversation", image=image)).images == names


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("human", "user"),
        ("user", "user"),
        ("assistant", "assistant"),
        ("gpt", "assistant"),
        ("system", "system"),
    ],
)
def test_both_names_of_a_role(name: str, role: str) -> None:
    value = row("conversation", conversations=[{"from": name, "value": "x"}])
    assert parse_row(value).turns[0].role == role


def test_both_spellings_of_boxes() -> None:
    plain = parse_row(row("custom"))
    assert isinstance(plain, KINDS["custom"])
    respelled = parse_row(row("custom", bboxes=None, bbox=ROWS["custom"]["bboxes"]))
    assert respelled == plain
    turns = [{"from": "human", "value": "What is <bbox>?"}, GPT]
    one = parse_row(row("custom", bboxes=None, bbox=BOX, conversations=turns))
    assert one.bboxes == ((10, 20, 110, 90),)  # type: ignore[attr-defined]
    assert one.segmentations == (None,)  # type: ignore[attr-defined]


def test_outlines_come_flat_or_as_points() -> None:
    flat = parse_row(row("refcocog", segmentations=[[[1, 2, 3, 4, 5, 2]]]))
    points = parse_row(row("refcocog", segmentations=[[[[1, 2], [3, 4], [5, 2]]]]))
    assert flat == points
    assert flat.segmentations == (((1, 2, 3, 4, 5, 2),),)  # type: ignore[attr-defined]


def test_a_region_keeps_its_type_and_frame() -> None:
    parsed = parse_row(ROWS["regions"])
    assert parsed.regions == (Arrow(tail=(0.1, 0.1), tip=(0.5, 0.5), frame="unit"),)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        # Plain rows whose ids look like something else.
        (row("conversation", id="coco-12"), "conversation"),
        (row("conversation", id="vcr", image=None), "conversation"),
        (row("conversation", id="vcr-x7_0", image=None), "conversation"),
        (row("conversation", id="unknown-type-1"), "conversation"),
        (row("conversation", bboxes=[]), "conversation"),
        (row("custom", id="refcocogs-1"), "custom"),
        (row("regions", id="vcr-1"), "regions"),
    ],
)
def test_ids_decide_only_where_they_name_a_source(value: dict[str, Any], kind: str) -> None:
    assert parse_row(value).kind == kind


#: Row, and the field and a part of the rule that the message has.
WRONG: list[tuple[dict[str, Any], str, str]] = [
    (row("conversation", conversations=None), "conversations", "missing"),
    (row("conversation", conversations=[]), "conversations", "at least 1"),
    (row("conversation", conversations="hello"), "conversations", "valid tuple"),
    (row("conversation", conversations=[{"from": "human"}]), "conversations[0]", "missing"),
    (row("conversation", conversations=[{"value": "x"}]), "conversations[0]", "missing"),
    (row("conversation", conversations=[HUMAN, {"from": "bot", "value": "x"}]), "conversations[1]", "'bot'"),
    (row("conversation", conversations=[{"from": "human", "value": ["x"]}]), "conversations[0]", "string"),
    (row("conversation", image=3), "image", "named by its file"),
    (row("conversation", image=""), "image", "named by its file"),
    (row("conversation", image="https://x.org/a.png"), "image", "would have to be fetched"),
    (row("refcocog", answer=None), "answer", "missing"),
    (row("refcocog", answer=""), "answer", "at least 1 character"),
    (row("refcocog", image=None), "image", "missing"),
    (row("refcocog", image=["a.jpg", "b.jpg"]), "image", "at most 1"),
    (row("refcocog", bboxes=[]), "bboxes", "at least 1"),
    (row("refcocog", bboxes=None, segmentations=[None]), "bboxes", "missing"),
    (row("refcocog", bboxes=[[1, 2, 3]]), "bboxes[0]", "[x1, y1, x2, y2]"),
    (row("refcocog", bboxes=[[1, 2, 3, "4"]]), "bboxes[0]", "four finite numbers"),
    (row("refcocog", bboxes=[[1, 2, float("nan"), 4]]), "bboxes[0]", "four finite numbers"),
    (row("refcocog", bboxes=[[True, 2, 3, 4]]), "bboxes[0]", "four finite numbers"),
    (row("refcocog", bboxes=[[5, 2, 3, 4]]), "bboxes[0]", "x1 < x2 and y1 < y2"),
    (row("refcocog", bboxes=[[1, 4, 3, 4]]), "bboxes[0]", "x1 < x2 and y1 < y2"),
    (row("refcocog", bboxes=[[1, 2, 3, 1e7]]), "bboxes[0]", "at most 1000000"),
    (row("refcocog", segmentations=[[[1, 2, 3, 1e7]]]), "segmentations[0][0][3]", "less than or equal to 1000000"),
    (row("refcocog", segmentations=[None, None]), "segmentations", "1 boxes and 2 entries"),
    (row("refcocog", segmentations=[[[1, 2, 3]]]), "segmentations[0][0]", "pairs x, y"),
    (row("refcocog", segmentations=[[[1, 2, 3, float("inf")]]]), "segmentations[0][0][3]", "finite"),
    (row("refcocog", segmentations=[[[[1, 2], [3]]]]), "segmentations[0][0]", "[x, y]"),
    (row("refcocog", segmentations=[[{"counts": ""}]]), "segmentations[0][0]", "run-length"),
    (row("refcocog", id="refcocog"), "id", "like refcocog-1"),
    (row("refcocog", id="coco-1"), "conversations", "known source"),
    (row("refcocog", id=None), "conversations", "known source"),
    (row("refcocog-gpt4v", conversations=[]), "conversations", "at least 1"),
    (row("refcocog-gpt4v", bboxes=[BOX, BOX]), "conversations", "<bbox> needs a row with one box"),
    (row("vcr", question=["What", "about", ["tuple"], "?"]), "question", "['tuple']"),
    (row("vcr", question=["What", None, "?"]), "question", "not None"),
    (row("vcr", question=["What", [], "?"]), "question", "not []"),
    (row("vcr", question=["What", 3, "?"]), "question", "not 3"),
    (row("vcr", question=["What", [-1], "?"]), "question", "[-1]"),
    (row("vcr", question="What?"), "question", "a list of words"),
    (row("vcr", question=[]), "question", "a list of words"),
    (row("vcr", answer_choices=[["a"], ["b"], ["c"]]), "answer_choices", "at least 4"),
    (row("vcr", rationale_choices=[["a"], ["b"], [{"c": 1}], ["d"]]), "rationale_choices", "{'c': 1}"),
    (row("vcr", answer_label=4), "answer_label", "less than or equal to 3"),
    (row("vcr", rationale_label=None), "rationale_label", "missing"),
    (row("vcr", class_names=["person"]), "class_names", "object 1, but there are 1 classes"),
    (row("vcr", meta_dir=None), "meta_dir", "missing"),
    (row("vcr", meta_dir=None, boxes=[BOX]), "boxes", "none for object 1"),
    (row("vg_rel", bboxes=[BOX]), "bboxes", "between 2 boxes, not 1"),
    (row("vg_rel", bboxes=[BOX] * 3), "bboxes", "between 2 boxes, not 3"),
    (row("vg_rel-gpt4v", bboxes=[BOX]), "conversations", "<bbox1> names no box"),
    (row("flickr30k", grounding="a man <bbox7> runs"), "grounding", "<bbox7> names no box: they count from 0, the last is <bbox1>"),
    (row("flickr30k", grounding="a man <bbox> runs"), "grounding", "write <bboxN>"),
    (row("flickr30k", grounding=" <bbox0> "), "grounding", "no words"),
    (row("flickr30k", bbox=[BOX]), "bbox[0][0]", "a box is"),
    (row("v7w", bboxes=[BOX] * 3), "bboxes", "4 options, not 3"),
    (row("v7w", bboxes=[BOX] * 5), "bboxes", "4 options, not 5"),
    (row("v7w", answer=[1, 2, 3, 4]), "answer", "none of the boxes"),
    (row("v7w", question=None), "question", "missing"),
    (row("pointQA_twice", bboxes=[BOX] * 2), "bboxes", "not 2"),
    (row("pointQA_twice", general_question=None), "general_question", "missing"),
    (row("pointQA_twice", answer=True), "answer", "string"),
    (row("custom", bboxes=[BOX]), "conversations", "<bbox1> names no box: they count from 0, the last is <bbox0>"),
    (row("custom", bboxes=None), "bboxes", "missing"),
    (row("regions", regions=[{"shape": "star", "frame": "pixel"}]), "regions", "star"),
    (row("regions", regions={"shape": "box"}), "regions", "a list"),
    (row("regions", regions=[{"id": "1", "shape": "box", "frame": "pixel", "box": BOX}] * 2), "regions", "two regions have the id '1'"),
    (row("regions", regions=[]), "conversations", "<region:1> names no region; ids: none"),
    (row("regions", conversations=[{"from": "human", "value": "<region:one two>"}]), "conversations", "malformed placeholder"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "field", "rule"), WRONG)
def test_what_is_wrong_is_named(value: dict[str, Any], field: str, rule: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_row(value, where="mix.json: row 12")
    message = str(caught.value)
    name = value.get("id", "")
    assert message.startswith(f"mix.json: row 12: id {name!r}: field {field}: "), message
    assert rule in message
    assert "\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize("value", [3, "text", [1], None])
def test_a_row_is_an_object(value: Any) -> None:
    with pytest.raises(DataError, match=r"^f\.json: row 3: a row must be a JSON object, not "):
        parse_row(value, where="f.json: row 3")


@pytest.mark.parametrize("name", [True, ["x"], 1.5])
def test_an_id_is_text_or_a_whole_number(name: object) -> None:
    with pytest.raises(DataError, match="field id: must be a string or a whole number"):
        parse_row(row("conversation", id=name))


def test_further_errors_are_counted() -> None:
    with pytest.raises(DataError, match=r"\(and 1 more\)$"):
        parse_row(row("vcr", answer_label=9, rationale_label=9))
