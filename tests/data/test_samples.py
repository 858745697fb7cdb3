from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from vip_llava.data.collators import PackedCollator
from vip_llava.data.failures import Failures
from vip_llava.data.lengths import estimate_lengths
from vip_llava.data.records import parse_row
from vip_llava.data.samples import BadRow, Sample, SampleDataset
from vip_llava.errors import DataError
from vip_llava.prompting.processor import Processor
from vip_llava.prompting.turns import images_of

IMAGE, TOKENS = 3, 17
Make = Callable[..., SampleDataset]


def talk(*texts: str) -> list[dict[str, str]]:
    return [
        {"from": "gpt" if place % 2 else "human", "value": text} for place, text in enumerate(texts)
    ]


ROWS: list[dict[str, Any]] = [
    {"id": "one", "image": "a.png", "conversations": talk("<image>\nWhat?", "A dog.")},
    {"id": "text", "conversations": talk("Add 3 and <image>.", "7")},
    {
        "id": "several",
        "image": ["a.png", "sub/b.png"],
        "conversations": talk("<image>\n<image>\nWhich?", "The second.", "Why?", "It is red."),
    },
    {
        "id": "regions",
        "image": "a.png",
        "regions": [{"id": "1", "shape": "box", "frame": "pixel", "box": [5, 5, 30, 25]}],
        "conversations": talk("What is <region:1>?", "A dog."),
    },
    {
        "id": "refcocog-1",
        "image": "a.png",
        "bboxes": [[5, 5, 30, 25]],
        "segmentations": [[[5, 5, 30, 5, 30, 25, 5, 25]]],
        "answer": "the dog",
        "conversations": [],
    },
]
BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"id": "b1", "image": "none.png", "conversations": talk("<image>\na", "b")}, "none.png"),
    (
        {"id": "b2", "image": "../a.png", "conversations": talk("<image>\na", "b")},
        "outside the folder",
    ),
    (
        {"id": "b3", "image": "/etc/a.png", "conversations": talk("<image>\na", "b")},
        "outside the folder",
    ),
    ({"id": "b4", "image": "notes.txt", "conversations": talk("<image>\na", "b")}, "image"),
    ({"id": "b5", "conversations": talk("a")}, "no answer"),
    ({"id": "b6", "conversations": talk("word " * 300, "b")}, "max_length is 200"),
    ({"id": "b7", "image": ["a.png"] * 30, "conversations": talk("a", "b")}, "cuts through"),
    ({"id": "b8", "conversations": []}, "conversations"),
    ({"id": "b9", "image": "a.png", "conversations": talk("a", "<image> b")}, "answer"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (60, 40), (90, 120, 150)).save(tmp_path / "a.png")
    Image.new("RGB", (40, 60), (200, 30, 30)).save(tmp_path / "sub" / "b.png")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


@pytest.fixture
def make(folder: Path, lite_processor: Processor) -> Make:
    def build(rows: list[dict[str, Any]] = ROWS, **options: Any) -> SampleDataset:
        options = {"seed": 5, "max_length": 200, **options}
        return SampleDataset(rows, folder, lite_processor, **options)

    return build


def good(found: Sample | BadRow) -> Sample:
    assert isinstance(found, Sample), found
    return found


def same(one: Sample, other: Sample) -> bool:
    alike = (one.id, one.input_ids, one.labels) == (other.id, other.input_ids, other.labels)
    if one.pixel_values is None or other.pixel_values is None:
        return alike and one.pixel_values is other.pixel_values
    return alike and torch.equal(one.pixel_values, other.pixel_values)


def learned(dataset: SampleDataset, sample: Sample) -> str:
    return dataset.processor.decode([label for label in sample.labels if label != -100])


def test_rows_become_samples(make: Make) -> None:
    dataset = make()
    assert len(dataset) == len(ROWS)
    samples = [good(dataset[index]) for index in range(len(ROWS))]
    assert [sample.id for sample in samples] == [row["id"] for row in ROWS]
    # A region and a box are shown once more by this processor's focal view.
    views = [sample.input_ids.count(IMAGE) / TOKENS for sample in samples]
    assert views == [1, 0, 2, 2, 2]
    assert [sample.text_only for sample in samples] == [False, True, False, False, False]
    for sample, count in zip(samples, views, strict=True):
        assert len(sample.labels) == sample.length
        if sample.pixel_values is not None:
            assert sample.pixel_values.shape == (count, 3, 64, 64)
            assert sample.pixel_values.dtype == torch.float32
    texts = [learned(dataset, sample) for sample in samples]
    assert texts == ["A dog.", "7", "The second.It is red.", "A dog.", "the dog"]


def test_a_marker_in_a_row_of_text_stays_text(make: Make) -> None:
    dataset = make()
    sample = good(dataset[1])
    assert "Add 3 and <image>." in dataset.processor.tokenizer.decode(sample.input_ids)


