"""Batches of training samples are padded and cut as the original's collator did."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vip_llava.prompting.tokenization import IGNORED_LABEL, collate

pytestmark = pytest.mark.conformance


def test_batches(family: Callable[[str], Path], recorded_versions: dict[str, Any]) -> None:
    folder = family("batches")
    whole = rows = 0
    for name, version in recorded_versions.items():
        path = folder / f"{name}.jsonl"
        lines = path.read_text("utf-8").splitlines() if path.is_file() else []
        for batch in map(json.loads, lines):
            if "error" in batch or any(version.refuses(item) for item in batch["items"]):
                continue
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
    assert whole
    assert rows
