"""`ChatClient`: how the page sends a question - to models of this process, or to a server.

Both implementations take a `Question` and yield the answer in pieces, then a `Reply` with what the
model saw. This module does not know Gradio or HTML.
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
from vip_llava.serving.api.generation import GenerationPool
from vip_llava.serving.api.models import ServedModels

if TYPE_CHECKING:
    from vip_llava.answer import Answer
    from vip_llava.assistant import Assistant
    from vip_llava.serving.api.generation import Generation
    from vip_llava.serving.settings import Limits

__all__ = ["ChatClient", "LocalClient", "Question", "Reply"]


@dataclass(frozen=True, slots=True)
class Question:
    """One question to one model."""

    model: str
    text: str
    image: Image.Image | None = None
    regions: tuple[Region, ...] = ()
    """On that image, which belongs to the first question of the conversation."""
    history: tuple[tuple[str, str], ...] = ()
    """Earlier turns as (role, text), oldest first."""
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer: its text, and what the model saw."""

    text: str
    image: Image.Image | None
    """The image as the model saw it, with its marks, in its original size; RGB."""
    regions: tuple[dict[str, Any], ...]
    prompt: str
    notes: tuple[str, ...]
    finish_reason: str
    seed: int | None
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    """From the question to the end of the answer, as measured by the page."""


class ChatClient(Protocol):
    """Something that answers questions."""

    async def start(self) -> None:
        """Prepare, in the event loop that will run `ask`."""
        ...

    async def stop(self) -> None:
        """Cancel what is running and release all resources."""
        ...

    async def models(self) -> Sequence[str]:
        """The available model names; the first one is the default."""
        ...

    def ask(self, question: Question) -> AsyncGenerator[str | Reply]:
        """Yield pieces of the text, then the `Reply`. Closing the generator cancels the answer.

        Raises:
            VipLlavaError: what is wrong with the question, or why it can't be answered.
        """
        ...


class LocalClient:
    """Models of this process."""

    def __init__(self, assistants: Mapping[str, Assistant], limits: Limits) -> None:
        """assistants: at least one, by the names that visitors see."""
        self._models = ServedModels(assistants)
        self._pool = GenerationPool(self._models, limits)

    async def start(self) -> None:
        """Start the engines' threads."""
        self._models.start()
        await self._pool.start()

    async def stop(self) -> None:
        """Stop the engines' threads."""
        await self._pool.stop()
        self._models.stop()

    async def models(self) -> Sequence[str]:
        """See `ChatClient.models`."""
        return self._models.names

    async def ask(self, question: Question) -> AsyncGenerator[str | Reply]:
        """See `ChatClient.ask`."""
        assistant = self._models.get(question.model)
        started = time.perf_counter()
        request = Request(
            question=question.text,
            image=question.image,
            regions=question.regions,
            history=[{"role": role, "text": text} for role, text in question.history],
        )
        with self._pool.reserve(1):
            prepared = await self._pool.prepare(
                lambda: assistant.prepare(request, **question.sampling)
            )
            running = self._pool.run(assistant, [prepared], streamed=True)
            async with running as (generation,), contextlib.aclosing(_texts(generation)) as texts:
                async for text in texts:
                    yield text
                answer = await generation.answer()
            yield _reply(answer, time.perf_counter() - started)


async def _texts(generation: Generation) -> AsyncGenerator[str]:
    async for event in generation.events():
        if event.text:
            yield event.text


def _reply(answer: Answer, seconds: float) -> Reply:
    return Reply(
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
