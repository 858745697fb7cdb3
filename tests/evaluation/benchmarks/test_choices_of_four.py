"""Visual7W and VCR on made folders: exact scores for all forms of answers and invalid rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from vip_llava.errors import DataError, RequestError
from vip_llava.evaluation.benchmark import BenchmarkOptions
from vip_llava.evaluation.benchmarks import open_benchmark
from vip_llava.evaluation.results import Score
from vip_llava.evaluation.run import select_items

ScoreOf = Callable[..., tuple[list[Any], list[Score]]]
BOXES = [[4, 4, 40, 30], [50, 4, 90, 30], [4, 40, 40, 68], [50, 40, 90, 68]]


def values(scores: Sequence[Score]) -> dict[tuple[str, str], tuple[float | None, int, int]]:
    return {(s.name, s.group): (s.value, s.count, s.failed) for s in scores}


def test_visual7w(visual7w: Path, score_of: ScoreOf) -> None:
    """Right answers are A, B, C, D; the image of the last row is missing, which counts as wrong."""
    answers = {"v7w-0": "a", "v7w-1": "(B) because it is blue", "v7w-2": "", "v7w-3": "D"}
    rows, scores = score_of("visual7w", visual7w, answers)
    assert values(scores) == {
        ("accuracy", ""): (3 / 5, 5, 1),
        ("accuracy, letter alone", ""): (2 / 5, 5, 1),
    }
    assert "missing.jpg" in rows[4].failed and rows[4].right is None
    assert [row.read for row in rows] == ["A", "B", None, "D", None]


def test_visual7w_asks_as_the_original(visual7w: Path) -> None:
    items = select_items(open_benchmark("visual7w", visual7w))
    request = items[1].build_request()
    assert request.question.startswith("Which thing is it?\nA. The object within ")
    assert request.question.endswith(
        "Answer with the option's letter from the given choices directly."
    )
    assert [region.shape for region in request.regions] == ["box"] * 4
    assert {region.alpha for region in request.regions} == {128}
    assert len({region.color for region in request.regions}) == 4
    again = select_items(open_benchmark("visual7w", visual7w))[1].build_request()
    assert (again.question, again.regions) == (request.question, request.regions)
    other = select_items(open_benchmark("visual7w", visual7w, BenchmarkOptions(seed=1, alpha=40)))[
        1
    ].build_request()
    assert other.regions != request.regions and {r.alpha for r in other.regions} == {40}


def test_invalid_rows_fail_with_their_reason(
    tmp_path: Path, write_rows: Callable[..., Path], score_of: ScoreOf
) -> None:
    good = {"id": "v7w-1", "image": "a.jpg", "question": "Which?", "bboxes": BOXES}
    rows = [
        {**good, "answer": BOXES[2]},
        {**good, "id": "v7w-2", "answer": BOXES[2], "bboxes": BOXES[:3]},
        {**good, "id": "v7w-3", "answer": [1, 2, 3, 4]},
        {"id": "pointQA_twice-1", "image": "b.jpg", "bboxes": BOXES[:1], "general_question": "?", "answer": "1"},
        {**good, "id": "v7w-5", "answer": BOXES[0], "image": "../secret.jpg"},
        {**good, "answer": BOXES[3]},
    ]  # fmt: skip
    folder = write_rows(tmp_path / "data", "v7w-test.json", rows[:1])
    (folder / "v7w-test.json").write_text(json.dumps(rows), "utf-8")
    found, scores = score_of("visual7w", folder, {"v7w-1": "C", "v7w-1#2": "C"})
    assert [row.id for row in found] == ["v7w-1", "v7w-2", "v7w-3", "pointQA_twice-1", "v7w-5", "v7w-1#2"]  # fmt: skip
    assert [row.facts["question_id"] for row in found][-1] == "v7w-1"
    reasons = [row.failed or "" for row in found]
    assert "4 options, not 3" in reasons[1] and "none of the boxes" in reasons[2]
    assert "kind pointQA_twice" in reasons[3] and "leads out" in reasons[4]
    assert values(scores)[("accuracy", "")] == (1 / 6, 6, 4)


def test_missing_data_is_an_error(tmp_path: Path, visual7w: Path) -> None:
    with pytest.raises(DataError, match=r"no such file or folder; visual7w needs v7w-test\.json"):
        open_benchmark("visual7w", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no v7w-test\.json or"):
        open_benchmark("visual7w", tmp_path / "empty")
    with pytest.raises(RequestError, match="has no group 'qa'; its groups: none"):
        open_benchmark("visual7w", visual7w, BenchmarkOptions(groups=("qa",)))
    with pytest.raises(RequestError, match="no benchmark 'v7w'; known: visual7w"):
        open_benchmark("v7w", visual7w)


def vcr(number: int, answer: int, reason: int) -> dict[str, Any]:
    """A VCR row with a person and a dog."""
    return {
        "id": f"vcr-{number}",
        "image": f"vcr/{number}.jpg",
        "question": ["Why", "is", [0], "near", [1], "?"],
        "answer_choices": [[[0], "waits", str(i), "."] for i in range(4)],
        "answer_label": answer,
        "rationale_choices": [["Since", [1], "is", str(i), "."] for i in range(4)],
        "rationale_label": reason,
        "class_names": ["person", "dog"],
        "boxes": [[*BOXES[0], 0.9], [*BOXES[1], 0.8]],
        "segms": [[[[4, 4], [40, 4], [40, 30], [4, 30]]], [[[50, 4], [90, 4], [90, 30], [50, 30]]]],
    }


#: Right letters for Q->A and QA->R, and the answers: Q->A 3 of 4, QA->R 2 of 4, both 1 of 4.
VCR = [
    ("A", "B", "A", "(b)"),
    ("C", "D", "C.", "A"),
    ("B", "A", "d", "A"),
    ("D", "C", "D", "I don't know"),
]


@pytest.fixture
def vcr_folder(tmp_path: Path, write_rows: Callable[..., Path]) -> Path:
    rows = [vcr(n, "ABCD".index(a), "ABCD".index(r)) for n, (a, r, *_) in enumerate(VCR)]
    return write_rows(tmp_path / "vcr", "vcr-val.json", rows)


def test_vcr_scores_equal_those_counted_by_hand(vcr_folder: Path, score_of: ScoreOf) -> None:
    answers = {}
    for number, (_, _, answer, reason) in enumerate(VCR):
        answers |= {f"vcr-{number}/qa": answer, f"vcr-{number}/qar": reason}
    rows, scores = score_of("vcr", vcr_folder, answers)
    found = values(scores)
    assert len(rows) == 8
    assert found[("accuracy", "Q->AR")] == (1 / 4, 4, 0)
    assert found[("accuracy", "Q->A")] == (3 / 4, 4, 0)
    assert found[("accuracy", "QA->R")] == (2 / 4, 4, 0)
    assert found[("accuracy, letter alone", "Q->A")] == (2 / 4, 4, 0)
    assert found[("accuracy, letter alone", "QA->R")] == (1 / 4, 4, 0)


def test_vcr_asks_for_the_reason_with_the_right_answer(vcr_folder: Path) -> None:
    items = {item.id: item for item in select_items(open_benchmark("vcr", vcr_folder))}
    asked, why = items["vcr-1/qa"].build_request(), items["vcr-1/qar"].build_request()
    assert "waits 2." in asked.question and "A. " in asked.question
    assert 'The answer is "The person at the' in why.question and "waits 2." in why.question
    assert {region.shape for region in asked.regions} == {"point"}
    assert items["vcr-1/qa"].facts["question_id"] == "vcr-1"


def test_vcr_one_task_has_no_joint_score(vcr_folder: Path, score_of: ScoreOf) -> None:
    answers = {f"vcr-{n}/qa": "A" for n in range(4)}
    _, scores = score_of("vcr", vcr_folder, answers, groups=("qa",))
    assert {score.group for score in scores} == {"Q->A"}


def test_a_failed_vcr_row_fails_in_both_tasks(vcr_folder: Path, score_of: ScoreOf) -> None:
    path = vcr_folder / "vcr-val.json"
    rows = json.loads(path.read_text("utf-8"))
    rows[0]["answer_label"] = 7
    path.write_text(json.dumps(rows), "utf-8")
    answers = {}
    for number, (answer, reason, *_) in list(enumerate(VCR))[1:]:
        answers |= {f"vcr-{number}/qa": answer, f"vcr-{number}/qar": reason}
    found, scores = score_of("vcr", vcr_folder, answers)
    assert values(scores)[("accuracy", "Q->AR")] == (3 / 4, 4, 1)
    assert [row.id for row in found if row.failed] == ["vcr-0/qa", "vcr-0/qar"]
