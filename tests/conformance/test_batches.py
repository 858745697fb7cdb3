"""Batches of training samples are padded and cut as the original's collator did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vip_llava.prompting.tokenization import IGNORED_LABEL, collate

from .conftest import Tally, recorded_cases, skip_without

pytestmark = pytest.mark.conformance


def test_batches(
    family: Callable[[str], Path], recorded_versions: dict[str, Any], tally: Tally
) -> None:
    folder = family("batches")
    whole = rows = 0
    for name, version in recorded_versions.items():
        for batch in recorded_cases(folder / f"{name}.jsonl"):
            if "error" in batch or any(version.refusal(item) for item in batch["items"]):
                tally("batches", "not compared, a row is refused")
                continue
            tally("batches", "compared")
            samples = [version.with_faults(*version.encode(item)) for item in batch["items"]]
            ours = collate(samples, pad_id=version.pad_id, max_length=batch["collate_max_length"])
            comparable = [version.ids_are_right(item) for item in batch["items"]]
            if all(comparable):
                assert ours["input_ids"] == batch["input_ids"], batch["id"]
                masks = [[bool(value) for value in row] for row in batch["attention_mask"]]
                assert [[bool(value) for value in row] for row in ours["attention_mask"]] == masks
                whole += 1
            for index, right in enumerate(comparable):
                recorded = batch["labels"][index]
                masked_whole = all(label == IGNORED_LABEL for label in recorded)
                if right and not masked_whole and not version.labels_drift:
                    width = min(len(recorded), len(ours["labels"][index]))
                    assert ours["labels"][index][:width] == recorded[:width], batch["id"]
                    rows += 1
    skip_without(whole + rows, "comparable batch")
