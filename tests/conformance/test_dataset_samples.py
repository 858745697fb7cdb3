"""A small training file: tokens, labels and images are those of the original's data set.

Compared are the rows of which nothing is random. The rest is drawn from another generator here: its
images differ, and the texts are checked by their distributions elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vip_llava.data.lengths import estimate_lengths
from vip_llava.data.reading import RowFile
from vip_llava.data.samples import BadRow, Sample, SampleDataset
from vip_llava.prompting.geometry import ImageGeometry, aspect_mode
from vip_llava.prompting.processor import Processor
from vip_llava.prompting.templates import get_template
from vip_llava.prompting.tokenization import IMAGE_ID
from vip_llava.prompting.tokenizers import TextTokenizer

from .conftest import recorded_cases, skip_without

pytestmark = pytest.mark.conformance

VIEW = 31_999  # no ordinary text of these rows has it
PLAIN = {"000001", "2", "text-1", "unknown-type-1"}


@pytest.fixture
def datasets(
    family: Callable[[str], Path], recorded_tokenizer: Callable[[str], TextTokenizer]
) -> dict[str, SampleDataset]:
    """By aspect mode; a view is one token, as in the recorded ids."""
    folder = family("dataset")
    tokenizer = recorded_tokenizer("sp_legacy")
    made = {}
    for mode in ("pad", "square"):
        geometry = ImageGeometry(mode=aspect_mode(mode))
        processor = Processor(tokenizer, geometry, get_template("v1"), VIEW, 1)
        rows = RowFile.open(folder / "data.json")
        made[mode] = SampleDataset(rows, folder / "pictures", processor, seed=1, max_length=2048)
    return made


def test_rows_without_chance(
    family: Callable[[str], Path], datasets: dict[str, SampleDataset]
) -> None:
    compared = 0
    for case in recorded_cases(family("dataset") / "cases.jsonl"):
        if str(case["record_id"]) not in PLAIN:
            continue
        sample = datasets[case["image_aspect_ratio"]][case["index"]]
        assert isinstance(sample, Sample), sample
        ids = [IMAGE_ID if id_ == VIEW else id_ for id_ in sample.input_ids]
        assert ids == case["input_ids"], case["id"]
        assert sample.labels == case["labels"], case["id"]
        if sample.pixel_values is None:
            # The original needs an image of zeros beside a text.
            assert case["image_mean"] == 0
            assert case["record_id"] == "text-1"
        else:
            pixels = sample.pixel_values[0].numpy()
            assert list(pixels.shape) == case["image_shape"]
            digest = hashlib.sha256(pixels.astype("<f4").tobytes()).hexdigest()
            assert digest == case["image_sha256_float32"], case["id"]
        compared += 1
    skip_without(compared, "row without random marks")


def test_every_row_shows_its_image(
    family: Callable[[str], Path], datasets: dict[str, SampleDataset]
) -> None:
    """Also those whose question had no marker in the original (its model never saw the image)."""
    rows = json.loads((family("dataset") / "data.json").read_text("utf-8"))
    for case in recorded_cases(family("dataset") / "cases.jsonl"):
        sample = datasets[case["image_aspect_ratio"]][case["index"]]
        row = rows[case["index"]]
        assert isinstance(sample, Sample), sample
        assert sample.input_ids.count(VIEW) == int("image" in row)
        assert any(label != -100 for label in sample.labels)
        if sample.pixel_values is not None and str(case["record_id"]) not in PLAIN:
            assert list(sample.pixel_values[0].shape) == case["image_shape"]


def test_answers_that_are_given_are_learned(datasets: dict[str, SampleDataset]) -> None:
    """Whatever is drawn: the answer of these rows is in the row."""
    dataset = datasets["pad"]
    decode = dataset.processor.decode
    for index, answer in ((3, "the astronaut"), (7, "2"), (9, "Gray.")):
        sample = dataset[index]
        assert isinstance(sample, Sample), sample
        learned = decode([label for label in sample.labels if label != -100])
        assert learned.rstrip(".") == answer.rstrip(".")


def test_lengths_have_signs_and_no_zeros(
    family: Callable[[str], Path], datasets: dict[str, SampleDataset]
) -> None:
    recorded = json.loads((family("dataset") / "lengths.json").read_text("utf-8"))
    dataset = datasets["pad"]
    estimates = estimate_lengths(dataset)
    for estimate, signed in zip(estimates, recorded["modality_lengths"], strict=True):
        assert estimate != 0
        assert (estimate < 0) == (signed < 0)
    for index, estimate in enumerate(estimates):
        sample = dataset[index]
        assert not isinstance(sample, BadRow)
        assert abs(abs(estimate) - sample.length) < 0.5 * sample.length
