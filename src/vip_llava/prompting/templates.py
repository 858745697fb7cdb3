"""Conversation templates: how turns become one prompt, one value per template.

A template turns a conversation into `Span`s: pieces of text with their origin (the template, a
person or model, or an image) and whether training learns them. `tokenization` encodes spans; only
the template's own text can become control tokens there. The wording of the templates is that of the
original program, since its checkpoints were trained on it. This module does not know tokens or
pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from vip_llava.errors import TemplateError
from vip_llava.prompting.turns import Turn

__all__ = [
    "IMAGE_TEXT",
    "TEMPLATES",
    "Span",
    "Template",
    "ViewsOf",
    "get_template",
    "one_view_each",
]

IMAGE_TEXT = "<image>"
"""Stands for an image in a prompt that people read; typed text never becomes an image."""


ViewsOf = Callable[[Turn], tuple[Sequence[str], str]]
"""For a turn with images: the words in front of each of its views ("" for none), and its text."""


def one_view_each(turn: Turn) -> tuple[Sequence[str], str]:
    """One view for each image, without words of its own."""
    return ("",) * len(turn.images), turn.text or ""


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a prompt.

    Args:
        kind: "template" text comes from the template and may spell control tokens; "text" comes
            from a person or a model and is plain text whatever it spells; "image" stands for one
            view.
        supervised: training learns it (an answer and its end mark).
    """

    text: str
    kind: Literal["template", "text", "image"] = "template"
    supervised: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """How one family of models writes a conversation; see `spans` for where each field goes."""

    name: str
    system: str = ""
    begin: str = ""
    """In front of the prompt, for models whose template spells its own BOS token."""
    system_start: str = ""
    system_end: str = ""
    system_in_first_turn: bool = False
    """Llama 2: the system text is inside the first user turn."""
    user_start: str = ""
    user_end: str = ""
    assistant_start: str = ""
    """In front of every answer, also one that is yet to be generated."""
    assistant_gap: str = ""
    """Between `assistant_start` and a given answer; learned, since a model generates it."""
    assistant_end: str = ""
    assistant_after: str = ""
    """Behind an answer's end mark; not learned."""
    between: str = ""
    """In front of each later turn of the first speaker."""
    stop: str = ""
    """Text that ends an answer."""
    trained_as: Template | None = None
    """The form of a training sample, where the original has a different one."""
    image_marks: tuple[str, str] = ("", "")
    """Text around each image (mmtag), outside the start and end tokens, if any."""
    caption_only: bool = False
    """Stage 1: an image without a question, directly followed by its caption."""
    user_first: bool = False
    """A conversation must begin with the user."""

    def spans(
        self,
        turns: Sequence[Turn],
        *,
        image_start: str = "",
        image_end: str = "",
        views: ViewsOf = one_view_each,
    ) -> tuple[Span, ...]:
        """The prompt of a conversation as spans; a leading system turn replaces the system text.

        Args:
            image_start, image_end: text around each view (`mm_use_im_start_end`).
            views: how many views the images of a turn have, and the words in front of each.

        Raises:
            TemplateError: an order of turns that the template can't hold.
        """
        system, turns = self._split(turns)
        before = self.image_marks[0] + image_start
        after = image_end + self.image_marks[1]
        spans: list[Span] = [Span(self.begin)]
        if system and not self.system_in_first_turn:
            spans += self._system(system)
        for index, turn in enumerate(turns):
            # As in the original, end marks depend on the position in the conversation, not the role.
            first_speaker = index % 2 == 0
            end = self.user_end if first_speaker else self.assistant_end
            learned = turn.role == "assistant"
            if first_speaker and index:
                spans.append(Span(self.between))
            spans.append(Span(self.assistant_start if learned else self.user_start))
            if turn.text is None:
                continue
            if learned:
                spans.append(Span(self.assistant_gap, supervised=True))
            if system and self.system_in_first_turn and index == 0:
                spans += self._system(system)
            captions, text = views(turn) if turn.images else ((), turn.text)
            spans += _view_spans(captions, before, after, text)
            spans.append(Span(text, "text", supervised=learned))
            if text or learned or not self.caption_only:
                spans.append(Span(end, supervised=learned))
            if learned:
                spans.append(Span(self.assistant_after))
        return tuple(span for span in spans if span.text)

    def prompt(self, turns: Sequence[Turn], *, image_start: str = "", image_end: str = "") -> str:
        """The prompt as text, with `<image>` once for each image."""
        spans = self.spans(turns, image_start=image_start, image_end=image_end)
        return "".join(span.text for span in spans)

    def _system(self, text: Span) -> list[Span]:
        return [Span(self.system_start), text, Span(self.system_end)]

    def _split(self, conversation: Sequence[Turn]) -> tuple[Span | None, list[Turn]]:
        turns = list(conversation)
        system = Span(self.system) if self.system else None
        if turns and turns[0].role == "system":
            text = turns.pop(0).text or ""
            system = Span(text, "text") if text else None
        if not turns:
            raise TemplateError(f"template {self.name!r}: a conversation needs at least one turn")
        for index, turn in enumerate(turns):
            if turn.role == "system":
                raise TemplateError(
                    f"template {self.name!r}: turn {index + 1} is a system turn; "
                    "only the first turn may be one"
                )
            if turn.text is None and index != len(turns) - 1:
                raise TemplateError(
                    f"template {self.name!r}: turn {index + 1} has no text; "
                    "only the last answer can be left to be generated"
                )
        if self.user_first and turns[0].role != "user":
            raise TemplateError(f"template {self.name!r}: the first turn must be the user's")
        return system, turns


