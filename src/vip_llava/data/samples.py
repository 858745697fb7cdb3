"""Rows to samples: open, mark, tokenize, and turn images into tensors - one row, one sample.

What is random about a row comes from (seed, epoch, row number) alone, so that workers, order and
resuming change nothing. A row that can't be used becomes a `BadRow` that says why, and travels on in
its place; who trains counts it.

It deliberately does not know batches, models or how rows are stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.utils.data import Dataset

from vip_llava.data.failures import Failures
from vip_llava.data.fields import Row
from vip_llava.data.lengths import lengths
from vip_llava.data.records import parse_row
from vip_llava.data.tasks import arrange
from vip_llava.data.tasks.common import PromptStyle
from vip_llava.errors import DataError, VipLlavaError
from vip_llava.prompting.processor import Processor
from vip_llava.prompting.tokenization import training_turns
from vip_llava.prompting.turns import MarkedImage, Turn, draw_images, open_images
from vip_llava.regions.sampling import generator

__all__ = ["BadRow", "Sample", "SampleDataset", "lengths"]


@dataclass(slots=True)
class Sample:
    """One row as a model learns it: ids and labels [T], and its views.

    `pixel_values`: float32 [N, 3, S, S], normalised; None without an image. Each view's
    placeholders are in `input_ids`. Labels are -100 where nothing is learned.
    """

    id: str
    input_ids: list[int]
    labels: list[int]
    pixel_values: torch.Tensor | None = None

    @property
    def text_only(self) -> bool:
        """Whether there is no image."""
        return self.pixel_values is None

    @property
    def length(self) -> int:
        """Tokens, each view's placeholders included."""
        return len(self.input_ids)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that can't be used: its place ("FILE: row 7"), its id where it has one, and why."""

    where: str
    id: str
    reason: str


class SampleDataset(Dataset[Sample | BadRow]):
    """Samples of rows by number, for a `DataLoader` with any number of workers."""

    def __init__(
        self,
        rows: Sequence[Row | Mapping[str, Any]],
        images: Path | None,
        processor: Processor,
        *,
        seed: int = 0,
        max_length: int | None = None,
        failures: Failures | None = None,
        alpha: int | None = None,
        style: PromptStyle | None = None,
    ) -> None:
        """Rows of a `RowFile` or a list; images' names are relative to the folder `images`.

        `max_length` cuts a sample's tokens (a cut through an image, or before the first answer, is a
        bad row). `failures`: count bad rows at once, for use without workers; a training loop
        counts those that its batches bring. `alpha`, `style`: see `tasks.arrange`.
        """
        self.rows = rows
        self.images = images
        self.processor = processor
        self.seed = seed
        self.max_length = max_length
        self.failures = failures
        self.alpha, self.style = alpha, style
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Marks and words are drawn anew for each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample | BadRow:
        try:
            row = self.row(index)
        except VipLlavaError as error:
            return self._counted(
                BadRow(self.where(index), self._id(index), self._why(index, error))
            )
        try:
            sample = self.sample(row, self.conversation(row, index))
        except VipLlavaError as error:
            return self._counted(BadRow(self.where(index), row.id, self._why(index, error)))
        if self.failures is not None:
            self.failures.seen()
        return sample

    def where(self, index: int) -> str:
        """How messages name the row."""
        named = getattr(self.rows, "where", None)
        return str(named(index)) if named is not None else f"row {index + 1}"

    def row(self, index: int) -> Row:
        """The checked row. Raises DataError."""
        row = self.rows[index]
        return row if isinstance(row, Row) else parse_row(row)

    def conversation(self, row: Row, index: int) -> tuple[Turn, ...]:
        """The row's turns in this epoch, with its images drawn and its text final.

        Raises DataError, ImageError or RegionError.
        """
        images = [MarkedImage(self._path(name)) for name in row.images]
        images = open_images(images)
        arranged = arrange(
            row,
            images[0].unmarked.size if images else None,
            generator(self.seed, self.epoch, index),
            images=self.images,
            alpha=self.alpha,
            style=self.style,
        )
        if images:
            images[0] = replace(images[0], regions=arranged.regions)
        return training_turns(self.processor.template, arranged.turns, draw_images(images)[0])

    def sample(self, row: Row, turns: Sequence[Turn]) -> Sample:
        """Tokens and tensors of a conversation. Raises DataError where nothing would be learned."""
        ids, labels = self.processor.encode_training(turns, max_length=self.max_length)
        return Sample(row.id, ids, labels, self.processor.pixels(turns))

    def _path(self, name: str) -> Path:
        if self.images is None:
            raise DataError(f"field image: there is {name!r}, but no folder of images was given")
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts:
            raise DataError(f"field image: {name!r} leads out of the folder of images")
        return self.images / parts

    def _id(self, index: int) -> str:
        """The id of a row that can't be parsed, as far as it has one."""
        try:
            raw = getattr(self.rows, "raw", self.rows.__getitem__)(index)
        except VipLlavaError:
            return ""
        return str(raw.get("id", "")) if isinstance(raw, Mapping) else ""

    def _why(self, index: int, error: VipLlavaError) -> str:
        """The reason without the place, which a `BadRow` has beside it."""
        return str(error).removeprefix(f"{self.where(index)}: ")

    def _counted(self, bad: BadRow) -> BadRow:
        if self.failures is not None:
            self.failures.seen()
            self.failures.add(bad.where, bad.id, bad.reason)
        return bad
