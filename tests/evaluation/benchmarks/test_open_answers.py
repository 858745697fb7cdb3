"""PointQA, RefCOCOg and ViP-Bench on made folders, with exact scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from vip_llava.errors import DataError
from vip_llava.evaluation.benchmark import BenchmarkOptions
from vip_llava.evaluation.benchmarks import benchmark_class, open_benchmark
from vip_llava.evaluation.benchmarks.vip_bench import capability_scores
from vip_llava.evaluation.metrics.cider import cider
from vip_llava.evaluation.results import ResultRow, Score
from vip_llava.evaluation.run import select_items

ScoreOf = Callable[..., tuple[list[Any], list[Score]]]


def point(number: int, answer: str) -> dict[str, Any]:
    return {
        "id": f"pointQA_twice-{number}",
        "image": f"p/{number}.jpg",
        "bboxes": [[4, 4, 40, 30]],
        "general_question": "How many of these are there?",
        "answer": answer,
    }


def test_pointqa(tmp_path: Path, write_rows: Callable[..., Path], score_of: ScoreOf) -> None:
    cases = [("1", "1"), ("2", "Two."), ("10", "1"), ("3", "There are 3 dogs."), ("2", "2 or 3"), ("1", ""), ("yes", "Yes")]  # fmt: skip
    rows = [point(number, right) for number, (right, _) in enumerate(cases)]
    folder = write_rows(tmp_path, "pointQA_twice_test.json", rows)
    answers = {f"pointQA_twice-{number}": said for number, (_, said) in enumerate(cases)}
    found, scores = score_of("pointqa", folder, answers)
    assert [row.right for row in found] == [True, True, False, True, False, False, True]
    assert [(score.name, score.value) for score in scores] == [
        ("accuracy", 4 / 7),
        ("accuracy, exact", 2 / 7),
    ]
    request = select_items(open_benchmark("pointqa", folder))[0].build_request()
    assert [(r.shape, r.color) for r in request.regions] == [("box", "red")]
    assert "single word or phrase" in request.question


def test_refcocog(
    tmp_path: Path,
    write_rows: Callable[..., Path],
    score_of: ScoreOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two rows about one thing are one question with two references."""
    monkeypatch.setenv("PATH", "")  # without Java METEOR is nltk's, which starts faster

    def row(number: int, image: str, said: str) -> dict[str, Any]:
        return {"id": f"refcocog-{number}", "image": image, "bboxes": [[4, 4, 40, 30]], "answer": said}  # fmt: skip

    rows = [
        row(1, "a.jpg", "a brown box"),
        row(2, "a.jpg", "box on the left"),
        row(3, "b.jpg", "two dogs"),
        row(4, "missing.jpg", "a cat"),
    ]
    folder = write_rows(tmp_path, "refcocog-val.json", rows)
    answers = {"refcocog-1": "A brown box.", "refcocog-3": "a bus"}
    found, scores = score_of("refcocog", folder, answers)
    assert [row.expected for row in found] == [["a brown box", "box on the left"], ["two dogs"], ["a cat"]]  # fmt: skip
    wanted = cider(["A brown box.", "a bus", ""], [r.expected for r in found])
    assert scores[0].name == "CIDEr" and scores[0].value == pytest.approx(sum(wanted) / 3)
    assert scores[1].name.startswith("METEOR") and scores[1].method
    assert scores[1].value is not None and 0 < scores[1].value < 1
    assert (scores[0].count, scores[0].failed) == (3, 1)
    request = select_items(open_benchmark("refcocog", folder))[0].build_request()
    assert request.question.startswith("Describe the ") and len(request.regions) == 1


META = {
    "v1_0": {"imagename": "v1_0.png", "question": "?", "answer": "4<OR>four", "capability": ["math", "ocr"]},
    "v1_1": {"imagename": "v1_1.png", "question": "?", "answer": "red<AND>blue", "capability": ["rec"]},
    "v1_2": {"imagename": "v1_2.png", "question": "?", "answer": "a dog", "capability": ["rec", "rel"]},
    "v1_10": {"imagename": "v1_10.png", "question": "?", "answer": "no", "capability": ["ocr", "math"]},
}  # fmt: skip


