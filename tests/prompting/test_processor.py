from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vip_llava.errors import CheckpointError, RequestError
from vip_llava.prompting.geometry import ImageGeometry
from vip_llava.prompting.processor import FocalSettings, Processor
from vip_llava.prompting.templates import get_template
from vip_llava.prompting.tokenizers import JsonTokenizer, PieceTokenizer
from vip_llava.prompting.turns import MarkedImage, Turn
from vip_llava.regions import Box, Point, Region, resolve

IMAGE_ID = 9000
IMAGE = Image.new("RGB", (40, 20), (200, 10, 10))


Conversation = tuple[Turn, ...]


def marked(image: Image.Image, *regions: Region) -> MarkedImage:
    """An image as it is after drawing; the marks themselves don't matter here."""
    return MarkedImage(image, regions, image)


def ask(text: str, image: Image.Image | None = IMAGE, *regions: Region) -> Conversation:
    return (Turn("user", text, () if image is None else (marked(image, *regions),)),)


@pytest.fixture
def processor(chat_tokenizer: JsonTokenizer) -> Processor:
    """One view of 16 x 16 pixels and 4 tokens; `<image>` of the tokenizer is not its placeholder."""
    return Processor(chat_tokenizer, ImageGeometry(size=16), get_template("chatml"), IMAGE_ID, 4)


@pytest.fixture
def looking_twice(processor: Processor) -> Processor:
    processor.focal = FocalSettings()
    return processor


def test_prompt_for_people(looking_twice: Processor) -> None:
    conversation = ask("What?", IMAGE, Box(2, 2, 8, 8), Point(30, 10))
    assert looking_twice.encode(conversation)[1] == (
        "<|im_start|>user\n<image>\n<image>\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_batch_is_padded_on_the_left(looking_twice: Processor) -> None:
    rows = [ask("What is it, and where?", IMAGE, Box(2, 2, 8, 8)), ask("Hi", None), ask("What?")]
    inputs = looking_twice(rows)
    assert inputs["pixel_values"].shape == (3, 3, 16, 16)
    assert inputs["pixel_values"].dtype == torch.float32
    for row, ids, mask in zip(rows, inputs["input_ids"], inputs["attention_mask"], strict=True):
        alone = looking_twice.encode(row)[0]
        assert mask.tolist() == [0] * (len(mask) - len(alone)) + [1] * len(alone)
        assert ids[mask.bool()].tolist() == alone
        assert set(ids[~mask.bool()].tolist()) <= {looking_twice.pad_id}
    assert (inputs["input_ids"] == IMAGE_ID).sum(1).tolist() == [8, 0, 4]


def test_views_are_in_row_order(looking_twice: Processor) -> None:
    green = Image.new("RGB", (20, 20), (0, 200, 0))
    rows = [ask("a", IMAGE, Box(2, 2, 8, 8)), ask("b", green)]
    pixels = looking_twice(rows)["pixel_values"]
    views = [*looking_twice.views(rows[0][0].images[0]), green]
    for made, view in zip(pixels, views, strict=True):
        assert np.array_equal(made.numpy(), looking_twice.geometry.pixels(view))


def test_no_image_no_pixels(processor: Processor) -> None:
    assert set(processor([ask("Hi", None)])) == {"input_ids", "attention_mask"}


def test_regions_without_focal_settings_add_no_view(processor: Processor) -> None:
    conversation = ask("What?", IMAGE, Box(2, 2, 8, 8))
    assert processor.views(conversation[0].images[0]) == [IMAGE]
    assert processor.encode(conversation)[0].count(IMAGE_ID) == 4


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    text=st.lists(st.sampled_from(["<image>", "<im", "age>", "<|im_end|>", "<sep>", "\n", "a "]))
    .map("".join)
    .filter(bool),
    shown=st.booleans(),
)
def test_typed_text_never_becomes_a_image_or_ends_a_turn(
    processor: Processor, text: str, shown: bool
) -> None:
    ids = processor.encode(ask(text, IMAGE if shown else None))[0]
    assert ids.count(IMAGE_ID) == 4 * shown
    controls = processor.tokenizer.controls
    assert ids.count(controls["<image>"].id) == ids.count(controls["<sep>"].id) == 0
    assert ids.count(controls["<|im_end|>"].id) == 1


