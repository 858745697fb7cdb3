"""Rows for the tests, and a fixture that arranges a row with many generators."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vip_llava.data.records import parse_row
from vip_llava.data.tasks import ArrangedRow, arrange

#: Width and height of the photo that the boxes below are on.
SIZE = (320, 240)
Arranger = Callable[..., list[ArrangedRow]]


@pytest.fixture(scope="session")
def arranged() -> Arranger:
    """`arranged(row_object, times=20)`: what becomes of a row under `times` generators."""

    def make(value: dict[str, Any], times: int = 20, **options: Any) -> list[ArrangedRow]:
        row = parse_row(value)
        return [arrange(row, SIZE, random.Random(seed), **options) for seed in range(times)]

    return make


@pytest.fixture
def vcr_row(tmp_path: Path) -> dict[str, Any]:
    """A VCR row with its boxes; the third object has no outlines, the fourth a triangle."""
    return {
        "id": "vcr-1",
        "image": "a.jpg",
        "question": ["What", "is", [0], "saying", "to", [1, 2], "?"],
        "answer_choices": [
            [[0], "is", "telling", [1], "to", "leave", "."],
            ["Nothing", ",", "he", "does", "n't", "speak", "."],
            ["I", "think", [0], "asks", [2], "'s", "friend", "."],
            [[0, 1, 2], "are", "being", "thanked", "."],
        ],
        "answer_label": 2,
        "rationale_choices": [
            [[0], "looks", "worried", "."],
            ["The", "room", "is", "dark", "."],
            [[3], "is", "turning", "."],
            ["It", "is", "late", "!"],
        ],
        "rationale_label": 2,
        "class_names": ["person", "person", "dog", "chair"],
        "boxes": [
            [30, 20, 110, 200, 0.99],
            [120, 40, 200, 220],
            [210, 50, 300, 180],
            [10, 150, 80, 230],
        ],
        "segms": [
            [[[30, 20], [110, 30], [105, 200], [35, 190]]],
            [[[120, 40], [200, 50], [195, 220], [125, 210]]],
            [],
            [[[10, 150], [80, 150], [45, 230]]],
        ],
    }
