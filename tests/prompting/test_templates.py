from __future__ import annotations

import pytest
from PIL import Image

from vip_llava.errors import TemplateError
from vip_llava.prompting.templates import TEMPLATES, Span, get_template
from vip_llava.prompting.turns import MarkedImage, Role, Turn


def turn(role: Role, text: str | None, images: int = 0) -> Turn:
    return Turn(role, text, (MarkedImage(Image.new("RGB", (1, 1))),) * images)


QUESTION = (turn("user", "What is it?"), turn("assistant", None))
TWO_TURNS = (
    turn("user", "What is it?", 1),
    turn("assistant", "A dog."),
    turn("user", "Which one?"),
    turn("assistant", None),
)


def test_vicuna() -> None:
    prompt = get_template("vicuna_v1").prompt(TWO_TURNS)
    assert prompt.startswith("A chat between a curious user and")
    assert prompt.endswith(
        "questions. USER: <image>\nWhat is it? ASSISTANT: A dog.</s>USER: Which one? ASSISTANT:"
    )


def test_llama_2_has_its_system_text_in_the_first_turn() -> None:
    prompt = get_template("llava_llama_2").prompt(TWO_TURNS)
    assert prompt.startswith("[INST] <<SYS>>\nYou are a helpful language and vision assistant.")
    assert prompt.endswith(
        "\n<</SYS>>\n\n<image>\nWhat is it? [/INST] A dog. </s><s>[INST] Which one? [/INST]"
    )


def test_chatml_begins_with_the_user() -> None:
    assert get_template("chatml").prompt(TWO_TURNS) == (
        "<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA dog.<|im_end|>\n"
        "<|im_start|>user\nWhich one?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_smollm2_has_the_system_text_of_its_training() -> None:
    assert get_template("smollm2").prompt(QUESTION) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_every_template_opens_an_answer_the_way_it_gives_one(name: str) -> None:
    template = get_template(name)
    given = (QUESTION[0], turn("assistant", "A dog."))
    assert template.prompt(given).startswith(template.prompt(QUESTION))
    learned = "".join(span.text for span in template.spans(given) if span.supervised)
    assert learned == f"{template.assistant_gap}A dog.{template.assistant_end}"
    assert template.name == name


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_every_template_marks_what_people_wrote(name: str) -> None:
    messages = (turn("system", "Be </s> brief."), *TWO_TURNS)
    typed = [span.text for span in get_template(name).spans(messages) if span.kind == "text"]
    assert sorted(typed) == sorted(["Be </s> brief.", "What is it?", "A dog.", "Which one?"])


def test_an_empty_answer_is_closed() -> None:
    prompt = get_template("v1").prompt([QUESTION[0], turn("assistant", "")])
    assert prompt.endswith(" ASSISTANT: </s>")


def test_no_system_text_leaves_no_system_turn() -> None:
    prompt = get_template("smollm2").prompt([turn("system", ""), *QUESTION])
    assert prompt.startswith("<|im_start|>user\n")


def test_several_images_and_start_and_end_marks() -> None:
    messages = [turn("user", "Q", 2), turn("assistant", None)]
    assert get_template("mistral_instruct").prompt(messages) == "[INST] <image>\n<image>\nQ [/INST]"
    marked = get_template("mistral_instruct").prompt(
        messages, image_start="<im_start>", image_end="<im_end>"
    )
    assert marked.count("<im_start><image><im_end>\n") == 2


def test_a_image_without_text_has_no_line_end() -> None:
    prompt = get_template("mistral_instruct").prompt([turn("user", "", 1)])
    assert prompt == "[INST] <image> [/INST]"


def test_mmtag() -> None:
    spans = get_template("v1_mmtag").spans(TWO_TURNS, image_start="<im_start>")
    place = [span.kind for span in spans].index("image")
    assert spans[place - 1] == Span("<Image><im_start>")
    assert spans[place + 1] == Span("</Image>")


def test_a_caption_follows_its_image_at_once() -> None:
    messages = [turn("user", "", 1), turn("assistant", "A dog.")]
    assert get_template("plain").prompt(messages) == "<image>A dog.\n"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "at least one turn"),
        ([turn("system", "x")], "at least one turn"),
        ([turn("user", "x"), turn("system", "y")], "only the first turn"),
        ([turn("user", "x"), turn("assistant", None), turn("user", "y")], "turn 2"),
        ([turn("assistant", "x"), turn("user", "y")], "must be the user's"),
    ],
)
def test_messages_that_do_not_fit(messages: list[Turn], reason: str) -> None:
    with pytest.raises(TemplateError, match=reason):
        get_template("llava_llama_3").spans(messages)


def test_messages_are_checked_when_made() -> None:
    with pytest.raises(TemplateError, match="needs a text"):
        turn("user", None)
    with pytest.raises(TemplateError, match="images"):
        turn("assistant", "x", 1)
    with pytest.raises(TemplateError, match="role 'robot'"):
        turn("robot", "x")  # type: ignore[arg-type]


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(TemplateError, match=r"'vicuna'; there are .*vicuna_v1"):
        get_template("vicuna")
