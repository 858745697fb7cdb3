"""Training samples: ids and labels of every version are the original's, its faults excepted.

Which records show a fault is decided by what is in them, never by their names: see `Version`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vip_llava.errors import DataError
from vip_llava.prompting.tokenization import IGNORED_LABEL, IMAGE_ID

from .conftest import Tally, recorded_cases, skip_without

pytestmark = pytest.mark.conformance


def records(folder: Path, versions: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    for name, version in versions.items():
        for record in recorded_cases(folder / f"{name}.jsonl"):
            yield version, record


def limit(record: dict[str, Any]) -> int | None:
    """A sample with an image is cut when it is put into a batch, one without already here."""
    return None if record["has_image"] else int(record["model_max_length"])


def test_input_ids(
    family: Callable[[str], Path], recorded_versions: dict[str, Any], tally: Tally
) -> None:
    compared = 0
    for version, record in records(family("tokens"), recorded_versions):
        if version.refusal(record):
            continue  # see `test_refused_records_have_a_reason`
        if not version.ids_are_right(record):
            fault = "control token in a text" if version.spells_control(record) else "empty answer"
            tally("tokens", f"not compared, {fault}")
            continue
        ids, _ = version.with_faults(*version.encode(record))
        # Some of the original's paths leave cutting to the batch; the result is the same.
        assert ids[: limit(record)] == record["input_ids"][: limit(record)], record["id"]
        tally("tokens", "compared")
        compared += 1
    skip_without(compared, "comparable tokens")


def test_labels(family: Callable[[str], Path], recorded_versions: dict[str, Any]) -> None:
    compared = 0
    for version, record in records(family("tokens"), recorded_versions):
        if version.refusal(record) or record["upstream_mismatch"]:
            continue
        if not version.ids_are_right(record):
            continue
        recorded = record["labels"][: limit(record)]
        if all(label == IGNORED_LABEL for label in recorded):
            with pytest.raises(DataError, match="would be learned"):
                version.encode(record, max_length=limit(record))
        elif not version.labels_drift:
            _, labels = version.with_faults(*version.encode(record))
            assert labels[: limit(record)] == recorded, record["id"]
            compared += 1
    skip_without(compared, "comparable labels")


def test_every_answer_is_learned_and_nothing_else(
    family: Callable[[str], Path], recorded_versions: dict[str, Any]
) -> None:
    """Also where the original's mask drifted or gave up: read the learned tokens back."""
    for version, record in records(family("tokens"), recorded_versions):
        if version.refusal(record):
            continue
        ids, labels = version.encode(record)
        answers = [turn.text for turn in version.turns(record) if turn.role == "assistant"]
        runs: list[list[int]] = [[]]
        for id_, label in zip(ids, labels, strict=True):
            assert label in (id_, IGNORED_LABEL)
            if label != IGNORED_LABEL:
                runs[-1].append(id_)
            elif runs[-1]:
                runs.append([])
        texts = [version.tokenizer.decode(run).strip() for run in runs if run]
        form = version.template.trained_as or version.template
        assert len(texts) == len(answers), record["id"]
        for text, answer in zip(texts, answers, strict=True):
            mark = form.assistant_end.strip()
            end = "" if mark in version.tokenizer.controls else mark
            # A line end can share a token with the end of the answer; blanks are told by the ids.
            assert text.split() == f"{answer} {end}".split() or text == f"{answer}{end}".strip(), (
                record["id"]
            )


def test_spelled_control_tokens_stay_text(
    family: Callable[[str], Path], recorded_versions: dict[str, Any]
) -> None:
    for version, record in records(family("tokens"), recorded_versions):
        if version.refusal(record) or not version.spells_control(record):
            continue
        names = version.tokenizer.controls
        plain = json.dumps(record["conversation"], ensure_ascii=False)
        for name in names:
            plain = plain.replace(name, "nothing")
        harmless = {**record, "conversation": json.loads(plain)}
        controls = {token.id for token in names.values()} | {IMAGE_ID}
        spelled, _ = version.encode(record)
        unspelled, _ = version.encode(harmless)
        assert [id_ for id_ in spelled if id_ in controls] == [
            id_ for id_ in unspelled if id_ in controls
        ], record["id"]


def test_refused_records_have_a_reason(
    family: Callable[[str], Path], recorded_versions: dict[str, Any], tally: Tally
) -> None:
    for version, record in records(family("tokens"), recorded_versions):
        kind = version.refusal(record)
        if kind:
            tally("tokens", f"refused, {kind}")
            with pytest.raises(DataError):
                version.encode(record)
