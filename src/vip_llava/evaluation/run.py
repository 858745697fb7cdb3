"""Scores a model on marked things: asks about every item of a variant and compares the answers.

The photos and the variants come from `data` and `benchmarks`; this module only asks. It prints
nothing: the command line (`cli/evaluate.py`) shows progress and tables, `page.py` the pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vip_llava.answer import Answer
from vip_llava.api import Assistant
from vip_llava.data.scenes.photos import Photo, is_validation, read_regions
from vip_llava.errors import DataError
from vip_llava.evaluation.benchmarks.marked import Item, Score, is_right, items_of, score

_TOKENS = 8  # the longest label has five
_CHUNK = 512  # questions whose drawn pictures are held at once


def photos_to_ask(data: Path, *, everything: bool = False) -> list[Photo]:
    """Photos of a folder with `regions.jsonl`: the validation split, or `everything`.

    Raises DataError where none is left, or where none has all COCO classes labelled.
    """
    photos = [p for p in read_regions(data) if everything or is_validation(p.id)]
    if not photos:
        hint = "" if everything else "; --all takes every photo, not the validation split alone"
        raise DataError(f"{data} has no photos to ask about{hint}")
    if not any(photo.is_coco and photo.things for photo in photos):
        raise DataError(
            f"{data}: no photo has things of COCO classes and promises all of them "
            '("exhaustive_for": ["coco80"]), which the questions are made of'
        )
    return photos


def evaluate(
    assistant: Assistant,
    photos: Sequence[Photo],
    variant: str,
    *,
    most: int | None = None,
    batch_size: int = 8,
    on_answer: Callable[[Item, Answer], None] | None = None,
    on_items: Callable[[int], None] | None = None,
) -> tuple[Score, list[dict[str, Any]]]:
    """The score of one variant, and a row (id, label, right answer, answer, right) for each item.

    most: at most so many items, evenly spread. on_items: gets their number before the first is
    asked. on_answer: gets every item with its whole answer, drawn picture included, in any order.
    """
    items = items_of(photos, variant, most)
    if on_items is not None:
        on_items(len(items))
    said: list[str] = []
    for start in range(0, len(items), _CHUNK):
        chunk = items[start : start + _CHUNK]

        def told(index: int, answer: Answer, chunk: list[Item] = chunk) -> None:
            if on_answer is not None:
                on_answer(chunk[index], answer)

        answers = assistant.ask_many(
            [dict(item.request) for item in chunk],
            batch_size=batch_size,
            max_new_tokens=_TOKENS,
            on_answer=told,
        )
        said += [answer.text for answer in answers]
    rows = [
        {
            "id": item.id,
            "label": item.label,
            "expected": item.answer,
            "answer": text,
            "right": is_right(item, text),
        }
        for item, text in zip(items, said, strict=True)
    ]
    return score(variant, items, said), rows
