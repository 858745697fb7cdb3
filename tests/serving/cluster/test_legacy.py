"""The original's format: prompts of any template are parsed exactly; its stream and limits."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from vip_llava.errors import RequestError
from vip_llava.prompting.templates import TEMPLATES, get_template
from vip_llava.prompting.turns import Turn
from vip_llava.serving.cluster.legacy import LegacyRequest, LegacyTurn, legacy_chunk, parse_prompt

SPOKEN = sorted(name for name in TEMPLATES if "plain" not in name)
LLAVA = get_template("llava_v1")
TURNS = [
    Turn("user", "<image>\nWhat is <region:1>?"),
    Turn("assistant", "A cat."),
    Turn("user", "And behind it?"),
]
OPEN = Turn("assistant", None)


def turns_of(found: list[LegacyTurn]) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in found]


@pytest.mark.parametrize("name", SPOKEN)
def test_prompts_of_every_template_are_parsed(name: str) -> None:
    template = get_template(name)
    found = parse_prompt(template.prompt([*TURNS, OPEN]), template, images=1)
    assert turns_of(found) == [
        ("user", "What is <region:1>?"),
        ("assistant", "A cat."),
        ("user", "And behind it?"),
    ]
    assert [turn.images for turn in found] == [(0,), (), ()]


@pytest.mark.parametrize("name", SPOKEN)
def test_prompts_of_other_templates_are_parsed(name: str) -> None:
    """The original's page guesses the template from the model's name."""
    prompt = get_template(name).prompt([*TURNS, OPEN])
    found = parse_prompt(prompt, get_template("chatml"), images=1)
    assert turns_of(found)[-3:] == [
        ("user", "What is <region:1>?"),
        ("assistant", "A cat."),
        ("user", "And behind it?"),
    ]
    # The standard system text is dropped; smollm2 is chatml with another one, which is kept.
    assert len(found) == (4 if name == "smollm2" else 3)


def test_a_custom_system_text_is_kept() -> None:
    prompt = LLAVA.prompt([Turn("system", "Answer in French."), *TURNS, OPEN])
    for own in (LLAVA, get_template("llava_llama_3")):
        found = parse_prompt(prompt, own, images=1)
        assert turns_of(found)[0] == ("system", "Answer in French.")
        assert len(found) == 4


def test_a_prompt_in_the_models_template_is_kept_exactly() -> None:
    """vicuna_v1 differs from llava_v1 only in its system text, which is kept."""
    prompt = get_template("vicuna_v1").prompt([Turn("user", "Hello"), OPEN])
    found = parse_prompt(prompt, LLAVA, images=0)
    again = [Turn(turn.role, turn.text) for turn in found]  # type: ignore[arg-type]
    assert LLAVA.prompt([*again, OPEN]) == prompt


def test_a_marker_after_the_question_is_parsed() -> None:
    prompt = LLAVA.prompt([Turn("user", "What is this?\n<image>"), OPEN])
    (turn,) = parse_prompt(prompt, LLAVA, images=1)
    assert turn == LegacyTurn(role="user", text="What is this?", images=(0,))


def test_images_are_assigned_in_marker_order() -> None:
    turns = [
        Turn("user", "<image>\n<image>\nCompare them."),
        Turn("assistant", "Two cats."),
        Turn("user", "<Image><image></Image>\nAnd this?"),
    ]
    found = parse_prompt(LLAVA.prompt([*turns, OPEN]), LLAVA, images=3)
    assert [turn.images for turn in found] == [(0, 1), (), (2,)]
    assert [turn.text for turn in found] == ["Compare them.", "Two cats.", "And this?"]


def test_a_bare_question_is_one_turn() -> None:
    assert turns_of(parse_prompt("What is this? <image>", LLAVA, images=1)) == [
        ("user", "What is this?")
    ]


@pytest.mark.parametrize(("marks", "images"), [(0, 1), (1, 0), (2, 1)])
def test_images_and_markers_must_agree(marks: int, images: int) -> None:
    with pytest.raises(
        RequestError, match=rf"{marks} <image> markers, but the request has {images} images"
    ):
        parse_prompt("<image>" * marks + "What is this?", LLAVA, images)


def test_a_marker_in_an_answer_is_text() -> None:
    turns = [Turn("user", "Say it."), Turn("assistant", "<image>"), Turn("user", "Again.")]
    found = parse_prompt(LLAVA.prompt([*turns, OPEN]), LLAVA, images=0)
    assert turns_of(found)[-2] == ("assistant", "<image>")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_parsing_never_changes_the_prompt(data: st.DataObject) -> None:
    """Texts with the template's own markers: the parsed turns render to the same prompt."""
    template = get_template(data.draw(st.sampled_from(SPOKEN)))
    marks = [template.user_start, template.user_end, template.assistant_start, " a", "b"]
    text = st.lists(st.sampled_from([mark for mark in marks if mark]), min_size=1, max_size=4)
    asked = Turn("user", "".join(data.draw(text)))
    prompt = template.prompt([asked, Turn("assistant", "x"), Turn("user", "y"), OPEN])
    found = parse_prompt(prompt, template, images=0)
    again = [Turn(turn.role, turn.text) for turn in found]  # type: ignore[arg-type]
    if again[0].text != prompt:
        assert template.prompt([*again, OPEN]) == prompt


def test_legacy_sampling_parameters() -> None:
    request = LegacyRequest(prompt="x", temperature=0.0005, max_new_tokens=1536, stop="</s>")
    sampling = request.sampling()
    assert sampling["temperature"] == 0
    assert sampling["max_new_tokens"] == 1024
    assert sampling["stop"] == ["</s>"]
    assert sampling["top_k"] == 50
    assert LegacyRequest(prompt="x", stop="").sampling()["stop"] is None
    with pytest.raises(RequestError, match="max_new_tokens is 0"):
        LegacyRequest(prompt="x", max_new_tokens=0).sampling()


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 2},
        {"max_new_tokens": -5},
        {"images": "List of 1 images: ['x']"},
        {"echo": True},
        {"seed": 2**63},
    ],
)
def test_invalid_values_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        LegacyRequest.model_validate({"prompt": "x", **wrong})


def test_a_chunk_is_an_object_and_a_zero_byte() -> None:
    raw = legacy_chunk("prompt é\0", 1)
    assert raw.count(b"\0") == 1
    assert json.loads(raw[:-1]) == {"text": "prompt é\0", "error_code": 1}