def _view_spans(captions: Sequence[str], before: str, after: str, text: str) -> list[Span]:
    """`<image>` and a line end for each view in front of the text; no line end before nothing."""
    spans: list[Span] = []
    for index, caption in enumerate(captions):
        spans.append(Span(caption, "text"))
        spans += [Span(before), Span(IMAGE_TEXT, "image"), Span(after)]
        if text or index + 1 < len(captions):
            spans.append(Span("\n"))
    return spans


def _colon(name: str, system: str, user: str, assistant: str, ends: tuple[str, str]) -> Template:
    """`ROLE: text` turns (Vicuna); `ends` follow the first and the second speaker's text."""
    return Template(
        name=name,
        system=system,
        system_end=ends[0],
        user_start=f"{user}: ",
        user_end=ends[0],
        assistant_start=f"{assistant}:",
        assistant_gap=" ",
        assistant_end=ends[1],
        stop=ends[1],
    )


def _hashes(name: str, system: str) -> Template:
    """`###Role: text` turns (v0); as in the original, training samples have more white space."""
    template = _colon(name, system, "Human", "Assistant", ("###", "###"))
    sample = replace(template, system_end="\n\n### ", user_end="\n### ")
    sample = replace(sample, assistant_end="\n###", assistant_after=" ")
    return replace(template, trained_as=sample)


def _llama_2(name: str, system: str, begin_turn: str) -> Template:
    return Template(
        name=name,
        system=system,
        system_start="<<SYS>>\n",
        system_end="\n<</SYS>>\n\n",
        system_in_first_turn=True,
        user_start="[INST] ",
        user_end=" [/INST]",
        assistant_gap=" ",
        assistant_end=" </s>",
        between=begin_turn,
        stop="</s>",
        user_first=True,
    )


def _im_start(name: str, system: str, *, line: str = "") -> Template:
    """`<|im_start|>role` turns; `line` follows each end mark (a line end in ChatML, nothing in MPT)."""
    return Template(
        name=name,
        system=system,
        system_start="<|im_start|>system\n",
        system_end=f"<|im_end|>{line}",
        user_start="<|im_start|>user\n",
        user_end=f"<|im_end|>{line}",
        assistant_start="<|im_start|>assistant\n",
        assistant_end="<|im_end|>",
        assistant_after=line,
        stop="<|im_end|>",
    )


