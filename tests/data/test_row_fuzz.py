"""Fuzzed rows: a row is parsed or rejected with a DataError, whatever its values are."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vip_llava.data.records import KINDS, parse_row
from vip_llava.data.tasks import arrange
from vip_llava.errors import DataError
from vip_llava.regions import draw_resolved

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text("utf-8")
EXAMPLES: list[dict[str, Any]] = [
    json.loads(text) for text in re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
]
ODD: list[Any] = [
    None, True, 0, -1, 4, 10**30, 1e308, -1e9, 0.5, float("nan"), float("inf"), "", " ", "x", "<image>",
    "<bbox>", "<bbox0>", "<bbox99999999999>", "<region:1>", "<region:>", "\ud800", "\x00", "a" * 5000,
    [], [[]], [[[]]], {}, {"from": "human"}, {"size": [2, 2], "counts": "1"}, [1, 2, 3, 4], [0, 0, 1e-9, 1e-9],
    [1, 2, 3, 4, 5], [[1, 2, 3, 4]], [[-5, -5, 1e6, 1e6]], [[0, 0, 0, 0, 0, 0]], [[[0, 0, 9, 0, 9, 9]]],
    [[[1, 1, 9, 9, 9, 1, 1, 9]]], [99], [[99]], ["<image>"], ["a", ["b"]],
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON value."""
    if path:
        yield path
    keys = (
        value.keys()
        if isinstance(value, dict)
        else range(len(value))
        if isinstance(value, list)
        else ()
    )
    for key in keys:
        yield from places(value[key], (*path, key))


def spoiled(value: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A copy with one or two values replaced, removed or duplicated."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2))):
        *above, key = rng.choice(list(places(value)))
        part: Any = value
        for step in above:
            part = part[step]
        action = rng.random()
        if action < 0.7:
            part[key] = copy.deepcopy(rng.choice(ODD))
        elif action < 0.85:
            del part[key]
        elif isinstance(part, list):
            part.append(copy.deepcopy(part[key]))
        if not value:
            break
    return value


def test_there_is_an_example_of_every_kind() -> None:
    assert {parse_row(each).kind for each in EXAMPLES} == set(KINDS)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_a_mutated_row_is_refused_or_used(number: int) -> None:
    rng = random.Random(number)
    image = Image.new("RGB", (320, 240))
    refused = used = 0
    for trial in range(400):
        value = spoiled(EXAMPLES[number], rng)
        try:
            row = parse_row(value, where="f: row 1")
            marked = arrange(row, image.size, random.Random(trial), images=Path("nowhere"))
            if trial % 10 == 0:
                draw_resolved(image, marked.regions)
        except DataError as error:
            refused += 1
            assert str(error).startswith(("f: row 1: ", "id "))
            assert len(str(error)) < 6000
            continue
        used += 1
        assert not row.images or not any("<image>" in (turn.text or "") for turn in marked.turns)
    assert refused > 100
    assert used > 10
