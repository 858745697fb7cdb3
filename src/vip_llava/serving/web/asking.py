"""Whom the page asks: models in this process, or a server with the API.

Both take an `Ask` and give the answer in pieces, and at its end what the model saw. The page knows
no difference.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from vip_llava.prompting.prepare import Request
from vip_llava.regions import Region
from vip_llava.serving.api.answering import Answering
from vip_llava.serving.api.models import Models

if TYPE_CHECKING:
    from vip_llava.answer import Answer
    from vip_llava.assistant import Assistant
    from vip_llava.serving.settings import Limits

__all__ = ["Ask", "Asker", "LocalAsker", "Told"]


@dataclass(frozen=True, slots=True)
class Ask:
    """One question to one model."""

    model: str
    question: str
    image: Image.Image | None = None
    regions: tuple[Region, ...] = ()
    """On that image, which is shown with the first question of the conversation."""
    history: tuple[tuple[str, str], ...] = ()
    """Earlier turns as (role, text), oldest first."""
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Told:
    """The end of an answer: the whole text, and what the model was shown."""

    text: str
    image: Image.Image | None
    """The image exactly as the model saw it, in its original size; RGB."""
    regions: tuple[dict[str, Any], ...]
    prompt: str
    notes: tuple[str, ...]
    finish_reason: str
    seed: int | None
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    """From the question to the end of the answer, as the page saw it."""


class Asker(Protocol):
    """Whoever can answer."""

    async def start(self) -> None:
        """Get ready, in the loop in which `ask` is going to run."""
        ...

    async def stop(self) -> None:
        """Give up what is left."""
        ...

    async def models(self) -> Sequence[str]:
        """Names of the models that may be asked, the first one by default."""
        ...

    def ask(self, ask: Ask) -> AsyncGenerator[str | Told]:
        """Pieces of text, and `Told` as the last thing; raises what went wrong as VipLlavaError.

        Closing it early ends the work behind it.
        """
        ...


class LocalAsker:
    """Models of this process."""

    def __init__(self, assistants: Mapping[str, Assistant], limits: Limits) -> None:
        """assistants: at least one, by the names that are shown."""
        self._models = Models(assistants)
        self._answering = Answering(self._models, limits)

    async def start(self) -> None:
        """Let the engines run in threads of their own."""
        self._models.start()
        await self._answering.start()

    async def stop(self) -> None:
        """End those threads."""
        await self._answering.stop()
        self._models.stop()

    async def models(self) -> Sequence[str]:
        """The names that were given."""
        return self._models.names

    async def ask(self, ask: Ask) -> AsyncGenerator[str | Told]:
        """See `Asker.ask`."""
        assistant = self._models.get(ask.model)
        began = time.perf_counter()
        request = Request(
            question=ask.question,
            image=ask.image,
            regions=ask.regions,
            history=[{"role": role, "text": text} for role, text in ask.history],
        )
        with self._answering.places(1):
            prepared = await self._answering.prepare(
                lambda: assistant.prepare(request, **ask.sampling)
            )
            runs = self._answering.runs(assistant, [prepared], streamed=True)
            async with runs as (run,), contextlib.aclosing(_events(run)) as pieces:
                async for piece in pieces:
                    yield piece
                answer = await run.answer()
            yield _told(answer, time.perf_counter() - began)


async def _events(run: Any) -> AsyncGenerator[str]:
    async for event in run.events():
        if event.text:
            yield event.text


def _told(answer: Answer, seconds: float) -> Told:
    return Told(
        text=answer.text,
        image=answer.image,
        regions=tuple(region.to_json() for region in answer.regions),
        prompt=answer.prompt,
        notes=answer.notes,
        finish_reason=answer.finish_reason,
        seed=answer.seed,
        prompt_tokens=answer.usage.prompt_tokens,
        completion_tokens=answer.usage.completion_tokens,
        seconds=seconds,
    )