@pytest.fixture
def vip_bench(tmp_path: Path, draw_image: Callable[..., None]) -> Path:
    """Two splits; in `human` the image of question 2 is missing."""
    (tmp_path / "vip-bench-meta-data.json").write_text(json.dumps(META), "utf-8")
    for split in ("bbox", "human"):
        lines = []
        for number in (0, 1, 2, 10):
            text = f"What is within the {split} rectangle {number}?"
            lines.append(
                json.dumps({"question_id": number, "image": f"v1_{number}.png", "text": text})
            )
            if (split, number) != ("human", 2):
                draw_image(tmp_path / split / "images" / f"v1_{number}.png", 100 + number)
        (tmp_path / split / "questions.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return tmp_path


def table(scores: Sequence[Score]) -> Mapping[tuple[str, str], float | None]:
    return {(score.name, score.group): score.value for score in scores}


def test_vip_bench(vip_bench: Path, score_of: ScoreOf) -> None:
    said = {"v1_0": "It is four.", "v1_1": "Blue!", "v1_2": "A small dog", "v1_10": "not at all"}
    answers = {
        f"{split}/{name}": text for split in ("bbox", "human") for name, text in said.items()
    }
    rows, scores = score_of("vip-bench", vip_bench, answers)
    found = table(scores)
    # "four": 1; one of red and blue: 0.5; "a dog" without its article: 1; "no" is not a word of "not".
    assert found[("words found, bbox", "")] == pytest.approx(2.5 / 4)
    assert found[("words found, human", "")] == pytest.approx(1.5 / 4)
    assert found[("words found, bbox", "recognition")] == pytest.approx(1.5 / 2)
    assert (
        found[("words found, bbox", "math")]
        == found[("words found, bbox", "math+ocr")]
        == pytest.approx(0.5)
    )
    assert (
        found[("words found, bbox", "rec+rel")] == 1.0
        and found[("words found, human", "rec+rel")] == 0.0
    )
    assert all("NO JUDGE" in score.method for score in scores)
    assert [row.id for row in rows if row.failed] == ["human/v1_2"]


def test_vip_bench_writes_the_published_format(vip_bench: Path, score_of: ScoreOf) -> None:
    said = dict.fromkeys([f"{s}/{n}" for s in ("bbox", "human") for n in META], "é")
    rows, _ = score_of("vip-bench", vip_bench, said)
    files = benchmark_class("vip-bench").export(rows, "vip-llava-7b")
    assert list(files) == ["results/vip-llava-7b-bbox.json", "results/vip-llava-7b-human.json"]
    human = json.loads(files["results/vip-llava-7b-human.json"])
    assert list(human) == ["v1_0", "v1_1", "v1_2", "v1_10"]  # by number, as published
    assert human == {"v1_0": "é", "v1_1": "é", "v1_2": "", "v1_10": "é"}


def test_vip_bench_asks_what_the_split_says(vip_bench: Path) -> None:
    items = select_items(
        open_benchmark("vip-bench", vip_bench, BenchmarkOptions(groups=("human",)))
    )
    request = items[0].build_request()
    assert request.question == "What is within the human rectangle 0?" and not request.regions
    assert items[0].facts["capability"] == ["math", "ocr"]


def test_vip_bench_with_missing_and_invalid_questions(
    vip_bench: Path, score_of: ScoreOf, tmp_path: Path
) -> None:
    questions = vip_bench / "bbox" / "questions.jsonl"
    lines = questions.read_text("utf-8").splitlines()
    questions.write_text("\n".join(lines[1:]), "utf-8")
    answers = dict.fromkeys([f"bbox/{name}" for name in META], "x")
    rows, _ = score_of("vip-bench", vip_bench, answers, groups=("bbox",))
    assert len(rows) == 4 and "question v1_0 is missing" in rows[0].failed
    questions.write_text("{broken\n", "utf-8")
    with pytest.raises(DataError, match="line 1: not a question"):
        select_items(open_benchmark("vip-bench", vip_bench))
    questions.write_text('{"question_id": 77, "image": "a.png", "text": "?"}\n', "utf-8")
    with pytest.raises(DataError, match="v1_77 is not in"):
        select_items(open_benchmark("vip-bench", vip_bench))
    questions.unlink()
    assert {item.group for item in select_items(open_benchmark("vip-bench", vip_bench))} == {
        "human"
    }
    with pytest.raises(DataError, match=r"bbox/questions\.jsonl does not exist"):
        open_benchmark("vip-bench", vip_bench, BenchmarkOptions(groups=("bbox",)))


def test_capability_tables_are_means_over_runs() -> None:
    rows = [
        ResultRow(
            f"bbox/{n}", "bbox", "", facts={"question_id": n, "capability": meta["capability"]}
        )
        for n, meta in META.items()
    ]
    grades = {"bbox/v1_0": [1.0, 0.0], "bbox/v1_1": [0.3, 0.3], "bbox/v1_2": [0.5]}
    found = table(capability_scores(rows, grades, "m"))
    assert found[("score, bbox", "")] == pytest.approx((0.5 + 0.3 + 0.5 + 0) / 4)
    assert found[("score, bbox", "recognition")] == pytest.approx(0.4)
