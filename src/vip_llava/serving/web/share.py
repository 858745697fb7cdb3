"""A question as texts to copy: the JSON of the API, a command with curl, and Python.

The image itself is left out of them; it goes by the name `photo.png`, or `IMAGE` in the JSON,
which the page fills in when the JSON is saved.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vip_llava.serving.web.asking import Ask

__all__ = ["IMAGE", "api_request", "shared"]

IMAGE = "IMAGE"
_NUMBERS = re.compile(r"\[\n\s+([-+.eE\d,\s]+?)\n\s+\]")
_OF_API = {"max_new_tokens": "max_tokens"}
_CURL = """\
# save the JSON as request.json first; put your server and key in place
curl http://127.0.0.1:8000/v1/chat/completions \\
  -H 'Content-Type: application/json' \\
  -H 'Authorization: Bearer KEY' \\
  -d @request.json
"""


def api_request(ask: Ask, address: str | None) -> dict[str, Any]:
    """The body of a chat request of the API. address: of the image, in place of its data."""
    messages: list[dict[str, Any]] = [
        {"role": role, "content": text} for role, text in (*ask.history, ("user", ask.question))
    ]
    if ask.image is not None and address is not None:
        image: dict[str, Any] = {"type": "image_url", "image_url": {"url": address}}
        if ask.regions:
            image["regions"] = [region.to_json() for region in ask.regions]
        # An image belongs to the first question of a conversation.
        messages[0]["content"] = [image, {"type": "text", "text": messages[0]["content"]}]
    sampling = {_OF_API.get(name, name): value for name, value in ask.sampling.items()}
    return {"model": ask.model, "messages": messages, **sampling}


def shared(ask: Ask) -> Mapping[str, str]:
    """The three texts by their names."""
    body = json.dumps(api_request(ask, IMAGE), indent=2, ensure_ascii=False)
    return {"JSON": _on_one_line(body) + "\n", "curl": _CURL, "Python": _python(ask)}


def _on_one_line(text: str) -> str:
    """Lists of numbers on one line each; no string has a line break, so none is met."""
    return _NUMBERS.sub(lambda found: f"[{', '.join(found[1].replace(',', ' ').split())}]", text)


def _python(ask: Ask) -> str:
    def listed(name: str, given: Sequence[object]) -> str:
        return f"{name}=[\n" + "".join(f"        {each!r},\n" for each in given) + "    ]"

    load = "load()" if ask.model == "default" else f"load({ask.model!r})"
    arguments = [repr("photo.png") if ask.image is not None else "None", repr(ask.question)]
    if ask.regions:
        arguments.append(listed("regions", [region.to_json() for region in ask.regions]))
    if ask.history:
        history = [{"role": role, "text": text} for role, text in ask.history]
        arguments.append(listed("history", history))
    arguments += [f"{name}={given!r}" for name, given in ask.sampling.items()]
    lines = "".join(f"    {each},\n" for each in arguments)
    return (
        "from vip_llava import load\n\n"
        f"assistant = {load}\n"
        f"answer = assistant.ask(\n{lines})\n"
        "print(answer.text)\n"
    )
