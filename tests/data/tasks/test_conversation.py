"""Conversations: texts are unchanged, and `<image>` markers are removed."""

from __future__ import annotations

import random
from typing import Any

import pytest

from vip_llava.data.records import parse_row
from vip_llava.data.tasks import arrange
from vip_llava.errors import DataError


def texts(image: Any, *values: str, first: str = "human") -> list[str]:
    roles = ["human", "gpt"] if first == "human" else ["gpt", "human"]
    turns = [{"from": roles[place % 2], "value": value} for place, value in enumerate(values)]
    row = parse_row({"id": "1", "image": image, "conversations": turns})
    marked = arrange(row, None, random.Random(0))
    assert marked.regions == ()
    assert [turn.role for turn in marked.turns] == [turn.role for turn in row.turns]
    return [turn.text for turn in marked.turns]


@pytest.mark.parametrize(
    "question",
    ["<image>\nWhat?", "What?\n<image>", "What?", "<image>What?", "<image>\n<image>\nWhat?"],
)
def test_the_marker_of_an_image_is_removed_wherever_it_stands(question: str) -> None:
    assert texts("a.jpg", question, " As it is. ") == ["What?", " As it is. "]


def test_a_marker_in_a_later_turn_is_removed() -> None:
    """Defect 25: two markers in two turns took the next sample's image."""
    once = texts("a.jpg", "Hi", "Hello", "<image>\nWhat?", "Cup")
    assert once == ["Hi", "Hello", "What?", "Cup"]
    twice = texts("a.jpg", "<image>\nHi", "Hello", "What is in <image>", "Cup")
    assert twice == ["Hi", "Hello", "What is in", "Cup"]


def test_several_images_have_a_marker_each() -> None:
    expected = ["Compare", "Same"]
    for question in ("Compare", "<image>\n<image>\nCompare", "<image>Compare<image>"):
        assert texts(["a.jpg", "b.jpg"], question, "Same") == expected
    with pytest.raises(
        DataError, match=r"^id '1': field conversations: there are 2 images and 1 <image>"
    ):
        texts(["a.jpg", "b.jpg"], "<image>\nCompare", "Same")


def test_a_marker_in_a_row_without_image_is_text() -> None:
    assert texts(None, "The HTML tag <image> ", "is old") == ["The HTML tag <image> ", "is old"]


def test_a_leading_assistant_turn_is_kept() -> None:
    assert texts("a.jpg", "Hello", "What?", first="gpt") == ["Hello", "What?"]


def test_an_answer_holds_no_image() -> None:
    with pytest.raises(DataError, match="turn 2: an answer can't hold <image>"):
        texts("a.jpg", "What?", "This <image>")
