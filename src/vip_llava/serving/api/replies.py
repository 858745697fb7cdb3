"""Response bodies in the format of the OpenAI API, plus this project's extension.

Pure functions from answers to JSON values; nothing here sends anything.
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

    from vip_llava.answer import Answer
    from vip_llava.backends.base import TokenLogprob
    from vip_llava.engine import TokenEvent

__all__ = [
    "ReplyMetadata",
    "as_json",
    "as_png",
    "chunk",
    "completion",
    "extension",
    "image_data_url",
    "usage",
    "usage_chunk",
]

Decode = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class ReplyMetadata:
    """What all chunks of one reply have in common."""

    id: str
    created: int
    model: str
    image_messages: tuple[int, ...]
    """For each image the index of its message."""
    return_image: bool


def completion(metadata: ReplyMetadata, answers: Sequence[Answer]) -> dict[str, Any]:
    """The body of a reply that is not streamed."""
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
        "id": metadata.id,
        "object": "chat.completion",
        "created": metadata.created,
        "model": metadata.model,
        "choices": choices,
        "usage": usage(answers),
        "system_fingerprint": None,
        "vip_llava": extension(metadata, answers[0]),
    }


def usage(answers: Sequence[Answer]) -> dict[str, Any]:
    """Token counts; several answers to one question share their prompt."""
    prompt = answers[0].usage.prompt_tokens
    completion = sum(answer.usage.completion_tokens for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"image_tokens": answers[0].usage.image_tokens},
    }


def extension(metadata: ReplyMetadata, answer: Answer) -> dict[str, Any]:
    """What the model saw: drawn images, resolved regions and prompt; also seed and timing."""
    images = [
        {
            "message": message,
            "sha256": image_hash(marked.shown),
            "width": marked.shown.width,
            "height": marked.shown.height,
            "regions": [region.to_json() for region in marked.regions],
            "image": image_data_url(marked.shown) if metadata.return_image else None,
        }
        for message, marked in zip(metadata.image_messages, answer.images, strict=True)
    ]
    return {
        "images": images,
        "prompt": answer.prompt,
        "notes": list(answer.notes),
        "seed": answer.seed,
        "timing": answer.timing.to_json(),
    }


def chunk(
    metadata: ReplyMetadata,
    index: int,
    delta: dict[str, Any],
    event: TokenEvent | None,
    decode: Decode,
) -> dict[str, Any]:
    """A chunk of a streamed reply; the last one of a choice has its finish_reason."""
    choice = {
        "index": index,
        "delta": delta,
        "finish_reason": event.finish_reason if event else None,
        "logprobs": _event_logprobs(event, decode),
    }
    return _chunk(metadata, [choice])


def usage_chunk(metadata: ReplyMetadata, answers: Sequence[Answer]) -> dict[str, Any]:
    """The chunk with the token counts and without choices."""
    return {**_chunk(metadata, []), "usage": usage(answers)}


def _chunk(metadata: ReplyMetadata, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": metadata.id,
        "object": "chat.completion.chunk",
        "created": metadata.created,
        "model": metadata.model,
        "choices": choices,
        "system_fingerprint": None,
    }


def as_json(value: dict[str, Any]) -> str:
    """A JSON value as ASCII, on one line."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def image_data_url(image: Image.Image) -> str:
    """An image as a data: URL (PNG)."""
    return "data:image/png;base64," + base64.b64encode(as_png(image)).decode()


def as_png(image: Image.Image) -> bytes:
    """An image as a PNG file; compressed fast, since time matters more than bytes."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


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
    best = [_token(decode(token), value) for token, value in event.logprobs.best]
    token = {**_token(decode(event.token), event.logprobs.chosen), "top_logprobs": best}
    return {"content": [token], "refusal": None}


def _token(text: str, logprob: float) -> dict[str, Any]:
    # JSON has no -inf, the logprob of an impossible token; -9999 is the API's lowest value.
    return {
        "token": text,
        "logprob": max(logprob, -9999.0),
        "bytes": list(text.encode("utf-8", "replace")),
    }
