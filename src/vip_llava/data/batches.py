"""Samples to batches: padded rows of one width, or all samples one after the other in one row.

A row that failed travels along as it is (`bad`); the batch is smaller by it and nothing takes its
place. This module knows lists of ids and images as tensors. It knows no tokenizer, no files, and
not how attention keeps the sequences of a packed row apart (`training.attention`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vip_llava.data.samples import BadRow, Sample
from vip_llava.prompting.tokenization import IGNORED_LABEL, collate

__all__ = ["PackedCollator", "PaddedCollator"]


class PaddedCollator:
    """Rows padded on the right: `input_ids`, `labels`, `attention_mask` [B, T].

    Also `pixel_values` [N, 3, S, S] (all views in row order; absent without views), `bad` (rows
    that failed) and `num_items` (how many tokens are learned).
    """

    def __init__(self, pad_id: int, *, multiple_of: int = 1) -> None:
        """`multiple_of`: T is made one."""
        self.pad_id, self.multiple_of = pad_id, multiple_of

    def __call__(self, rows: Sequence[Sample | BadRow]) -> dict[str, Any]:
        """A batch; one without samples has only `bad` and `num_items`."""
        samples, bad = _sorted_out(rows)
        if not samples:
            return {"bad": bad, "num_items": 0}
        pairs = [(sample.input_ids, sample.labels) for sample in samples]
        width = max(sample.length for sample in samples)
        extra = -width % self.multiple_of
        batch: dict[str, Any] = {}
        fills = {"input_ids": self.pad_id, "labels": IGNORED_LABEL, "attention_mask": 0}
        for name, lines in collate(pairs, pad_id=self.pad_id).items():
            batch[name] = torch.tensor([line + [fills[name]] * extra for line in lines])
        return batch | _rest(batch["labels"], samples, bad)


class PackedCollator:
    """One row of all samples: `input_ids`, `labels`, `position_ids` [1, T], and no mask.

    Positions begin at 0 with each sample, and nothing is learned at its first token. The borders
    are in `cu_seq_lens_q` (int32 [S + 1]) and `max_length_q`, under the names that transformers
    hands on to attention. The rest is as in `PaddedCollator`.
    """

    def __init__(
        self,
        pad_id: int,
        max_tokens: int | None = None,
        *,
        fixed: bool = False,
        multiple_of: int = 1,
    ) -> None:
        """`fixed`: fill up to `max_tokens`, so that all batches have one shape (for a compiled
        model); `multiple_of`: T is made one. Filling is a sequence of its own that nothing is
        learned from. Lengths are planned by estimates, so a batch may be longer than `max_tokens`.
        """
        self.pad_id, self.multiple_of = pad_id, multiple_of
        self.least = max_tokens if fixed and max_tokens is not None else 0

    def __call__(self, rows: Sequence[Sample | BadRow]) -> dict[str, Any]:
        """A batch; one without samples has only `bad` and `num_items`."""
        samples, bad = _sorted_out(rows)
        if not samples:
            return {"bad": bad, "num_items": 0}
        ids: list[int] = []
        labels: list[int] = []
        lengths = [sample.length for sample in samples]
        for sample in samples:
            ids += sample.input_ids
            labels += [IGNORED_LABEL, *sample.labels[1:]]
        filling = max(self.least - len(ids), 0)
        filling += -(len(ids) + filling) % self.multiple_of
        if filling:
            ids += [self.pad_id] * filling
            labels += [IGNORED_LABEL] * filling
            lengths.append(filling)
        borders = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        batch: dict[str, Any] = {
            "input_ids": torch.tensor([ids]),
            "labels": torch.tensor([labels]),
            "position_ids": torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0),
            "cu_seq_lens_q": borders,
            "cu_seq_lens_k": borders,
            "max_length_q": max(lengths),
            "max_length_k": max(lengths),
        }
        return batch | _rest(batch["labels"], samples, bad)


def _sorted_out(rows: Sequence[Sample | BadRow]) -> tuple[list[Sample], list[BadRow]]:
    samples = [row for row in rows if isinstance(row, Sample)]
    return samples, [row for row in rows if isinstance(row, BadRow)]


def _rest(labels: torch.Tensor, samples: list[Sample], bad: list[BadRow]) -> dict[str, Any]:
    rest: dict[str, Any] = {"bad": bad}
    # The first label of a row has nothing that predicts it.
    rest["num_items"] = int((labels[:, 1:] != IGNORED_LABEL).sum())
    views = [sample.pixel_values for sample in samples if sample.pixel_values is not None]
    if views:
        rest["pixel_values"] = torch.cat(views)
    return rest
