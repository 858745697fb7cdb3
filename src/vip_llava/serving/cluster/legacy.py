"""The original's format: a prompt with `<image>` markers, base64 images, cumulative answers.

`parse_prompt` recovers the turns of such a prompt, so that it is answered like any other request
and typed text never becomes a control token. This module does not know routes or models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from vip_llava.errors import RequestError, TemplateError
from vip_llava.prompting.templates import IMAGE_TEXT, TEMPLATES, Template
from vip_llava.prompting.turns import Turn

__all__ = [
    "ERROR_CODE",
    "NO_WORKER_CODE",
    "LegacyRequest",
    "LegacyTurn",
    "legacy_chunk",
    "parse_prompt",
]

ERROR_CODE, NO_WORKER_CODE = 1, 2
"""`error_code` of a request that fails, and of a model without a worker."""

_MAX_NEW_TOKENS = 1024


class LegacyRequest(BaseModel):
    """The body of /worker_generate_stream; the original lacks `regions`, `seed` and `min_p`."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(description="The whole prompt, with <image> for each image.")
    model: str | None = Field(None, description="A model of the worker; default: its first.")
    images: list[str] | None = Field(
        None, description="Base64 images, in the order of the <image> markers."
    )
    regions: list[list[dict[str, Any]]] | None = Field(
        None, description="For each image a list of Regions to draw on it."
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
        """The fields of `SamplingParams`; max_new_tokens is capped at 1024, as in the original.

        Raises:
            RequestError: max_new_tokens is 0, which the original's page can send.
        """
        if not self.max_new_tokens:
            raise RequestError("max_new_tokens is 0, but must be at least 1")
        return {
            "temperature": self.temperature if self.temperature > 0.001 else 0.0,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "max_new_tokens": min(self.max_new_tokens, _MAX_NEW_TOKENS),
            "seed": self.seed,
            "stop": [self.stop] if self.stop else None,
        }


class LegacyTurn(BaseModel):
    """One turn of a parsed prompt, with the indices of its images."""

    model_config = ConfigDict(frozen=True)

    role: str
    text: str
    images: tuple[int, ...] = ()


def legacy_chunk(text: str, code: int = 0) -> bytes:
    """One chunk of the original's stream: a JSON object and a zero byte. `text` is cumulative."""
    return json.dumps({"text": text, "error_code": code}).encode() + b"\0"


def parse_prompt(prompt: str, own: Template, images: int) -> list[LegacyTurn]:
    """The turns of a prompt, oldest first; the last one is the question.

    A prompt in another template than the model's is parsed too, and the standard system text of
    that template is dropped. A prompt in no known template is one question.

    Args:
        own: the model's template, tried first.
        images: number of images in the request.

    Raises:
        RequestError: the prompt has another number of <image> markers.
    """
    turns = _in_template(prompt, own)
    if turns is None:
        parsed = [_in_template(prompt, template) for template in TEMPLATES.values()]
        # A template without a separator between rounds parses several as one; the finest is right.
        turns = max(filter(None, parsed), key=len, default=[Turn("user", prompt)])
        standard = {template.system for template in TEMPLATES.values()}
        if turns[0].role == "system" and turns[0].text in standard:
            turns = turns[1:]
    elif turns[0].text == own.system:
        turns = turns[1:]
    markers = sum((turn.text or "").count(IMAGE_TEXT) for turn in turns if turn.role == "user")
    if markers != images:
        raise RequestError(
            f"the prompt has {markers} {IMAGE_TEXT} markers, but the request has {images} images"
        )
    return list(_with_images(turns))


def _with_images(turns: Sequence[Turn]) -> Iterator[LegacyTurn]:
    """Replace the markers in the texts by the indices of their images."""
    first = 0
    for turn in turns:
        text = turn.text or ""
        count = text.count(IMAGE_TEXT) if turn.role == "user" else 0
        if not count:
            yield LegacyTurn(role=turn.role, text=text)
            continue
        text = text.replace(f"<Image>{IMAGE_TEXT}</Image>", IMAGE_TEXT).replace(IMAGE_TEXT, "")
        indices = tuple(range(first, first + count))
        first += count
        yield LegacyTurn(role=turn.role, text=text.strip(), images=indices)


def _in_template(prompt: str, template: Template) -> list[Turn] | None:
    """System text and turns, if the template renders them to exactly this prompt."""
    # Here the image markers are part of the texts.
    template = replace(template, image_marks=("", ""))
    if not template.user_start.strip():
        return None
    head, _, rest = prompt.removeprefix(template.begin).partition(template.user_start)
    turns = _rounds(rest, template)
    if turns is None:
        return None
    system = ""
    if not template.system_in_first_turn:
        system = head.removeprefix(template.system_start).removesuffix(template.system_end)
    elif (turns[0].text or "").startswith(template.system_start):
        text = (turns[0].text or "").removeprefix(template.system_start)
        system, _, question = text.partition(template.system_end)
        turns[0] = Turn("user", question)
    turns = [Turn("system", system), *turns]
    try:
        # A wrong parse would render to another text.
        same = template.prompt([*turns, Turn("assistant", None)]) == prompt
    except TemplateError:
        return None
    return turns if same else None


def _rounds(text: str, template: Template) -> list[Turn] | None:
    """The turns in the text after the first `user_start`, or None."""
    answer_start = template.user_end + template.assistant_start
    if not text.endswith(answer_start):
        return None
    between = template.assistant_end + template.assistant_after + template.between
    turns = []
    *earlier, last = text.removesuffix(answer_start).split(between + template.user_start)
    for part in earlier:
        question, found, answer = part.partition(answer_start + template.assistant_gap)
        if not found:
            return None
        turns += [Turn("user", question), Turn("assistant", answer)]
    return [*turns, Turn("user", last)]