def test_marks_are_drawn_on_the_model_input(make: Make) -> None:
    dataset = make()
    plain, marked = good(dataset[0]).pixel_values, good(dataset[3]).pixel_values
    assert plain is not None
    assert marked is not None
    (image,) = images_of(dataset.conversation(dataset.row(3), 3))
    for pixels, view in zip(marked, dataset.processor.views(image), strict=True):
        assert np.array_equal(pixels.numpy(), dataset.processor.geometry.pixels(view))
    changed = (plain[0] != marked[0]).any(0)
    assert 0 < int(changed.sum()) < changed.numel() / 2


def test_seed_epoch_and_number_determine_a_sample(make: Make) -> None:
    dataset, again = make(), make()
    forth = [good(dataset[index]) for index in range(len(ROWS))]
    back = [good(again[index]) for index in reversed(range(len(ROWS)))]
    assert all(same(one, other) for one, other in zip(forth, reversed(back), strict=True))
    again.set_epoch(1)
    assert not same(forth[4], good(again[4]))
    assert same(forth[0], good(again[0]))
    again.set_epoch(0)
    assert same(forth[4], good(again[4]))
    assert not same(forth[4], good(make(seed=6)[4]))


def test_workers_change_nothing(make: Make) -> None:
    dataset = make(ROWS * 3)
    loads = []
    for workers in (0, 2):
        loader = DataLoader(
            dataset,
            batch_size=2,
            num_workers=workers,
            collate_fn=PackedCollator(dataset.processor.pad_id),
            multiprocessing_context="fork" if workers else None,
        )
        loads.append(list(loader))
    for alone, shared in zip(*loads, strict=True):
        assert torch.equal(alone["input_ids"], shared["input_ids"])
        assert torch.equal(alone["labels"], shared["labels"])
        if "pixel_values" in alone:
            assert torch.equal(alone["pixel_values"], shared["pixel_values"])


@pytest.mark.parametrize(("row", "reason"), BROKEN, ids=[row["id"] for row, _ in BROKEN])
def test_a_bad_row_has_a_reason_and_is_not_replaced(
    make: Make, row: dict[str, Any], reason: str
) -> None:
    dataset = make([ROWS[0], row])
    bad = dataset[1]
    assert isinstance(bad, BadRow)
    assert bad.where == "row 2"
    assert bad.id == row["id"]
    assert reason in bad.reason
    batch = PackedCollator(0)([dataset[0], bad])
    assert batch["bad"] == [bad]
    assert batch["cu_seq_lens_q"].tolist() == [0, good(dataset[0]).length]


def test_failures_are_counted_on_request(make: Make) -> None:
    failures = Failures(1)
    dataset = make([ROWS[0], BROKEN[0][0], BROKEN[4][0]], failures=failures)
    dataset[0], dataset[1]
    assert (failures.rows, failures.count) == (2, 1)
    with pytest.raises(DataError, match="2 of 3 rows are bad"):
        dataset[2]


def test_no_folder_of_images(lite_processor: Processor) -> None:
    dataset = SampleDataset(ROWS, None, lite_processor)
    assert isinstance(dataset[1], Sample)
    bad = dataset[0]
    assert isinstance(bad, BadRow)
    assert "needs the folder of images" in bad.reason


def test_parsed_rows_and_raw_ones_are_the_same(make: Make) -> None:
    parsed = make([parse_row(row) for row in ROWS])
    for index, sample in enumerate(map(good, map(make().__getitem__, range(len(ROWS))))):
        assert same(sample, good(parsed[index]))
    assert estimate_lengths(parsed)[:3] == estimate_lengths(make())[:3]


def test_a_file_names_its_rows(make: Make, tmp_path: Path) -> None:
    import json

    from vip_llava.data.reading import RowFile

    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (ROWS[0], BROKEN[7][0])))
    dataset = make(RowFile.open(path))
    assert isinstance(dataset[0], Sample)
    bad = dataset[1]
    assert isinstance(bad, BadRow)
    assert bad.where == f"{path}: row 2"
    assert str(path) not in bad.reason
    assert bad.id == "b8"


def test_lengths_are_near_and_signed(make: Make) -> None:
    rows = [
        {"id": str(n), "conversations": talk("Please describe the dog. " * n, "A dog. " * n)}
        for n in range(1, 16)
    ]
    dataset = make([*ROWS, *rows, {"id": "broken", "conversations": 3}], max_length=150)
    estimates = estimate_lengths(dataset)
    assert [length > 0 for length in estimates[:5]] == [True, False, True, True, True]
    for index in range(len(ROWS) + len(rows)):
        sample = good(dataset[index])
        assert abs(abs(estimates[index]) - sample.length) <= max(0.25 * sample.length, 12)
    assert max(map(abs, estimates)) == 150
    assert all(estimates)
