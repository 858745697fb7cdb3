"""Small data folders in the published formats of the benchmarks, with drawn images."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from vip_llava.evaluation.benchmark import BenchmarkOptions
from vip_llava.evaluation.benchmarks import benchmark_class, open_benchmark
from vip_llava.evaluation.results import ResultRow, Score
from vip_llava.evaluation.run import select_items

BOXES = [[4, 4, 40, 30], [50, 4, 90, 30], [4, 40, 40, 68], [50, 40, 90, 68]]


@pytest.fixture(scope="session")
def assistant(tiny_model_folder: Path) -> Any:
    """A tiny model with random weights."""
    from vip_llava.assistant import load

    return load(tiny_model_folder, device="cpu")


def write_image(path: Path, shade: int = 120) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (96, 72), (shade, 130, 110))
    for box, color in zip(BOXES, ("tan", "navy", "olive", "maroon"), strict=True):
        ImageDraw.Draw(image).rectangle(tuple(box), fill=color)
    image.save(path)


def rows_file(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(rows), "utf-8")
    for number, row in enumerate(rows):
        if "image" in row and "missing" not in row["image"]:
            write_image(folder / row["image"], 100 + number)
    return folder


@pytest.fixture(scope="session")
def write_rows() -> Callable[..., Path]:
    """`write_rows(folder, name, rows)`: a JSON file of rows, and an image for each row whose image
    is not called "missing"."""
    return rows_file


@pytest.fixture(scope="session")
def draw_image() -> Callable[..., None]:
    """`draw_image(path)`: 96 x 72 pixels with four things."""
    return write_image


def v7w(number: int, right: int, image: str | None = None) -> dict[str, Any]:
    """A Visual7W row whose right box is number `right`."""
    return {
        "id": f"v7w-{number}",
        "image": image or f"v7w/{number}.jpg",
        "question": "Which thing is it?",
        "bboxes": BOXES,
        "answer": BOXES[right],
    }


@pytest.fixture
def visual7w(tmp_path: Path) -> Path:
    """Five rows: answers A, B, C, D and an image that is not there."""
    rows = [v7w(number, number) for number in range(4)]
    return rows_file(tmp_path / "v7w", "v7w-test.json", [*rows, v7w(4, 0, "v7w/missing.jpg")])


@pytest.fixture
def score_of() -> Callable[..., tuple[list[ResultRow], list[Score]]]:
    """`score_of(name, data, answers, **options)`: rows and scores of these answers.

    answers: by item id; an item whose request can't be built fails with its own reason.
    """

    def run(
        name: str, data: Path, answers: Mapping[str, str], **options: Any
    ) -> tuple[list[ResultRow], list[Score]]:
        from vip_llava.errors import VipLlavaError

        kind = benchmark_class(name)
        rows = []
        for item in select_items(open_benchmark(name, data, BenchmarkOptions(**options))):
            try:
                item.build_request()
            except VipLlavaError as error:
                rows.append(item.failed_row(str(error)))
            else:
                rows.append(kind.scored_row(item, answers[item.id]))
        return rows, kind.aggregate(rows)

    return run
