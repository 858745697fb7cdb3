"""A question as texts to copy: the JSON of the API, a curl command, and Python.

The texts do not contain the image: it is named `photo.png`, or `IMAGE` in the JSON, which the page
replaces when the JSON is saved.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vip_llava.serving.web.asking import Question

__all__ = ["IMAGE", "api_request", "share_texts"]

IMAGE = "IMAGE"
_NUMBERS = re.compile(r"\[\n\s+([-+.eE\d,\s]+?)\n\s+\]")
_API_NAMES = {"max_new_tokens": "max_tokens"}
_CURL = """\
# save the JSON as request.json first; set your server and key
curl http://127.0.0.1:8000/v1/chat/completions \\
  -H 'Content-Type: application/json' \\
  -H 'Authorization: Bearer KEY' \\
  -d @request.json
"""


def api_request(question: Question, image_url: str | None) -> dict[str, Any]:
    """The body of a chat request; the image is represented by `image_url`."""
    messages: list[dict[str, Any]] = [
        {"role": role, "content": text}
        for role, text in (*question.history, ("user", question.text))
    ]
    if question.image is not None and image_url is not None:
        image: dict[str, Any] = {"type": "image_url", "image_url": {"url": image_url}}
        if question.regions:
            image["regions"] = [region.to_json() for region in question.regions]
        # The image belongs to the first question of a conversation.
        messages[0]["content"] = [image, {"type": "text", "text": messages[0]["content"]}]
    sampling = {_API_NAMES.get(name, name): value for name, value in question.sampling.items()}
    return {"model": question.model, "messages": messages, **sampling}


def share_texts(question: Question) -> Mapping[str, str]:
    """The three texts by format."""
    body = json.dumps(api_request(question, IMAGE), indent=2, ensure_ascii=False)
    return {"JSON": _compact_numbers(body) + "\n", "curl": _CURL, "Python": _python(question)}


def _compact_numbers(text: str) -> str:
    """Put lists of numbers on one line; JSON strings have no line breaks, so none is changed."""
    return _NUMBERS.sub(lambda found: f"[{', '.join(found[1].replace(',', ' ').split())}]", text)


def _python(question: Question) -> str:
    def listed(name: str, given: Sequence[object]) -> str:
        return f"{name}=[\n" + "".join(f"        {each!r},\n" for each in given) + "    ]"

    load = "load()" if question.model == "default" else f"load({question.model!r})"
    arguments = [repr("photo.png") if question.image is not None else "None", repr(question.text)]
    if question.regions:
        arguments.append(listed("regions", [region.to_json() for region in question.regions]))
    if question.history:
        history = [{"role": role, "text": text} for role, text in question.history]
        arguments.append(listed("history", history))
    arguments += [f"{name}={given!r}" for name, given in question.sampling.items()]
    lines = "".join(f"    {each},\n" for each in arguments)
    return (
        "from vip_llava import load\n\n"
        f"assistant = {load}\n"
        f"answer = assistant.ask(\n{lines})\n"
        "print(answer.text)\n"
    )
