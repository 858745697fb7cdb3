"""The recipes of CONTRIBUTING.md ("How to add ..."), each followed by adding a small one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from PIL import Image

from vip_llava.assistant import Assistant
from vip_llava.backends.base import Completion, ModelInfo
from vip_llava.prompting.prepare import Prepared, Request, prepare
from vip_llava.regions import Box
from vip_llava.sampling_params import SamplingParams


class _Echo:
    """A backend that answers with the question it was asked, one word at a time."""

    info = ModelInfo(name="echo")

    def prepare(self, request: Request, sampling: SamplingParams) -> Prepared:
        return prepare(request, sampling)

    def submit(
        self, prepared: Prepared, on_event: Callable[[Any], None] | None = None
    ) -> _EchoCompletion:
        return _EchoCompletion(prepared.question.split()[: prepared.sampling.max_new_tokens])

    def wait_any(self, pending: Sequence[Any]) -> None:
        """Every completion is done when it is submitted."""


class _EchoCompletion:
    done = True

    def __init__(self, words: list[str]) -> None:
        self._words = words

    def __iter__(self) -> Iterator[str]:
        return (f"{word} " for word in self._words)

    def cancel(self) -> None:
        pass

    def result(self) -> Completion:
        text = " ".join(self._words)
        return Completion(text, "stop", 0, len(self._words), 0, 0.0, 0.0)


def test_a_backend() -> None:
    """A new backend answers through every method of `Assistant`, regions drawn and worded."""
    assistant = Assistant(_Echo())
    photo = Image.new("RGB", (60, 40), "white")
    box = Box(5, 5, 30, 30)
    answer = assistant.ask(photo, "What is <region:1>?", box)
    assert answer.text == "What is the object within the red rectangle?"
    assert answer.image is not None and answer.image.getpixel((5, 15)) == (255, 0, 0)
    assert "".join(assistant.stream(photo, "One two three", max_new_tokens=2)) == "One two "
    chat = assistant.chat(photo, box)
    assert [chat.ask("Hi").text, chat.ask("<region:1>?").text] == [
        "Hi",
        "The object within the red rectangle?",
    ]
    many = assistant.ask_many([{"question": "a"}, {"image": photo, "question": "b"}])
    assert [each.text for each in many] == ["a", "b"]