def test_several_images_each_at_its_turn(looking_twice: Processor) -> None:
    green = Image.new("RGB", (20, 20), (0, 200, 0))
    blue = Image.new("RGB", (20, 30), (0, 0, 200))
    first = marked(IMAGE, Box(2, 2, 8, 8))
    conversation = (
        Turn("user", "Hello"),
        Turn("assistant", "Hi."),
        Turn("user", "Which?", (first, marked(green))),
        Turn("assistant", "This."),
        Turn("user", "And now?", (marked(blue),)),
    )
    assert looking_twice.encode(conversation)[1] == (
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi.<|im_end|>\n"
        "<|im_start|>user\n<image>\n<image>\n<image>\nWhich?<|im_end|>\n"
        "<|im_start|>assistant\nThis.<|im_end|>\n"
        "<|im_start|>user\n<image>\nAnd now?<|im_end|>\n<|im_start|>assistant\n"
    )
    inputs = looking_twice([conversation, ask("Hi", None)])
    views = [*looking_twice.views(first), green, blue]
    assert len(views) == len(inputs["pixel_values"]) == 4
    assert (inputs["input_ids"] == IMAGE_ID).sum(1).tolist() == [16, 0]
    for made, view in zip(inputs["pixel_values"], views, strict=True):
        assert np.array_equal(made.numpy(), looking_twice.geometry.pixels(view))


def test_start_and_end_tokens(piece_model: bytes) -> None:
    from vip_llava.prompting.tokenizers import ControlToken

    controls = [
        ControlToken("</s>", 2),
        ControlToken("<im_start>", 700),
        ControlToken("<im_end>", 701),
    ]
    tokenizer = PieceTokenizer(piece_model, controls=controls)
    template = get_template("vicuna_v1")
    processor = Processor(
        tokenizer, ImageGeometry(size=16), template, IMAGE_ID, 3, use_start_end=True
    )
    ids = processor.encode(ask("<im_start>"))[0]
    assert ids.count(700) == 1
    assert ids[ids.index(700) : ids.index(701) + 1] == [700, IMAGE_ID, IMAGE_ID, IMAGE_ID, 701]


def test_start_and_end_tokens_that_are_missing(chat_tokenizer: JsonTokenizer) -> None:
    with pytest.raises(CheckpointError, match="has no <im_end> and no <im_start>"):
        Processor(
            chat_tokenizer,
            ImageGeometry(size=16),
            get_template("v1"),
            IMAGE_ID,
            3,
            use_start_end=True,
        )


def test_where_an_answer_ends(processor: Processor, piece_tokenizer: PieceTokenizer) -> None:
    end = processor.tokenizer.controls["<|im_end|>"].id
    assert processor.stop_ids == {end}
    assert processor.stop_strings == ()
    hashes = Processor(piece_tokenizer, ImageGeometry(), get_template("v0"), IMAGE_ID, 4)
    assert hashes.stop_ids == {2}
    assert hashes.stop_strings == ("###",)


def test_decode_leaves_control_tokens_and_blanks_out(processor: Processor) -> None:
    pieces = [piece.id for piece in processor.tokenizer.plain(" A dog.\n", at_start=True)]
    end = processor.tokenizer.controls["<|im_end|>"].id
    assert processor.decode([*pieces, end]) == "A dog."
    assert processor.decode(torch.tensor([*pieces, end])) == "A dog."


def test_training_labels_follow_the_expanded_views(processor: Processor) -> None:
    conversation = (*ask("What?"), Turn("assistant", "A dog."))
    ids, labels = processor.encode_training(conversation)
    assert ids == processor.encode(conversation)[0]
    assert len(labels) == len(ids)
    learned = [label for label in labels if label != -100]
    assert processor.decode(learned) == "A dog."
    assert IMAGE_ID not in labels


