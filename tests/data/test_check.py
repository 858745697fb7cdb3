from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vip_llava.data.check import HistogramBin, check
from vip_llava.data.reading import RowFile
from vip_llava.errors import DataError

GOOD = {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A red cup."}


def talk(name: str | int, **changes: Any) -> dict[str, Any]:
    return {"id": name, "image": "a.png", "conversations": list(GOOD), **changes}


def marked(name: str, box: list[int]) -> dict[str, Any]:
    return {"id": name, "image": "a.png", "bboxes": [box], "answer": "the cup on the left"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 30), "white").save(tmp_path / "a.png")
    return tmp_path


@pytest.fixture
def rows(folder: Path) -> Callable[..., RowFile]:
    def write(*rows: Any) -> RowFile:
        path = folder / "rows.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return RowFile.open(path)

    return write


def test_kinds_are_counted_and_good_rows_are_usable(
    rows: Callable[..., RowFile], folder: Path
) -> None:
    text = {
        "id": "t",
        "conversations": [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}],
    }
    report = check(rows(talk(1), marked("refcocog-1", [1, 2, 20, 20]), text), folder)
    assert report.kinds == {"conversation": 2, "refcocog": 1}
    assert (report.rows, report.bad, report.text_only, report.images) == (3, 0, 1, 1)
    assert report.usable
    assert report.lengths[0] == 6  # What is it? A red cup.
    assert report.lengths[1] > 8  # with the words that the task writes
    assert report.lengths[2] == 4


def test_bad_rows_are_named_with_number_id_and_reason(
    rows: Callable[..., RowFile], folder: Path
) -> None:
    file = rows(
        talk("good"),
        talk("empty", conversations=[]),
        marked("refcocog-9", [20, 20, 1, 1]),
        talk("mute", conversations=[GOOD[0], {"from": "gpt", "value": " "}]),
        talk("lost", image=["a.png", "a.png"]),
    )
    report = check(file, folder)
    found = [(each.row, each.id) for each in report.problems]
    assert found == [(2, "empty"), (3, "refcocog-9"), (4, "mute"), (5, "lost")]
    reasons = [each.reason for each in report.problems]
    assert "field conversations" in reasons[0]
    assert "x1 < x2" in reasons[1] and "refcocog-9" not in reasons[1]
    assert "no turn has an answer" in reasons[2]
    assert "2 images and 1 <image>" in reasons[3]
    assert report.bad == 4 and not report.usable
    assert sum(report.kinds.values()) == 1


def test_a_broken_line_is_a_bad_row(folder: Path) -> None:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(talk(1)) + '\n{"id": 2, \n' + json.dumps(talk(3)) + "\n")
    report = check(RowFile.open(path), folder)
    assert [each.row for each in report.problems] == [2]
    assert report.kinds == {"conversation": 2}


def test_the_first_problems_are_kept_and_all_are_counted(
    rows: Callable[..., RowFile], folder: Path
) -> None:
    report = check(rows(*(talk(n, conversations=[]) for n in range(9))), folder, most_problems=3)
    assert len(report.problems) == 3
    assert report.bad == 9


def test_missing_images_are_named_with_their_rows(
    rows: Callable[..., RowFile], folder: Path
) -> None:
    file = rows(talk(1), talk(2, image="no.png"), talk(3, image="no.png"))
    report = check(file, folder)
    assert report.missing == {"no.png": 2}
    assert report.images == 2 and report.bad == 0 and not report.usable
    unknown = check(file)
    assert not unknown.missing and not unknown.images_checked and unknown.usable


def test_opening_images_finds_more_problems(rows: Callable[..., RowFile], folder: Path) -> None:
    (folder / "b.png").write_bytes(b"no image")
    file = rows(marked("refcocog-1", [100, 100, 120, 120]), talk(2, image="b.png"))
    assert check(file, folder).usable
    report = check(file, folder, open_images=True)
    assert [each.row for each in report.problems] == [1, 2]
    assert "field bboxes[0]" in report.problems[0].reason
    assert "b.png" in report.problems[1].reason


