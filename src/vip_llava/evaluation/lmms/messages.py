"""lmms-eval's messages and settings to requests and sampling parameters of ours. Knows no lmms-eval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vip_llava.errors import RequestError
from vip_llava.prompting.prepare import Request
from vip_llava.prompting.turns import MarkedImage

__all__ = ["request_of", "sampling_of"]

_LONGEST = 1024  # tokens, where a task says nothing


def request_of(messages: Sequence[Mapping[str, Any]]) -> Request:
    """A request of chat messages whose contents are {"type": "text" | "image", ...}.

    Images belong to their turn; a system message goes in front of the first question. Raises
    RequestError for video, audio and conversations that do not end with a question.
    """
    turns: list[dict[str, Any]] = []
    instructions = ""
    for message in messages:
        text, images = _parts(message["content"])
        if message["role"] == "system":
            instructions += f"{text}\n"
            continue
        turn: dict[str, Any] = {"role": message["role"], "text": text}
        turns.append(turn | ({"images": images} if images else {}))
    if not turns or turns[-1]["role"] != "user":
        raise RequestError("the messages of a task must end with a question")
    turns[0]["text"] = instructions + turns[0]["text"]
    *history, asked = turns
    shown = asked.get("images", [])
    if len(shown) == 1 and not any("images" in turn for turn in history):
        return Request(question=asked["text"], image=shown[0].image, history=history)
    return Request(question=asked["text"], images=shown, history=history)


def _parts(content: str | Sequence[Mapping[str, Any]]) -> tuple[str, list[MarkedImage]]:
    if isinstance(content, str):
        return content, []
    texts, images = [], []
    for part in content:
        if part["type"] == "text":
            texts.append(str(part["text"]))
        elif part["type"] == "image":
            images.append(MarkedImage(part["url"]))
        else:
            raise RequestError(f"a task with {part['type']} can't be asked; images and text can")
    return "\n".join(texts).strip(), images


def sampling_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling parameters of a task's `generation_kwargs`; greedy unless it asks for heat.

    `until` ends an answer. What beam search and the like ask for has no place here and is refused,
    since another way of generating gives other scores.
    """
    beams = settings.get("num_beams") or 1
    if beams != 1:
        raise RequestError(f"num_beams {beams}: answers are greedy or drawn, there are no beams")
    sampling: dict[str, Any] = {"max_new_tokens": int(settings.get("max_new_tokens") or _LONGEST)}
    heat = float(settings.get("temperature") or 0.0)
    if heat > 0 and settings.get("do_sample", True):
        sampling["temperature"] = heat
        if settings.get("top_p"):
            sampling["top_p"] = float(settings["top_p"])
    until = settings.get("until") or ()
    stops = [until] if isinstance(until, str) else list(until)
    # Tasks that name the next turn's header mean "until the answer's end", which the template knows.
    kept = [stop for stop in stops if stop.strip() and stop not in ("ASSISTANT:", "</s>")]
    if kept:
        sampling["stop"] = tuple(kept)
    return sampling
