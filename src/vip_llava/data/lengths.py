"""Estimate the lengths of rows from their text, accurately enough to group rows by length.

Estimating a million rows takes about a minute: no image is opened or drawn, and only a few rows are
tokenized to measure the characters per token. Unlike the original's lengths, the estimates include
image tokens and the text that tasks write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from vip_llava.errors import DataError, VipLlavaError
from vip_llava.prompting.processor import Processor
from vip_llava.prompting.turns import Turn

if TYPE_CHECKING:
    from vip_llava.data.samples import SampleDataset

__all__ = ["estimate_lengths"]

# Keys whose values are not part of the prompt.
_NOT_TEXT = {"id", "image", "images", "from", "role", "meta_dir", "source", "counts"}
_NOT_TEXT |= {"shape", "frame", "color"}
_BOXES = ("bboxes", "bbox", "boxes", "regions")
_MEASURED_ROWS = 64
_PER_TURN = 6  # role names and end tokens
_PER_REGION = 8  # "within the red rectangle", in place of a placeholder
_WRITTEN = 24  # a question that the task writes


def estimate_lengths(dataset: SampleDataset) -> list[int]:
    """Estimated tokens of each row: negative without an image, never 0.

    A row that can't be read counts as one token of text.
    """
    scale = _tokens_per_character(dataset)
    start = len(dataset.processor.encode([Turn("user", "x")])[0])
    found = []
    for index in range(len(dataset)):
        try:
            raw = _raw(dataset, index)
        except VipLlavaError:
            found.append(-1)
            continue
        found.append(_length(raw, dataset.processor, dataset.max_length, scale, start))
    return found


def _length(
    raw: Mapping[str, Any], processor: Processor, limit: int | None, scale: float, start: int
) -> int:
    names = raw.get("image", raw.get("images"))
    images = max(_count(names), int(bool(names)))
    turns = _count(raw.get("conversations") or raw.get("turns"))
    regions = max(_count(raw.get(key)) for key in _BOXES)
    tokens = start + scale * sum(map(len, _texts(raw)))
    # `start` includes the first question and the beginning of its answer.
    tokens += max(turns - 2, 0) * _PER_TURN if turns else _WRITTEN
    tokens += regions * _PER_REGION
    views = images + (regions if images and processor.focal is not None else 0)
    whole = round(tokens) + views * processor.tokens_per_view
    cut = max(whole if limit is None else min(whole, limit), 1)
    return cut if images else -cut


def _count(value: Any) -> int:
    return len(value) if isinstance(value, (list, tuple)) else 0


def _texts(value: Any) -> Iterator[str]:
    """All strings in a row except names and other keys that the model does not see."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            if key not in _NOT_TEXT:
                yield from _texts(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            # Most values are numbers of boxes and outlines.
            if not isinstance(part, (int, float)):
                yield from _texts(part)


def _raw(dataset: SampleDataset, index: int) -> Mapping[str, Any]:
    read = getattr(dataset.rows, "raw", None)
    row = dataset.rows[index] if read is None else read(index)
    row = row.model_dump() if isinstance(row, BaseModel) else row
    if not isinstance(row, Mapping):
        raise DataError(f"a row must be a JSON object, not {type(row).__name__}")
    return row


def _tokens_per_character(dataset: SampleDataset) -> float:
    """Measured on rows that are evenly spaced in the file."""
    tokens = characters = 0
    step = max(len(dataset) // _MEASURED_ROWS, 1)
    for index in range(0, len(dataset), step):
        try:
            text = "\n".join(_texts(_raw(dataset, index)))
        except VipLlavaError:
            continue
        tokens += len(dataset.processor.tokenizer.plain(text, at_start=False)) if text else 0
        characters += len(text)
    return tokens / characters if characters else 0.0
