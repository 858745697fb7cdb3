"""Asking: single, many, streamed and in turns; what the answer tells; what is refused and how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vip_llava.assistant import Assistant, MarkedImage, Request, load
from vip_llava.backends.native import NativeBackend
from vip_llava.engine import TokenEvent
from vip_llava.errors import (
    ImageError,
    PhraseError,
    RegionError,
    RequestError,
    TemplateError,
    VipLlavaError,
)
from vip_llava.models.default.find_marks import find_marks
from vip_llava.prompting.focal_views import FocalSettings
from vip_llava.prompting.geometry import ImageGeometry
from vip_llava.prompting.processor import Processor
from vip_llava.prompting.templates import get_template
from vip_llava.prompting.turns import Turn
from vip_llava.regions import Arrow, Box, Ellipse, draw

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
BOX = Box(10, 10, 40, 30)
QUESTION = "What is <region:1>?"


@pytest.fixture(scope="module", params=[None, FocalSettings()], ids=["one-view", "focal"])
def assistant(request: pytest.FixtureRequest, tiny_model_folder: Path) -> Assistant:
    from transformers import AutoTokenizer, VipLlavaForConditionalGeneration

    model = VipLlavaForConditionalGeneration.from_pretrained(tiny_model_folder)
    processor = Processor(
        AutoTokenizer.from_pretrained(tiny_model_folder),
        ImageGeometry(mode="pad", size=56, mean=MEAN, std=STD),
        get_template("llava_v1"),
        image_token_id=model.config.image_token_id,
        tokens_per_view=16,
        focal=request.param,
        find_marks=request.param and find_marks,
    )
    return Assistant(NativeBackend(model, processor, name="tiny"))


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_an_answer_tells_what_the_model_saw(assistant: Assistant, photo: Image.Image) -> None:
    answer = assistant.ask(photo, QUESTION, [BOX, Arrow((1, 1), (60, 50))], max_new_tokens=6)
    assert answer.text == str(answer) == answer.text.strip()
    assert [region.id for region in answer.regions] == ["1", "2"]
    assert answer.image is not None
    assert answer.image.tobytes() == draw(photo, answer.regions).tobytes() != photo.tobytes()
    views = 1 if assistant.backend.processor.focal is None else 3
    assert answer.prompt.count("<image>") == views
    assert "What is the object within the red rectangle?" in answer.prompt
    assert answer.usage.image_tokens == 16 * views
    assert answer.usage.completion_tokens <= 6
    assert answer.usage.total == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.notes == ()
    assert answer.timing.total >= answer.timing.first_token > answer.timing.prefill > 0
    shown = json.loads(json.dumps(answer.to_json()))
    assert shown["image"] == {"width": 80, "height": 60}
    assert shown["regions"][0]["color"] == "red"
    assert set(shown) == {
        *("text", "finish_reason", "image", "regions", "prompt"),
        *("usage", "timing", "notes", "seed"),
    }


def test_drawing_changes_the_answer(assistant: Assistant, photo: Image.Image) -> None:
    answers = {
        assistant.ask(photo, "What is it?", regions, max_new_tokens=12).text
        for regions in ([BOX], [Box(45, 20, 78, 58, color="lime", width=9)], [])
    }
    assert len(answers) == 3


REQUESTS: list[dict[str, Any]] = [
    {"question": QUESTION, "regions": [BOX]},
    {"question": "Hello"},
    {
        "question": "Compare <region:1> and <region:2>. " * 4,
        "regions": [BOX, Ellipse(5, 5, 30, 50)],
    },
    {"question": "What is it?", "regions": [BOX.to_json()]},
    {"question": "Describe.", "regions": []},
]


@pytest.fixture
def requests_of(photo: Image.Image) -> list[dict[str, Any]]:
    return [{"image": None if i == 1 else photo, **row} for i, row in enumerate(REQUESTS)]


@pytest.mark.parametrize("batch_size", [2, 8])
@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 1.2, "seed": 3, "top_p": 0.9, "repetition_penalty": 1.1}]
)
def test_many_answers_equal_single_answers(
    assistant: Assistant,
    requests_of: list[dict[str, Any]],
    batch_size: int,
    sampling: dict[str, Any],
) -> None:
    told: dict[int, str] = {}
    many = assistant.ask_many(
        requests_of,
        batch_size=batch_size,
        on_answer=lambda index, answer: told.update({index: answer.text}),
        max_new_tokens=8,
        **sampling,
    )
    for index, (row, answer) in enumerate(zip(requests_of, many, strict=True)):
        alone = assistant.ask(
            row["image"], row["question"], row.get("regions", ()), max_new_tokens=8, **sampling
        )
        assert answer.text == alone.text == told[index]
        assert answer.prompt == alone.prompt
        assert answer.usage == alone.usage
        assert answer.finish_reason == alone.finish_reason


def test_a_request_may_have_its_own_parameters(assistant: Assistant) -> None:
    answers = assistant.ask_many(
        [
            {"question": "Hello", "max_new_tokens": 2},
            Request(question="Hello"),
            {
                "question": "And?",
                "history": [{"role": "user", "text": "Hi"}, Turn("assistant", "Yo")],
            },
        ],
        max_new_tokens=5,
    )
    assert [answer.usage.completion_tokens for answer in answers] == [2, 5, 5]
    assert "Hi ASSISTANT: Yo</s>USER: And?" in answers[2].prompt
    assert assistant.ask_many([]) == []


BAD: list[tuple[dict[str, Any], type[VipLlavaError], str]] = [
    ({"question": " "}, RequestError, "nothing is asked"),
    ({"question": "", "regions": [BOX]}, RequestError, "1 regions but nothing is asked"),
    ({}, RequestError, "no question"),
    ({"question": 5}, RequestError, "question: must be a string, not 5"),
    ({"question": "ab\ud800"}, RequestError, "question: character 3 is a lone surrogate"),
    ({"question": "a", "history": [Turn("user", "\udfff")]}, RequestError, "history: char"),
    ({"question": "a", "image": None, "regions": [BOX]}, RequestError, "without an image"),
    ({"question": "a", "bbox": [1, 2, 3, 4]}, RequestError, "unknown key 'bbox'; allowed"),
    (
        {"question": "a", "temperature": 9},
        RequestError,
        "temperature: must be a number from 0 to 2, not 9",
    ),
    ({"question": "a", "regions": "box"}, RequestError, "must be a list of regions"),
    ({"question": "a", "regions": [5]}, RequestError, "neither a Region"),
    ({"question": "a", "regions": [{"shape": "box"}]}, RegionError, "box"),
    ({"question": "a", "regions": [Box(900, 900, 950, 950)]}, RegionError, "outside"),
    ({"question": "<region:2>?", "regions": [BOX]}, PhraseError, "2"),
    ({"question": "a", "image": b"no image"}, ImageError, "image"),
    ({"question": "a", "image": "https://example.com/a.jpg"}, ImageError, "fetch"),
    ({"question": "a", "history": "hi"}, RequestError, "must be a list of turns"),
    ({"question": "a", "history": [{"role": "user"}]}, RequestError, "a turn must be"),
    ({"question": "a", "history": [Turn("assistant", None)]}, RequestError, "has no text"),
    ({"question": "a", "history": [{"role": "x", "text": "a"}]}, TemplateError, "role 'x'"),
    ({"question": "word " * 3000}, RequestError, r"tokens.*2048 positions"),
]


@pytest.mark.parametrize(("bad", "kind", "message"), BAD)
def test_a_bad_request_is_named_before_any_runs(
    assistant: Assistant,
    photo: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
    bad: dict[str, Any],
    kind: type[VipLlavaError],
    message: str,
) -> None:
    monkeypatch.setattr(assistant.backend.model, "forward", lambda **_: pytest.fail("it ran"))
    good = {"image": photo, "question": "What is it?"}
    with pytest.raises(kind, match=message) as caught:
        assistant.ask_many([good, {"image": photo, **bad}, good])
    assert str(caught.value).startswith("request 1: ")


def test_wrong_keywords_are_refused(assistant: Assistant) -> None:
    with pytest.raises(TypeError, match="temprature"):
        assistant.ask(None, "Hello", temprature=1)  # type: ignore[call-arg]
    with pytest.raises(RequestError, match="batch_size"):
        assistant.ask_many([], batch_size=0)
    with pytest.raises(RequestError, match="neither a Request nor a mapping"):
        assistant.ask_many(["Hello"])  # type: ignore[list-item]


def test_pieces_join_to_the_answer(assistant: Assistant, photo: Image.Image) -> None:
    stream = assistant.stream(photo, QUESTION, BOX, max_new_tokens=20)
    with pytest.raises(RuntimeError, match="not complete"):
        _ = stream.answer
    pieces = list(stream)
    assert len(pieces) > 1
    whole = assistant.ask(photo, QUESTION, [BOX], max_new_tokens=20)
    assert "".join(pieces) == stream.answer.text == whole.text


def test_a_stream_checks_at_once_and_may_be_left(assistant: Assistant) -> None:
    with pytest.raises(RequestError, match="max_new_tokens"):
        assistant.stream(None, "Hello", max_new_tokens=0)
    with assistant.stream(None, "Hello", max_new_tokens=50) as stream:
        next(stream)
    assert list(stream) == []
    with pytest.raises(RuntimeError, match="not complete"):
        _ = stream.answer
    assert not torch.is_inference_mode_enabled()


def test_a_seed_repeats(assistant: Assistant) -> None:
    def ask(seed: int | None) -> Any:
        return assistant.ask(None, "Hello", max_new_tokens=15, temperature=1.5, seed=seed)

    assert ask(1).text == ask(1).text != ask(2).text
    fresh = ask(None)
    assert ask(fresh.seed).text == fresh.text


def test_a_leading_marker_of_the_original_is_dropped(
    assistant: Assistant, photo: Image.Image
) -> None:
    plain = assistant.ask(photo, "What is it?", max_new_tokens=3)
    marked = assistant.ask(photo, "<image>\nWhat is it?", max_new_tokens=3)
    assert marked.prompt == plain.prompt
    assert marked.notes
    inside = assistant.ask(photo, "Is <image> a tag? <image>\n", max_new_tokens=3)
    assert inside.usage.image_tokens == 16
    assert inside.notes == ()
    alone = assistant.ask(None, "<image>\nWhat is it?", max_new_tokens=3)
    assert alone.usage.image_tokens == 0
    assert alone.image is None


def test_a_mark_drawn_by_hand_is_looked_at_closely(
    assistant: Assistant, photo: Image.Image
) -> None:
    drawn = draw(photo, [Box(12, 8, 40, 30, color="red")])
    before = drawn.tobytes()
    answer = assistant.ask(drawn, "What is within the red rectangle?", max_new_tokens=2)
    assert answer.image is not None
    assert answer.image.tobytes() == drawn.tobytes() == before
    if assistant.backend.processor.focal is None:
        assert answer.regions == ()
        return
    [region] = answer.regions
    assert region.bounds(drawn.size) == pytest.approx((12, 8, 40, 30), abs=4)
    assert "the red rectangle around" in answer.notes[0]
    # A mark that is not there, and one that nobody speaks of, change nothing.
    for question in ("What is within the blue rectangle?", "What is this?"):
        assert assistant.ask(drawn, question, max_new_tokens=1).regions == ()


def test_clipping_and_a_shortened_limit_are_noted(assistant: Assistant, photo: Image.Image) -> None:
    answer = assistant.ask(photo, "What is it?", [Box(50, 30, 200, 300)], max_new_tokens=2)
    assert answer.regions[0].bounds(photo.size) == (50, 30, 80, 60)
    assert len(answer.notes) == 1
    assert answer.finish_reason == "length"
    filler = assistant.ask(None, "Hello", max_new_tokens=1).usage.prompt_tokens
    tokens = len(assistant.backend.processor.tokenizer.plain("dog " * 10, at_start=False)) / 10
    long = "dog " * int((2040 - filler) / tokens)
    cut = assistant.ask(None, "Hello " + long, max_new_tokens=400)
    assert cut.usage.total == 2048
    assert "no more positions" in cut.notes[0]


def test_a_chat_remembers(assistant: Assistant, photo: Image.Image) -> None:
    chat = assistant.chat(photo, BOX)
    first = chat.ask(QUESTION, max_new_tokens=4)
    second = chat.ask("And what is beside it?", max_new_tokens=4)
    assert [turn.role for turn in chat.turns] == ["user", "assistant"] * 2
    assert chat.turns[0].text == "What is the object within the red rectangle?"
    assert chat.turns[1].text == first.text
    for said in (chat.turns[0].text, first.text, "And what is beside it?"):
        assert said is not None
        assert said in second.prompt
    again = assistant.ask(
        photo, "And what is beside it?", BOX, history=chat.turns[:2], max_new_tokens=4
    )
    assert again.text == second.text


def test_regions_may_be_added_on_the_way(assistant: Assistant, photo: Image.Image) -> None:
    chat = assistant.chat(photo, [BOX])
    chat.ask(QUESTION, max_new_tokens=2)
    before = chat.image
    added = chat.add_region(Ellipse(40, 20, 300, 50))
    chat.add_region(Box(60, 40, 90, 50, id="b"))
    assert (added.id, added.color != "red") == ("2", True)
    assert chat.regions[0].color == "red"
    assert before is not None
    assert chat.image is not None
    assert before.tobytes() != chat.image.tobytes()
    answer = chat.ask("Is <region:2> beside <region:1>?", max_new_tokens=2)
    assert answer.image is not None
    assert answer.image.tobytes() == chat.image.tobytes()
    assert [note.split()[1] for note in answer.notes] == ["'2'", "'b'"]
    third = chat.ask("Where is <region:tip>?", Arrow((1, 1), (20, 20), id="tip"), max_new_tokens=2)
    assert [region.id for region in chat.regions] == ["1", "2", "b", "tip"]
    assert third.notes == answer.notes


def test_a_failed_or_left_turn_changes_nothing(assistant: Assistant, photo: Image.Image) -> None:
    chat = assistant.chat(photo, [BOX])
    chat.ask(QUESTION, max_new_tokens=2)
    before = (chat.turns, chat.regions)
    with pytest.raises(PhraseError):
        chat.ask("<region:9>?", [Box(1, 1, 9, 9)])
    with pytest.raises(RegionError):
        chat.add_region(Box(900, 900, 950, 950))
    with chat.stream("And?", [Box(1, 1, 9, 9)], max_new_tokens=9) as stream:
        next(stream)
    assert (chat.turns, chat.regions) == before
    one, two = chat.stream("One?", max_new_tokens=1), chat.stream("Two?", max_new_tokens=1)
    one.result()
    with pytest.raises(RequestError, match="another turn"):
        two.result()


def test_a_chat_without_a_image(assistant: Assistant) -> None:
    chat = assistant.chat()
    assert chat.ask("Hello", max_new_tokens=2).image is None
    assert chat.image is None
    with pytest.raises(RequestError, match="image"):
        chat.add_region(BOX)


def test_info_describes_the_model(assistant: Assistant) -> None:
    info = assistant.info
    assert (info.name, info.template, info.dtype, info.device) == (
        "tiny",
        "llava_v1",
        "float32",
        "cpu",
    )
    assert (info.architecture, info.tokens_per_view) == ("VipLlavaForConditionalGeneration", 16)
    assert info.max_positions == 2048
    assert info.parameters == sum(p.numel() for p in assistant.backend.model.parameters())


def test_load_opens_a_folder_and_answers(tiny_model_folder: Path, photo: Image.Image) -> None:
    assistant = load(tiny_model_folder, device="cpu")
    assert assistant.info.name == str(tiny_model_folder)
    answer = assistant.ask(photo, QUESTION, BOX, max_new_tokens=3)
    assert answer.usage.image_tokens == 16
    assert answer.usage.completion_tokens == 3


def test_several_images_each_with_its_question(assistant: Assistant, photo: Image.Image) -> None:
    other = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    request = {
        "question": "Is <region:2> like <region:1>?",
        "images": [{"image": other, "regions": [Box(5, 5, 30, 30)]}, MarkedImage(photo)],
        "history": [
            {"role": "user", "text": QUESTION, "images": [MarkedImage(photo, [BOX])]},
            {"role": "assistant", "text": "A cat."},
        ],
    }
    answer = assistant.ask_many([request], max_new_tokens=4)[0]
    assert [len(each.regions) for each in answer.images] == [1, 1, 0]
    # Ids and colours differ over all images, so that words mean one region.
    assert [(region.id, region.color) for region in answer.regions] == [("1", "red"), ("2", "lime")]
    assert answer.images[1].shown.tobytes() == draw(other, answer.regions[1:]).tobytes()
    views = 3 if assistant.backend.processor.focal is None else 5
    assert answer.usage.image_tokens == 16 * views
    first, second = answer.prompt.split("A cat.")
    close = 0 if assistant.backend.processor.focal is None else 1
    assert (first.count("<image>"), second.count("<image>")) == (1 + close, 2 + close)
    assert "the object within the lime rectangle like the object within the red" in second
    assert len(answer.to_json()["images"]) == 3


def test_one_of_several_images_is_the_image(assistant: Assistant, photo: Image.Image) -> None:
    alone = assistant.ask(photo, QUESTION, [BOX], max_new_tokens=5)
    shown = {"question": QUESTION, "images": [MarkedImage(photo, [BOX])]}
    listed = assistant.ask_many([shown], max_new_tokens=5)[0]
    assert (listed.text, listed.prompt) == (alone.text, alone.prompt)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image": "a", "images": [MarkedImage("b")]}, "not both"),
        ({"images": [{"image": None}]}, "needs an image"),
        ({"images": "photo.jpg"}, "must be a list of images"),
        ({"images": [{"image": "a", "region": []}]}, 'must be {"image": ...'),
        ({"images": [MarkedImage("a")], "regions": [BOX]}, "belong to one of those"),
        (
            {"history": [{"role": "assistant", "text": "a", "images": [MarkedImage("a")]}]},
            "'assistant' can't carry images",
        ),
    ],
)
def test_wrong_images_are_named(assistant: Assistant, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        assistant.prepare({"question": "What is it?", **wrong})


def test_a_server_prepares_submits_and_hears(assistant: Assistant, photo: Image.Image) -> None:
    prepared = assistant.prepare(
        {"question": QUESTION, "image": photo, "regions": [BOX]}, max_new_tokens=6, logprobs=2
    )
    events: list[TokenEvent] = []
    pending = assistant.submit(prepared, events.append)
    assert not pending.done
    answer = pending.answer()
    assert pending.done
    assert answer.text == "".join(event.text for event in events)
    assert answer.logprobs is not None
    assert len(answer.logprobs) == answer.usage.completion_tokens
    for told, event in zip(answer.logprobs, events, strict=False):
        assert told.token == event.token == told.best[0].token  # greedy
        assert told.logprob == told.best[0].logprob > told.best[1].logprob
        assert event.logprobs is not None
    assert answer.to_json()["logprobs"][0]["best"][0]["text"] == answer.logprobs[0].text
    cancelled = assistant.submit(prepared)
    cancelled.cancel()
    with pytest.raises(RequestError, match="cancelled"):
        cancelled.answer()