def test_repeated_rows_and_ids_are_found(rows: Callable[..., RowFile], folder: Path) -> None:
    other = talk("a", image=None)
    report = check(rows(talk("a"), talk("b"), other, talk("c"), other), folder)
    assert report.repeated_rows == {1: [2, 4], 3: [5]}
    assert report.repeated_ids == {1: [3, 5]}
    assert report.usable  # said, but training can do it


def test_boxes_of_vcr_need_the_folder(rows: Callable[..., RowFile], folder: Path) -> None:
    sentence = [["It", [0]]] * 4
    row = {
        "id": "vcr-1",
        "image": "a.png",
        "question": ["What", "is", [0], "?"],
        "answer_choices": sentence,
        "answer_label": 0,
        "rationale_choices": sentence,
        "rationale_label": 1,
        "class_names": ["dog"],
        "meta_dir": "a.json",
    }
    report = check(rows(row))
    assert report.usable and report.lengths == []
    assert "does not exist" in check(rows(row), folder).problems[0].reason
    (folder / "a.json").write_text(json.dumps({"boxes": [[1, 2, 9, 9, 0.5]], "segms": [[]]}))
    assert len(check(rows(row), folder).lengths) == 1


def test_lengths_of_whole_samples(rows: Callable[..., RowFile], folder: Path) -> None:
    asked = []

    def measure(index: int) -> int:
        asked.append(index)
        if index == 1:
            raise DataError("no token of this conversation would be learned")
        return 100 * (index + 1)

    file = rows(talk(1), talk(2), talk(3, image="no.png"), talk(4))
    report = check(file, folder, measure=measure)
    assert asked == [0, 1, 3]
    assert report.unit == "tokens"
    assert report.lengths == [100, 400]
    assert report.problems[0].reason == "no token of this conversation would be learned"


def test_the_histogram_counts_every_row_once(rows: Callable[..., RowFile], folder: Path) -> None:
    report = check(rows(talk(1)), folder)
    report.lengths = [16, 17, 31, 100, 5000, 127]
    assert report.histogram() == (
        HistogramBin(16, 32, 3),
        HistogramBin(32, 64, 0),
        HistogramBin(64, 128, 2),
        HistogramBin(128, 256, 0),
        HistogramBin(256, 512, 0),
        HistogramBin(512, 1024, 0),
        HistogramBin(1024, 2048, 0),
        HistogramBin(2048, 4096, 0),
        HistogramBin(4096, None, 1),
    )
    report.lengths = []
    assert report.histogram() == ()


def test_the_report_is_json(rows: Callable[..., RowFile], folder: Path) -> None:
    file = rows(talk(1), talk(1), talk(3, conversations=[]), talk(4, image="no.png"))
    done: list[tuple[int, int]] = []
    report = check(file, folder, progress=lambda *numbers: done.append(numbers))
    told = json.loads(json.dumps(report.to_json()))
    assert told["usable"] is False
    assert told["rows"] == 4 and told["kinds"] == {"conversation": 3} and told["bad_rows"] == 1
    assert told["problems"][0]["row"] == 3 and told["problems"][0]["id"] == "3"
    assert told["missing_images"] == {"no.png": 1}
    assert told["repeated_ids"] == told["repeated_rows"] == [[1, 2]]
    assert told["length"]["unit"] == "words"
    assert told["length"]["median"] == told["length"]["longest"] == 6
    assert told["length"]["histogram"] == [{"from": 0, "below": 16, "rows": 3}]
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_only_the_first_rows_may_be_checked(rows: Callable[..., RowFile], folder: Path) -> None:
    report = check(rows(talk(1), talk(2), talk(3, conversations=[])), folder, most=2)
    assert report.rows == 2 and report.usable
