"""A whole evaluation on a tiny model: every item is asked once, in batches or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vip_llava.api import load
from vip_llava.data.scenes.photos import is_validation
from vip_llava.errors import DataError
from vip_llava.evaluation.run import evaluate, photos_to_ask


@pytest.fixture(scope="module")
def assistant(tiny_model_folder: Path) -> Any:
    return load(tiny_model_folder, device="cpu")


def test_the_validation_split_or_everything(labelled_folder: Path) -> None:
    assert len(photos_to_ask(labelled_folder, everything=True)) == 4
    split = photos_to_ask(labelled_folder)
    assert len(split) == 2 and all(is_validation(photo.id) for photo in split)


def only(folder: Path, target: Path, numbers: list[int]) -> Path:
    """A folder with some rows of another one's listing."""
    target.mkdir()
    (target / "images").symlink_to(folder / "images")
    rows = (folder / "regions.jsonl").read_text("utf-8").splitlines()
    (target / "regions.jsonl").write_text("".join(rows[i] + "\n" for i in numbers), "utf-8")
    return target


def test_nothing_to_ask_is_an_error(labelled_folder: Path, tmp_path: Path) -> None:
    trained = only(labelled_folder, tmp_path / "trained", [2, 3])
    with pytest.raises(DataError, match="--all"):
        photos_to_ask(trained)
    people = only(labelled_folder, tmp_path / "people", [3])
    with pytest.raises(DataError, match="coco80"):
        photos_to_ask(people, everything=True)


@pytest.mark.parametrize("variant", ["box", "control", "sides"])
def test_evaluate(assistant: Any, labelled_folder: Path, variant: str) -> None:
    photos = photos_to_ask(labelled_folder, everything=True)[:3]
    told: list[tuple[str, str]] = []
    counts: list[int] = []
    found, rows = evaluate(
        assistant,
        photos,
        variant,
        most=5,
        batch_size=2,
        on_answer=lambda item, answer: told.append((item.id, answer.text)),
        on_items=counts.append,
    )
    assert counts == [len(rows)] == [found.items] and 0 < len(rows) <= 5
    assert sorted(told) == sorted((row["id"], row["answer"]) for row in rows)
    assert found.overall == pytest.approx(sum(row["right"] for row in rows) / len(rows))
    alone, single = evaluate(assistant, photos, variant, most=5, batch_size=1)
    assert (alone, single) == (found, rows)
    json.dumps([found.row(), rows])


def test_answers_belong_to_their_items(
    assistant: Any, labelled_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a model that reads the label off the mark's place, everything is right."""
    photos = photos_to_ask(labelled_folder, everything=True)[:3]
    labels = {thing.box: thing.label for photo in photos for thing in photo.things}

    class Knowing:
        def ask_many(self, requests: list[dict[str, Any]], **options: Any) -> list[Any]:
            answers = []
            for index, request in enumerate(requests):
                x1, y1 = request["regions"][0].bounds((96, 72))[:2]
                near = min(labels, key=lambda b: abs(b[0] - x1) + abs(b[1] - y1))
                answer = type("Said", (), {"text": labels[near], "image": None})
                options["on_answer"](index, answer)
                answers.append(answer)
            return answers

    monkeypatch.setattr("vip_llava.evaluation.run._CHUNK", 5)  # more than one chunk
    seen: list[bool] = []
    knowing: Any = Knowing()
    found, rows = evaluate(
        knowing,
        photos,
        "box",
        on_answer=lambda item, answer: seen.append(item.answer == answer.text),
    )
    assert found.overall == found.macro == 1 and found.person_for_other == 0
    assert len(rows) == 12 and seen == [True] * 12
