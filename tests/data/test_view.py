from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vip_llava.data.html_page import Card, PromptPart
from vip_llava.data.reading import RowFile
from vip_llava.data.samples import Sample, SampleDataset
from vip_llava.data.view import Viewer, token_parts
from vip_llava.errors import DataError
from vip_llava.prompting.processor import Processor
from vip_llava.prompting.tokenization import IGNORED_LABEL
from vip_llava.regions import Box, draw

ROWS: list[dict[str, Any]] = [
    {
        "id": "mine",
        "image": "a.png",
        "regions": [{"shape": "box", "frame": "pixel", "box": [5, 5, 40, 30], "color": "red"}],
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is <region:1>?"},
            {"from": "gpt", "value": "a cup ß 猫"},
            {"from": "human", "value": "sure?"},
            {"from": "gpt", "value": "yes"},
        ],
    },
    {
        "id": "refcocog-7",
        "image": "a.png",
        "bboxes": [[10, 8, 50, 40]],
        "answer": "the cup on the left",
    },
    {
        "id": "text",
        "conversations": [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}],
    },
    {
        "id": "lost",
        "image": "no.png",
        "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "a cup"}],
    },
    {"id": "empty", "image": "a.png", "conversations": []},
    {
        "id": "mute",
        "conversations": [{"from": "human", "value": "1 + 1?"}],
    },
]


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))


@pytest.fixture
def rows(tmp_path: Path, photo: Image.Image) -> RowFile:
    photo.save(tmp_path / "a.png")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return RowFile.open(path)


@pytest.fixture
def viewer(rows: RowFile, tmp_path: Path) -> Callable[..., Viewer]:
    return lambda **options: Viewer(rows, tmp_path, **options)


def texts(card: Card, *, learned: bool) -> list[str]:
    return [part.text for part in card.parts if part.learned is learned]


def test_answers_and_their_end_marks_are_learned(viewer: Callable[..., Viewer]) -> None:
    card = viewer().card(0)
    assert card.problem is None
    assert "".join(texts(card, learned=True)) == " a cup ß 猫</s> yes</s>"
    asked = "".join(texts(card, learned=False))
    assert "What is the object within the red rectangle?" in asked
    assert [part.text for part in card.parts if part.kind == "image"] == ["<image>"]
    assert not card.tokens and card.facts[1] == "5 of them learned"


def test_the_image_is_drawn_as_training_draws_it(
    viewer: Callable[..., Viewer], photo: Image.Image
) -> None:
    ((words, image),) = viewer().card(0).images
    assert words == "a.png, 64 x 48"
    assert image.tobytes() == draw(photo, [Box(5, 5, 40, 30, color="red")]).tobytes()


def test_seed_and_epoch_choose_the_marks(viewer: Callable[..., Viewer]) -> None:
    def marks(**options: int) -> tuple[Any, ...]:
        return viewer(**options).card(1).regions

    assert marks() == marks() and len(marks()) == 1
    others = {str(marks(epoch=n)) for n in range(8)} | {str(marks(seed=n)) for n in range(8)}
    assert len(others) > 8


@pytest.mark.parametrize(
    ("index", "kind", "told"),
    [
        (3, "conversation", "no.png"),
        (4, "", "field conversations"),
        (5, "conversation", "no turn has an answer"),
    ],
)
def test_a_bad_row_has_a_reason_on_its_card(
    viewer: Callable[..., Viewer], index: int, kind: str, told: str
) -> None:
    card = viewer().card(index)
    assert card.problem is not None and told in card.problem
    assert (card.id, card.kind, card.where) == (ROWS[index]["id"], kind, f"row {index + 1}")
    assert not card.problem.startswith("id ")


def test_text_alone_has_no_image(viewer: Callable[..., Viewer]) -> None:
    card = viewer(template="chatml").card(2)
    assert card.images == () and card.problem is None
    assert "".join(texts(card, learned=True)).startswith("2")


@pytest.mark.parametrize("index", [0, 1, 2])
def test_tokens_are_those_of_the_sample(
    viewer: Callable[..., Viewer],
    lite_processor: Processor,
    rows: RowFile,
    tmp_path: Path,
    index: int,
) -> None:
    dataset = SampleDataset(rows, tmp_path, lite_processor, seed=3)
    dataset.set_epoch(2)
    sample = dataset[index]
    assert isinstance(sample, Sample)
    made = viewer(processor=lite_processor, seed=3, epoch=2)
    card = made.card(index)
    assert card.problem is None and card.tokens
    assert list(card.parts) == list(token_parts(lite_processor, sample.input_ids, sample.labels))
    learned = sum(label != IGNORED_LABEL for label in sample.labels)
    assert card.facts == (f"{sample.length} tokens", f"{learned} of them learned")
    assert made.length(index) == sample.length
    views = 0 if sample.pixel_values is None else len(sample.pixel_values)
    assert len(card.images) == views  # the image, and a close view of each region


def test_focal_views_are_shown_and_counted(
    viewer: Callable[..., Viewer], lite_processor: Processor
) -> None:
    card = viewer(processor=lite_processor).card(0)
    assert [words for words, _ in card.images] == ["a.png, 64 x 48", "focal view 1"]
    shown = [part.text for part in card.parts if part.kind == "image"]
    assert shown == ["<image> x 17", "<image> x 17"]
    assert card.images[1][1].size == (64, 64)


def test_token_parts_spell_the_prompt(
    viewer: Callable[..., Viewer], lite_processor: Processor
) -> None:
    card = viewer(processor=lite_processor).card(0)
    assert "".join(texts(card, learned=True)) == "a cup ß 猫<|im_end|>yes<|im_end|>"
    assert PromptPart("<|im_start|>", False, "frame") in card.parts
    assert "\ufffd" not in "".join(part.text for part in card.parts)
    # A character of several tokens is one part; every other token has its own.
    assert "猫" in {part.text.strip() for part in card.parts}
    assert len(card.parts) > 40


def test_blanks_of_tokens_are_kept(tiny_model_folder: Path, tmp_path: Path) -> None:
    from vip_llava.models.loading import load_model

    processor = load_model(tiny_model_folder)[1]
    ids = processor.tokenizer.plain("a red cup, two cups", at_start=True)
    listed = [piece.id for piece in ids]
    parts = list(token_parts(processor, listed, [IGNORED_LABEL] * len(listed)))
    assert "".join(part.text for part in parts).strip() == "a red cup, two cups"


def test_truncation_is_reported(viewer: Callable[..., Viewer], lite_processor: Processor) -> None:
    whole = viewer(processor=lite_processor).length(0)
    made = viewer(processor=lite_processor, max_length=whole - 3)
    card = made.card(0)
    assert card.facts[2] == f"3 more are cut off at {whole - 3}"
    assert made.length(0) == whole - 3
    short = viewer(processor=lite_processor, max_length=20)
    assert "cuts through the images" in str(short.card(0).problem)
    with pytest.raises(DataError, match="cuts through the images"):
        short.length(0)
