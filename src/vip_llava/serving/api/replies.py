"""Answers in the words of the OpenAI API, whole or in pieces, with what this project adds.

Pure functions from answers to JSON values.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vip_llava.images import image_hash

if TYPE_CHECKING:
    from PIL import Image

    from vip_llava.answer import Answer, TokenLogprob
    from vip_llava.engine import TokenEvent

__all__ = [
    "Frame",
    "as_event",
    "as_json",
    "chunk",
    "extension",
    "image_address",
    "usage",
    "usage_chunk",
    "whole",
]

Decode = Callable[[list[int]], str]


@dataclass(frozen=True, slots=True)
class Frame:
    """What all parts of one reply have in common."""

    id: str
    created: int
    model: str
    messages: tuple[int, ...]
    """Of each image the message that it belongs to."""
    return_image: bool


def whole(frame: Frame, answers: Sequence[Answer]) -> dict[str, Any]:
    """The reply to a request that is not streamed."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "finish_reason": answer.finish_reason,
            "logprobs": _logprobs(answer.logprobs),
        }
        for index, answer in enumerate(answers)
    ]
    return {
        "id": frame.id,
        "object": "chat.completion",
        "created": frame.created,
        "model": frame.model,
        "choices": choices,
        "usage": usage(answers),
        "system_fingerprint": None,
        "vip_llava": extension(frame, answers[0]),
    }


def usage(answers: Sequence[Answer]) -> dict[str, Any]:
    """Token counts; the prompt of several answers to one question counts once."""
    prompt = answers[0].usage.prompt_tokens
    completion = sum(answer.usage.completion_tokens for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"image_tokens": answers[0].usage.image_tokens},
    }


def extension(frame: Frame, answer: Answer) -> dict[str, Any]:
    """What the model saw: the drawn images, the resolved regions, the prompt; seed and times."""
    images = [
        {
            "message": message,
            "sha256": image_hash(drawn.image),
            "width": drawn.image.width,
            "height": drawn.image.height,
            "regions": [region.to_json() for region in drawn.regions],
            "image": image_address(drawn.image) if frame.return_image else None,
        }
        for message, drawn in zip(frame.messages, answer.images, strict=True)
    ]
    return {
        "images": images,
        "prompt": answer.prompt,
        "notes": list(answer.notes),
        "seed": answer.seed,
        "timing": answer.timing.to_json(),
    }


def chunk(
    frame: Frame, index: int, delta: dict[str, Any], event: TokenEvent | None, decode: Decode
) -> dict[str, Any]:
    """A piece of a streamed reply; the last one of a choice has its finish_reason."""
    choice = {
        "index": index,
        "delta": delta,
        "finish_reason": event.finish_reason if event else None,
        "logprobs": _event_logprobs(event, decode),
    }
    return _chunk(frame, [choice])


def usage_chunk(frame: Frame, answers: Sequence[Answer]) -> dict[str, Any]:
    """The piece that tells the token counts; it has no choices."""
    return {**_chunk(frame, []), "usage": usage(answers)}


def _chunk(frame: Frame, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": frame.id,
        "object": "chat.completion.chunk",
        "created": frame.created,
        "model": frame.model,
        "choices": choices,
        "system_fingerprint": None,
    }


def as_json(value: dict[str, Any]) -> bytes:
    """A JSON value as ASCII, on one line."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def as_event(value: dict[str, Any]) -> bytes:
    """A JSON value as one server-sent event."""
    return b"data: " + as_json(value) + b"\n\n"


def image_address(image: Image.Image) -> str:
    """An image as a data: address (PNG)."""
    file = io.BytesIO()
    # Little compression: the time of a large image matters more than its bytes.
    image.save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _logprobs(tokens: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    if tokens is None:
        return None
    content = [
        {
            **_token(each.text, each.logprob),
            "top_logprobs": [_token(best.text, best.logprob) for best in each.best],
        }
        for each in tokens
    ]
    return {"content": content, "refusal": None}


def _event_logprobs(event: TokenEvent | None, decode: Decode) -> dict[str, Any] | None:
    if event is None or event.logprobs is None:
        return None
    best = [_token(decode([token]), value) for token, value in event.logprobs.best]
    about = {**_token(decode([event.token]), event.logprobs.chosen), "top_logprobs": best}
    return {"content": [about], "refusal": None}


def _token(text: str, logprob: float) -> dict[str, Any]:
    # -inf, of a token that can't be, is no JSON; the API's own lowest number stands for it.
    return {
        "token": text,
        "logprob": max(logprob, -9999.0),
        "bytes": list(text.encode("utf-8", "replace")),
    }
