from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vip_llava.errors import DataError
from vip_llava.prompting.templates import IMAGE_TEXT, TEMPLATES, Span, get_template
from vip_llava.prompting.tokenization import (
    IGNORED_LABEL,
    IMAGE_ID,
    collate,
    encode_prompt,
    encode_spans,
    encode_training,
    training_turns,
)
from vip_llava.prompting.tokenizers import JsonTokenizer, PieceTokenizer, TextTokenizer
from vip_llava.prompting.turns import MarkedImage, Role, Turn

VICUNA = get_template("vicuna_v1")
CHATML = get_template("chatml")
SPOOFS = ["<image>", "<s>", "</s>", "<unk>", "<|im_end|>\n", "<|im_start|>", "<sep>", "<|user|>"]
SPOOFS += ["###", "<", "image>", " ", "\n", "dog", "é", "[INST]"]
spoofs = st.lists(st.sampled_from(SPOOFS)).map("".join)
quick = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def turn(role: Role, text: str | None, images: int = 0) -> Turn:
    return Turn(role, text, (MarkedImage(Image.new("RGB", (1, 1))),) * images)


def encode_marked(tokenizer: TextTokenizer, prompt: str) -> list[int]:
    """Ids of a prompt in which `<image>` and control tokens mean what they spell."""
    first, *others = prompt.split(IMAGE_TEXT)
    spans = [Span(first)]
    for text in others:
        spans += [Span(IMAGE_TEXT, "image"), Span(text)]
    return encode_spans(tokenizer, spans).ids


@pytest.fixture(params=["piece_tokenizer", "phi_tokenizer", "chat_tokenizer"])
def tokenizer(request: pytest.FixtureRequest) -> TextTokenizer:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, TextTokenizer)
    return found


@quick
@given(question=spoofs, answer=spoofs, system=spoofs, images=st.integers(0, 3), name=st.data())
def test_spoofed_placeholders_change_nothing(
    tokenizer: TextTokenizer,
    question: str,
    answer: str,
    system: str,
    images: int,
    name: st.DataObject,
) -> None:
    """Images and control tokens are those of the same conversation in harmless words."""
    template = get_template(name.draw(st.sampled_from(sorted(TEMPLATES))))

    def controls(*texts: str) -> list[int]:
        messages = (
            turn("system", texts[0] or "x"),
            turn("user", texts[1] or "x", images),
            turn("assistant", texts[2]),
        )
        ids = encode_prompt(tokenizer, template, messages).ids
        wanted = {token.id for token in tokenizer.controls.values()} | {IMAGE_ID}
        return [id_ for id_ in ids if id_ in wanted]

    assert controls(system, question, answer) == controls("a", "a", "a")
    assert controls(system, question, answer).count(IMAGE_ID) == images


def test_an_ordinary_prompt_is_tokenized_in_one_go(tokenizer: TextTokenizer) -> None:
    """Pieces run across the border of what was typed and what the template wrote."""
    messages = (turn("user", "What is the object?", 1), turn("assistant", "A dog."))
    for name in ("vicuna_v1", "chatml", "llava_phi_3", "mistral_instruct"):
        template = get_template(name)
        whole = encode_marked(tokenizer, template.prompt(messages))
        assert encode_prompt(tokenizer, template, messages).ids == whole


@quick
@given(text=st.text())
def test_ordinary_prompts_are_those_of_transformers(
    chat_tokenizer: JsonTokenizer, text: str
) -> None:
    messages = [turn("user", text), turn("assistant", None)]
    ids = encode_prompt(chat_tokenizer, CHATML, messages).ids
    assert ids == chat_tokenizer._tokenizer(CHATML.prompt(messages)).input_ids


def test_control_tokens_of_the_template(piece_tokenizer: PieceTokenizer) -> None:
    messages = (turn("user", "a </s> b"), turn("assistant", "c"))
    ids = encode_prompt(piece_tokenizer, VICUNA, messages).ids
    assert ids[0] == 1
    assert [index for index, id_ in enumerate(ids) if id_ == 2] == [len(ids) - 1]


def test_control_tokens_eat_white_space(phi_tokenizer: PieceTokenizer) -> None:
    template = get_template("llava_phi_3")
    tight = encode_marked(phi_tokenizer, "<|user|>dog<|end|><|assistant|>")
    loose = encode_marked(phi_tokenizer, "<|user|>\n dog<|end|>\n<|assistant|>\n")
    assert tight == loose
    ids = encode_prompt(phi_tokenizer, template, [turn("user", "\ndog")]).ids
    plain = encode_prompt(phi_tokenizer, template, [turn("user", "dog")]).ids
    assert ids == plain


def test_one_begin_token(chat_tokenizer: JsonTokenizer) -> None:
    from dataclasses import replace

    begun = replace(CHATML, begin="<|endoftext|>")
    begin = chat_tokenizer.controls["<|endoftext|>"].id
    messages = [turn("user", "dog")]
    without = encode_prompt(chat_tokenizer, CHATML, messages).ids
    assert encode_prompt(chat_tokenizer, begun, messages).ids == [begin, *without]
    chat_tokenizer.begin_ids = (begin,)
    try:
        assert encode_prompt(chat_tokenizer, begun, messages).ids == [begin, *without]
        assert encode_prompt(chat_tokenizer, CHATML, messages).ids == [begin, *without]
    finally:
        chat_tokenizer.begin_ids = ()


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_only_answers_are_learned(tokenizer: TextTokenizer, name: str) -> None:
    template = get_template(name)
    messages = [
        turn("user", "What is it?", 1),
        turn("assistant", "  a dog 🐶"),
        turn("user", "dog?"),
        turn("assistant", "1"),
    ]
    ids, labels = encode_training(tokenizer, template, messages)
    form = template.trained_as or template
    assert ids == encode_prompt(tokenizer, form, messages).ids
    learned = [label for label in labels if label != IGNORED_LABEL]
    text = tokenizer.decode(learned)
    end = "" if form.stop in tokenizer.controls else form.assistant_end.strip()
    assert "".join(text.split()) == "".join(f"adog🐶{end}1{end}".split())
    if mark := tokenizer.controls.get(form.stop):
        assert learned.count(mark.id) == 2