def _tagged(template: Template) -> Template:
    """The same with `<Image>` and `</Image>` around each image."""
    sample = template.trained_as
    if sample is not None:
        sample = replace(sample, image_marks=("<Image>", "</Image>"))
    return replace(template, image_marks=("<Image>", "</Image>"), trained_as=sample)


def _plain(name: str) -> Template:
    return Template(name=name, user_end="\n", assistant_end="\n", stop="\n", caption_only=True)


_HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
_USER = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_MMTAG = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant is able to understand the visual content that the user provides, and assist "
    "the user with a variety of tasks using natural language."
    "The visual content will be provided with the following format: <Image>visual content</Image>."
)
_VISION = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
_LLAMA_2 = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, "
    "while being safe.  Your answers should not include any harmful, unethical, racist, sexist, "
    "toxic, dangerous, or illegal content. Please ensure that your responses are socially "
    "unbiased and positive in nature.\n\nIf a question does not make any sense, or is not "
    "factually coherent, explain why instead of answering something not correct. If you don't "
    "know the answer to a question, please don't share false information."
)
_MPT = (
    "A conversation between a user and an LLM-based AI assistant. "
    "The assistant gives helpful and honest answers."
)
_SMOLLM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

_VICUNA = (" ", "</s>")

_LLAMA_3 = Template(
    name="llava_llama_3",
    system=_VISION,
    begin="<|begin_of_text|>",
    system_start="<|start_header_id|>system<|end_header_id|>\n\n",
    system_end="<|eot_id|>",
    user_start="<|start_header_id|>user<|end_header_id|>\n\n",
    user_end="<|eot_id|>",
    assistant_start="<|start_header_id|>assistant<|end_header_id|>\n\n",
    assistant_end="<|eot_id|>",
    stop="<|eot_id|>",
    user_first=True,
)
_PHI_3 = Template(
    name="llava_phi_3",
    system=_VISION,
    system_start="<|system|>\n",
    system_end="<|end|>\n",
    user_start="<|user|>\n",
    user_end="<|end|>\n",
    assistant_start="<|assistant|>\n",
    assistant_end="<|end|>\n",
    stop="<|end|>",
    user_first=True,
)

TEMPLATES: Mapping[str, Template] = MappingProxyType(
    {
        template.name: template
        for template in (
            _hashes("default", _HUMAN),
            _hashes("v0", _HUMAN),
            _hashes("llava_v0", _HUMAN),
            _tagged(_hashes("v0_mmtag", _MMTAG)),
            _colon("v1", _USER, "USER", "ASSISTANT", _VICUNA),
            _colon("vicuna_v1", _USER, "USER", "ASSISTANT", _VICUNA),
            _colon("llava_v1", _HUMAN, "USER", "ASSISTANT", _VICUNA),
            _tagged(_colon("v1_mmtag", _MMTAG, "USER", "ASSISTANT", _VICUNA)),
            _llama_2("llama_2", _LLAMA_2, "<s>"),
            _llama_2("llava_llama_2", _VISION, "<s>"),
            _llama_2("mistral_instruct", "", ""),
            _LLAMA_3,
            _PHI_3,
            _im_start("mpt", _MPT),
            _im_start("chatml_direct", "Answer the questions."),
            _im_start("mistral_direct", "Answer the questions."),
            _im_start("chatml", "", line="\n"),
            _im_start("smollm2", _SMOLLM, line="\n"),
            _plain("plain"),
            _plain("v0_plain"),
        )
    }
)
"""Every template by name. `chatml`, ChatML without a system turn, is that of the shipped model."""


def get_template(name: str) -> Template:
    """The template called `name`. Raises TemplateError with the known names."""
    try:
        return TEMPLATES[name]
    except KeyError:
        known = ", ".join(sorted(TEMPLATES))
        raise TemplateError(f"no conversation template {name!r}; there are {known}") from None
