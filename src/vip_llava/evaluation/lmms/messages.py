"""Converts lmms-eval's messages and settings to requests and sampling parameters.

It does not import lmms-eval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vip_llava.errors import RequestError
from vip_llava.prompting.prepare import Request
from vip_llava.prompting.turns import MarkedImage, Turn
from vip_llava.sampling_params import SamplingParams

__all__ = ["request_of_messages", "sampling_of_settings"]

_DEFAULT_MAX_NEW_TOKENS = 1024


def request_of_messages(
    messages: Sequence[Mapping[str, Any]], sampling: SamplingParams | None = None
) -> Request:
    """The request of chat messages whose contents are {"type": "text" | "image", ...}.

    Each image stays in its turn; a system message is put in front of the first question. Raises
    RequestError for video, audio and conversations that do not end with a question.
    """
    instructions = ""
    turns: list[Turn] = []
    for message in messages:
        text, images = _parts(message["content"])
        if message["role"] == "system":
            instructions += f"{text}\n"
        else:
            turns.append(Turn(message["role"], text if turns else instructions + text, images))
    if not turns or turns[-1].role != "user":
        raise RequestError("the messages of a task must end with a user turn")
    *history, last = turns
    return Request(question=last.text or "", images=last.images, history=history, sampling=sampling)


def _parts(content: str | Sequence[Mapping[str, Any]]) -> tuple[str, tuple[MarkedImage, ...]]:
    if isinstance(content, str):
        return content, ()
    other = [part["type"] for part in content if part["type"] not in ("text", "image")]
    if other:
        raise RequestError(f"content of type {other[0]} is not supported; only images and text are")
    texts = [str(part["text"]) for part in content if part["type"] == "text"]
    images = tuple(MarkedImage(part["url"]) for part in content if part["type"] == "image")
    return "\n".join(texts).strip(), images


def sampling_of_settings(settings: Mapping[str, Any]) -> SamplingParams:
    """The sampling parameters of a task's `generation_kwargs`; greedy without a temperature.

    `until` becomes stop strings. Raises RequestError for beam search, which is not supported: with
    another way of generating, the scores would not be those of the task.
    """
    beams = settings.get("num_beams") or 1
    if beams != 1:
        raise RequestError(f"num_beams {beams}: beam search is not supported; use num_beams 1")
    longest = int(settings.get("max_new_tokens") or _DEFAULT_MAX_NEW_TOKENS)
    sampling: dict[str, Any] = {"max_new_tokens": longest}
    temperature = float(settings.get("temperature") or 0.0)
    if temperature > 0 and settings.get("do_sample", True):
        sampling["temperature"] = temperature
        if settings.get("top_p"):
            sampling["top_p"] = float(settings["top_p"])
    until = settings.get("until") or ()
    stops = [until] if isinstance(until, str) else list(until)
    # A task that stops at the next turn's header means the end of the answer, as the template does.
    kept = [stop for stop in stops if stop.strip() and stop not in ("ASSISTANT:", "</s>")]
    if kept:
        sampling["stop"] = tuple(kept)
    return SamplingParams(**sampling)