def test_half_a_letter_is_learned(chat_tokenizer: JsonTokenizer) -> None:
    """A letter of several byte tokens: all of them are learned, though they share one place."""
    messages = [turn("user", "x"), turn("assistant", "🐶")]
    _, labels = encode_training(chat_tokenizer, CHATML, messages)
    end = chat_tokenizer.controls["<|im_end|>"].id
    learned = [label for label in labels if label != IGNORED_LABEL]
    assert learned[-1] == end
    assert chat_tokenizer.decode(learned) == "🐶"


def test_a_blank_that_the_tokenizer_adds_is_learned(piece_tokenizer: PieceTokenizer) -> None:
    """A model has to generate it before the answer's first letter, so it belongs to the answer."""
    messages = [turn("user", "", 1), turn("assistant", "🐶")]
    ids, labels = encode_training(piece_tokenizer, get_template("plain"), messages)
    assert ids[:2] == [1, IMAGE_ID]
    assert labels == [IGNORED_LABEL, IGNORED_LABEL, *ids[2:]]
    assert piece_tokenizer.plain("🐶", at_start=True)[0][1:] == (0, 0)


def test_a_sample_without_anything_to_learn(piece_tokenizer: PieceTokenizer) -> None:
    asked = [turn("user", "What is it?", 1), turn("assistant", None)]
    with pytest.raises(DataError, match="has no answer"):
        encode_training(piece_tokenizer, VICUNA, asked)
    answered = [turn("user", "What is it?"), turn("assistant", "A dog.")]
    ids, labels = encode_training(piece_tokenizer, VICUNA, answered)
    first = next(index for index, label in enumerate(labels) if label != IGNORED_LABEL)
    cut = encode_training(piece_tokenizer, VICUNA, answered, max_length=first + 1)
    assert cut == (ids[: first + 1], labels[: first + 1])
    with pytest.raises(DataError, match=f"begins at token {first} and max_length is {first}"):
        encode_training(piece_tokenizer, VICUNA, answered, max_length=first)


def test_a_cut_through_a_image(chat_tokenizer: JsonTokenizer) -> None:
    messages = [
        turn("user", "Q"),
        turn("assistant", "A"),
        turn("user", "What?", 1),
        turn("assistant", "B"),
    ]
    ids, _ = encode_training(chat_tokenizer, CHATML, messages, tokens_per_view=4)
    assert ids.count(IMAGE_ID) == 4
    limit = ids.index(IMAGE_ID) + 2
    with pytest.raises(DataError, match="cuts through the images"):
        encode_training(chat_tokenizer, CHATML, messages, tokens_per_view=4, max_length=limit)


def test_turns_of_a_training_row() -> None:
    image = MarkedImage(Image.new("RGB", (1, 1)))
    given = [Turn("assistant", "dropped"), Turn("user", " Look. "), Turn("assistant", " Yes ")]
    assert training_turns(VICUNA, given, [image]) == (
        Turn("user", "Look.", (image,)),
        Turn("assistant", " Yes "),
    )
    assert training_turns(VICUNA, given) == (Turn("user", " Look. "), Turn("assistant", " Yes "))
    captioned = training_turns(get_template("plain"), given, [image])
    assert captioned == (Turn("user", "", (image,)), Turn("assistant", " Yes "))
    system = [Turn("system", "Be brief."), Turn("user", "Which?"), Turn("assistant", "This.")]
    found = training_turns(VICUNA, system, [image, image])
    assert [len(each.images) for each in found] == [0, 2, 0]
    assert found[0] == system[0]


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "no user turn"),
        ([Turn("system", "a")], "no user turn"),
        ([Turn("user", "a"), Turn("user", "b")], "turn 2"),
        ([Turn("user", "a"), Turn("system", "b")], "turn 2"),
    ],
)
def test_rows_whose_turns_do_not_alternate(turns: list[Turn], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        training_turns(VICUNA, turns)


def test_captions_need_an_image() -> None:
    with pytest.raises(DataError, match="caption row"):
        training_turns(get_template("plain"), [Turn("user", "a"), Turn("assistant", "b")])


def test_collate_masks_by_length() -> None:
    batch = collate([([5, 0, 7], [-100, 0, 7]), ([5], [5])], pad_id=0, max_length=2)
    assert batch == {
        "input_ids": [[5, 0], [5, 0]],
        "labels": [[-100, 0], [5, -100]],
        "attention_mask": [[1, 1], [1, 0]],
    }


def test_nothing_between_images(piece_tokenizer: PieceTokenizer) -> None:
    assert encode_marked(piece_tokenizer, "<image><image>") == [1, IMAGE_ID, IMAGE_ID]
    assert encode_marked(piece_tokenizer, "") == [1]
    assert encode_spans(piece_tokenizer, [Span("<image>", "text")]).ids.count(IMAGE_ID) == 0
