"""Collators: samples to batches, padded to one width or packed into one sequence.

A failed row is passed on in `bad`; the batch is smaller by it, and no other row replaces it. This
module does not know tokenizers, files, or how attention separates the samples of a packed sequence
(`training.attention`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vip_llava.data.samples import BadRow, Sample
from vip_llava.prompting.tokenization import IGNORED_LABEL, collate

__all__ = ["PackedCollator", "PaddedCollator"]


class PaddedCollator:
    """Pads samples on the right: `input_ids`, `labels`, `attention_mask` [B, T].

    Also `pixel_values` [N, 3, S, S] (all views in row order; absent without views), `bad` (the
    failed rows) and `num_items` (the number of tokens that contribute to the loss).
    """

    def __init__(self, pad_id: int, *, multiple_of: int = 1) -> None:
        """`multiple_of`: T is rounded up to a multiple of it."""
        self.pad_id, self.multiple_of = pad_id, multiple_of

    def __call__(self, rows: Sequence[Sample | BadRow]) -> dict[str, Any]:
        """A batch. Without samples it has only `bad` and `num_items`."""
        samples, bad = _split(rows)
        if not samples:
            return {"bad": bad, "num_items": 0}
        pairs = [(sample.input_ids, sample.labels) for sample in samples]
        width = max(sample.length for sample in samples)
        extra = -width % self.multiple_of
        batch: dict[str, Any] = {}
        fills = {"input_ids": self.pad_id, "labels": IGNORED_LABEL, "attention_mask": 0}
        for name, lines in collate(pairs, pad_id=self.pad_id).items():
            batch[name] = torch.tensor([line + [fills[name]] * extra for line in lines])
        return batch | _common_fields(batch["labels"], samples, bad)


class PackedCollator:
    """Concatenates all samples: `input_ids`, `labels`, `position_ids` [1, T], and no mask.

    Positions restart at 0 with each sample, and its first token has no label. `cu_seq_lens_q` (int32
    [S + 1]) and `max_length_q` hold the sample boundaries, under the names that transformers passes
    on to attention. The other fields are those of `PaddedCollator`.
    """

    def __init__(
        self,
        pad_id: int,
        max_tokens: int | None = None,
        *,
        fixed: bool = False,
        multiple_of: int = 1,
    ) -> None:
        """Pad the concatenation, if asked, with a sequence without labels.

        Args:
            pad_id: id of the padding token.
            max_tokens: with `fixed`, the length to pad to. Packs are planned with estimated lengths,
                so a batch may be longer.
            fixed: give all batches one shape, for a compiled model.
            multiple_of: T is rounded up to a multiple of it.
        """
        self.pad_id, self.multiple_of = pad_id, multiple_of
        self.min_tokens = max_tokens if fixed and max_tokens is not None else 0

    def __call__(self, rows: Sequence[Sample | BadRow]) -> dict[str, Any]:
        """A batch. Without samples it has only `bad` and `num_items`."""
        samples, bad = _split(rows)
        if not samples:
            return {"bad": bad, "num_items": 0}
        ids: list[int] = []
        labels: list[int] = []
        lengths = [sample.length for sample in samples]
        for sample in samples:
            ids += sample.input_ids
            labels += [IGNORED_LABEL, *sample.labels[1:]]
        padding = max(self.min_tokens - len(ids), 0)
        padding += -(len(ids) + padding) % self.multiple_of
        if padding:
            ids += [self.pad_id] * padding
            labels += [IGNORED_LABEL] * padding
            lengths.append(padding)
        boundaries = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        batch: dict[str, Any] = {
            "input_ids": torch.tensor([ids]),
            "labels": torch.tensor([labels]),
            "position_ids": torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0),
            "cu_seq_lens_q": boundaries,
            "cu_seq_lens_k": boundaries,
            "max_length_q": max(lengths),
            "max_length_k": max(lengths),
        }
        return batch | _common_fields(batch["labels"], samples, bad)


def _split(rows: Sequence[Sample | BadRow]) -> tuple[list[Sample], list[BadRow]]:
    samples = [row for row in rows if isinstance(row, Sample)]
    return samples, [row for row in rows if isinstance(row, BadRow)]


def _common_fields(
    labels: torch.Tensor, samples: list[Sample], bad: list[BadRow]
) -> dict[str, Any]:
    # No position predicts the first label of a row.
    num_items = int((labels[:, 1:] != IGNORED_LABEL).sum())
    fields: dict[str, Any] = {"bad": bad, "num_items": num_items}
    views = [sample.pixel_values for sample in samples if sample.pixel_values is not None]
    if views:
        fields["pixel_values"] = torch.cat(views)
    return fields