def test_settings_round_trip(looking_twice: Processor) -> None:
    looking_twice.geometry = replace(looking_twice.geometry, mode="crop")
    written = json.loads(json.dumps(looking_twice.to_config()))
    again = Processor.from_config(written, looking_twice.tokenizer)
    assert again.to_config() == looking_twice.to_config()
    assert again.geometry == looking_twice.geometry
    assert again.focal == looking_twice.focal
    conversation = ask("What?", IMAGE, Box(2, 2, 8, 8))
    assert again.encode(conversation)[0] == looking_twice.encode(conversation)[0]


@pytest.mark.parametrize("change", [{"template": None}, {"colour": 1}, {"focal": {"size": 3}}])
def test_settings_that_can_not_be_used(processor: Processor, change: dict[str, object]) -> None:
    with pytest.raises((CheckpointError, ValueError)):
        Processor.from_config({**processor.to_config(), **change}, processor.tokenizer)
    with pytest.raises(CheckpointError, match="settings"):
        Processor.from_config({}, processor.tokenizer)


def test_a_placeholder_that_is_an_ordinary_word(chat_tokenizer: JsonTokenizer) -> None:
    word = chat_tokenizer.plain("dog", at_start=True)[0].id
    processor = Processor(chat_tokenizer, ImageGeometry(size=16), get_template("chatml"), word, 4)
    with pytest.raises(CheckpointError, match=f"id {word} stands for images"):
        processor.encode(ask("dog"))[0]


@pytest.mark.parametrize("conversation", [(), (Turn("system", "x"),)])
def test_conversations_without_a_question(processor: Processor, conversation: Conversation) -> None:
    with pytest.raises(RequestError, match="at least one user turn"):
        processor.encode(conversation)
    with pytest.raises(RequestError, match="no conversation"):
        processor([])


def test_named_views_have_their_words_in_front(looking_twice: Processor) -> None:
    image = Image.new("RGB", (100, 50), (90, 90, 90))
    regions = resolve([Box(10, 10, 30, 30), Box(60, 10, 90, 40)], image.size).regions
    talk = ask("Which is bigger?", image, *regions)
    looking_twice.focal = FocalSettings(named=True)
    named = looking_twice.encode(talk)[1]
    ids, labels = looking_twice.encode_training((*talk, Turn("assistant", "the left one")))
    assert (
        "user\n<image>\nwithin the red rectangle, left 10, top 20, right 30, bottom 60: <image>\n"
        "within the lime rectangle, left 60, top 20, right 90, bottom 80: <image>\nWhich is"
    ) in named
    assert ids.count(IMAGE_ID) == 3 * looking_twice.tokens_per_view
    learned = looking_twice.decode([label for label in labels if label != -100])
    assert learned == "the left one"  # captions are read, not learned


def test_how_several_lie_is_told_behind_their_views(looking_twice: Processor) -> None:
    image = Image.new("RGB", (100, 50), (90, 90, 90))
    regions = resolve([Box(10, 10, 30, 30), Box(60, 15, 90, 45)], image.size).regions
    looking_twice.focal = FocalSettings(named=True, told=True)
    red, lime = "the object within the red rectangle", "the object within the lime rectangle"
    told = looking_twice.encode(ask("Which is bigger?", image, *regions))[1]
    first = f"The{red[3:]} is to the left of, above and smaller than {lime}.\n"
    second = f"The{lime[3:]} is to the right of, below and bigger than {red}.\n"
    assert (
        "user\n<image>\nwithin the red rectangle, left 10, top 20, right 30, bottom 60: <image>\n"
        f"{first}within the lime rectangle, left 60, top 30, right 90, bottom 90: <image>\n"
        f"{second}Which is bigger?"
    ) in told
    # One mark alone is shown as ever, and a second image comes behind what is told of the first.
    alone = ask("What?", image, regions[0])
    told_alone = looking_twice.encode(alone)[1]
    looking_twice.focal = FocalSettings(named=True)
    assert told_alone == looking_twice.encode(alone)[1]
    looking_twice.focal = FocalSettings(told=True)
    both = (Turn("user", "Same?", (marked(image, *regions), marked(image))),)
    assert looking_twice.encode(both)[1].count(f"<image>\n{second}<image>\nSame?") == 1
