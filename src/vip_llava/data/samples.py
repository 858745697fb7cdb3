"""Rows to samples: open the images, draw the marks, tokenize, and make tensors.

The random generator of a row depends on (seed, epoch, row number) alone, so workers, order and
resuming do not change a sample. A row that can't be used gives a `BadRow` with the reason in its
place; the training loop counts it. This module does not know batches, models or how rows are stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.utils.data import Dataset

from vip_llava.data.failures import Failures
from vip_llava.data.fields import DataRow
from vip_llava.data.records import parse_row
from vip_llava.data.tasks import arrange
from vip_llava.data.tasks.common import PromptStyle
from vip_llava.errors import DataError, VipLlavaError
from vip_llava.prompting.processor import Processor
from vip_llava.prompting.tokenization import training_turns
from vip_llava.prompting.turns import MarkedImage, Turn, draw_images, open_images
from vip_llava.regions.sampling import generator

__all__ = ["BadRow", "Sample", "SampleDataset"]


@dataclass(slots=True)
class Sample:
    """One row as model input: ids and labels [T], and the pixels of its views.

    `pixel_values`: float32 [N, 3, S, S], normalised; None without an image. `input_ids` contain the
    placeholders of each view. Labels are -100 at positions without a loss.
    """

    id: str
    input_ids: list[int]
    labels: list[int]
    pixel_values: torch.Tensor | None = None

    @property
    def text_only(self) -> bool:
        """Whether the row has no image."""
        return self.pixel_values is None

    @property
    def length(self) -> int:
        """Number of tokens, including the placeholders of each view."""
        return len(self.input_ids)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that can't be used: its location ("FILE: row 7"), its id if it has one, and the reason."""

    where: str
    id: str
    reason: str


class SampleDataset(Dataset[Sample | BadRow]):
    """A map-style dataset of samples, for a `DataLoader` with any number of workers."""

    def __init__(
        self,
        rows: Sequence[DataRow | Mapping[str, Any]],
        images: Path | None,
        processor: Processor,
        *,
        seed: int = 0,
        max_length: int | None = None,
        failures: Failures | None = None,
        alpha: int | None = None,
        style: PromptStyle | None = None,
    ) -> None:
        """Make samples of rows.

        Args:
            rows: a `RowFile` or a list.
            images: the folder that the image names are relative to.
            processor: of the model.
            seed: of marks and words, together with the epoch and the row number.
            max_length: truncates the tokens of a sample. A truncation inside an image or before the
                first answer makes a bad row.
            failures: counts bad rows immediately, for use without workers; a training loop counts
                those in its batches.
            alpha: see `tasks.arrange`.
            style: see `tasks.arrange`.
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
        """Set the epoch; each one has its own marks and words."""
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
        """The location of a row, for messages."""
        named = getattr(self.rows, "where", None)
        return str(named(index)) if named is not None else f"row {index + 1}"

    def row(self, index: int) -> DataRow:
        """The validated row. Raises DataError."""
        row = self.rows[index]
        return row if isinstance(row, DataRow) else parse_row(row)

    def conversation(self, row: DataRow, index: int) -> tuple[Turn, ...]:
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

    def sample(self, row: DataRow, turns: Sequence[Turn]) -> Sample:
        """Tokens and tensors of a conversation. Raises DataError if no token has a label."""
        ids, labels = self.processor.encode_training(turns, max_length=self.max_length)
        return Sample(row.id, ids, labels, self.processor.pixels(turns))

    def _path(self, name: str) -> Path:
        if self.images is None:
            raise DataError(
                f"field image: {name!r} needs the folder of images, which was not given"
            )
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts:
            raise DataError(f"field image: {name!r} is outside the folder of images")
        return self.images / parts

    def _id(self, index: int) -> str:
        """The id of a row that can't be parsed, or an empty string."""
        try:
            raw = getattr(self.rows, "raw", self.rows.__getitem__)(index)
        except VipLlavaError:
            return ""
        return str(raw.get("id", "")) if isinstance(raw, Mapping) else ""

    def _why(self, index: int, error: VipLlavaError) -> str:
        """The reason without the location, which `BadRow.where` holds."""
        return str(error).removeprefix(f"{self.where(index)}: ")

    def _counted(self, bad: BadRow) -> BadRow:
        if self.failures is not None:
            self.failures.seen()
            self.failures.add(bad.where, bad.id, bad.reason)
        return bad
