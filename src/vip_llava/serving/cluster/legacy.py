"""The original's request: a whole prompt with `<image>` in it, images in base64, cumulative answers.

`read_prompt` turns such a prompt back into the turns that it was made of, so that the same path
answers it as any other request, and typed text never becomes a control token. This file knows the
shapes of bytes and texts only; routes and models are elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from vip_llava.errors import RequestError, TemplateError
from vip_llava.prompting.templates import IMAGE_TEXT, TEMPLATES, Message, Template

__all__ = ["ERROR_CODE", "NO_WORKER_CODE", "LegacyRequest", "LegacyTurn", "line", "read_prompt"]

ERROR_CODE, NO_WORKER_CODE = 1, 2
"""`error_code` of a request that can't be answered, and of a model that nobody serves."""

_MOST_NEW_TOKENS = 1024


class LegacyRequest(BaseModel):
    """The body of /worker_generate_stream. `regions`, `seed` and `min_p` are additions of ours."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(description="The whole prompt, with <image> where an image stands.")
    model: str | None = Field(None, description="A model of the worker; its first if not given.")
    images: list[str] | None = Field(
        None, description="Images in base64, in the order of the <image> marks."
    )
    regions: list[list[dict[str, Any]]] | None = Field(
        None, description="For each image a list of Region objects to be drawn on it."
    )
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 50
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10, allow_inf_nan=False)] = 1.0
    max_new_tokens: Annotated[int, Field(ge=0)] = 256
    stop: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None

    def sampling(self) -> dict[str, Any]:
        """By the names of `SamplingParams`. More than 1024 tokens become 1024, as in the original.

        RequestError for a limit of 0, which the original's page can send.
        """
        if not self.max_new_tokens:
            raise RequestError("max_new_tokens is 0, which leaves no room for an answer")
        return {
            "temperature": self.temperature if self.temperature > 0.001 else 0.0,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "max_new_tokens": min(self.max_new_tokens, _MOST_NEW_TOKENS),
            "seed": self.seed,
            "stop": [self.stop] if self.stop else None,
        }


class LegacyTurn(BaseModel):
    """One turn that was read from a prompt, with the images that it shows, by their places."""

    model_config = ConfigDict(frozen=True)

    role: str
    text: str
    images: tuple[int, ...] = ()


def line(text: str, code: int = 0) -> bytes:
    """One piece of the original's stream: a JSON object and a zero byte. `text` is all there is."""
    return json.dumps({"text": text, "error_code": code}).encode() + b"\0"


def read_prompt(prompt: str, own: Template, images: int) -> list[LegacyTurn]:
    """The turns of a prompt, oldest first; the last one is the question.

    own: the model's template, tried first; its system text counts as typed. A prompt of another
        template is taken for what it says, without that template's standard system text. A prompt
        of no template is one question.
    images: how many images came along; RequestError if the prompt shows another number.
    """
    turns = _in_template(prompt, own)
    if turns is None:
        readings = [_in_template(prompt, template) for template in TEMPLATES.values()]
        # A template that lacks a mark between rounds reads several as one; the finest is right.
        turns = max(filter(None, readings), key=len, default=[Message("user", prompt)])
        standard = {template.system for template in TEMPLATES.values()}
        if turns[0].role == "system" and turns[0].text in standard:
            turns = turns[1:]
    elif turns[0].text == own.system:
        turns = turns[1:]
    shown = sum((turn.text or "").count(IMAGE_TEXT) for turn in turns if turn.role == "user")
    if shown != images:
        raise RequestError(
            f"the prompt has {shown} {IMAGE_TEXT} marks and {images} images came with it; "
            f"each image needs one mark"
        )
    return list(_with_images(turns))


def _with_images(turns: Sequence[Message]) -> Iterator[LegacyTurn]:
    """Take the marks out of the text; which images they stood for goes beside it."""
    taken = 0
    for turn in turns:
        text = turn.text or ""
        count = text.count(IMAGE_TEXT) if turn.role == "user" else 0
        if not count:
            yield LegacyTurn(role=turn.role, text=text)
            continue
        text = text.replace(f"<Image>{IMAGE_TEXT}</Image>", IMAGE_TEXT).replace(IMAGE_TEXT, "")
        places = tuple(range(taken, taken + count))
        taken += count
        yield LegacyTurn(role=turn.role, text=text.strip(), images=places)


def _in_template(prompt: str, template: Template) -> list[Message] | None:
    """System text and turns, if that template makes exactly this prompt of them."""
    # The images' marks are text of the turns here.
    template = replace(template, image_marks=("", ""))
    if not template.user_start.strip():
        return None
    head, _, rest = _after(prompt, template.begin).partition(template.user_start)
    turns = _rounds(rest, template)
    if turns is None:
        return None
    system = ""
    if not template.system_in_first_turn:
        system = _after(head, template.system_start).removesuffix(template.system_end)
    elif (turns[0].text or "").startswith(template.system_start):
        text = _after(turns[0].text or "", template.system_start)
        system, _, question = text.partition(template.system_end)
        turns[0] = Message("user", question)
    turns = [Message("system", system), *turns]
    try:
        # The proof: whatever was read wrongly would not give the same text.
        same = template.prompt([*turns, Message("assistant", None)]) == prompt
    except TemplateError:
        return None
    return turns if same else None


def _rounds(text: str, template: Template) -> list[Message] | None:
    """Question, answer, question, ... of what stands behind the first `user_start`."""
    said = template.user_end + template.assistant_start
    if not text.endswith(said):
        return None
    between = template.assistant_end + template.assistant_after + template.between
    turns = []
    *earlier, last = text.removesuffix(said).split(between + template.user_start)
    for part in earlier:
        question, found, answer = part.partition(said + template.assistant_gap)
        if not found:
            return None
        turns += [Message("user", question), Message("assistant", answer)]
    return [*turns, Message("user", last)]


def _after(text: str, start: str) -> str:
    return text.removeprefix(start)
