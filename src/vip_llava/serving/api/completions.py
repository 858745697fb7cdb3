"""POST /v1/chat/completions: from a validated body to a reply, whole or streamed.

It connects parsing (`chat`), image sources (`fetch`, `uploads`), `generation` and `replies`.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response
from prometheus_client import Counter, Histogram

from vip_llava.backends.native import as_native
from vip_llava.errors import VipLlavaError
from vip_llava.sampling_params import SamplingParams
from vip_llava.serving.api import replies
from vip_llava.serving.api.chat import ParsedChat, build_request, load_images, parse_chat
from vip_llava.serving.middleware.errors import ApiError, as_api_error, internal_error
from vip_llava.serving.middleware.stream import cancel_on_disconnect, event_stream, merge

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from vip_llava.answer import Answer
    from vip_llava.assistant import Assistant
    from vip_llava.prompting.prepare import Prepared
    from vip_llava.serving.api.fetch import ImageFetcher
    from vip_llava.serving.api.generation import Generation, GenerationPool
    from vip_llava.serving.api.schemas import ChatRequest
    from vip_llava.serving.api.uploads import UploadStore
    from vip_llava.serving.settings import ServerSettings

__all__ = ["AnswerMetrics", "ChatCompletions", "StartedChat", "stream_error"]

_MAX_SEED = 2**53 - 1
_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)
log = logging.getLogger("vip_llava.serving")


class AnswerMetrics:
    """Metrics of answers by model."""

    def __init__(self, registry: CollectorRegistry) -> None:
        label = ("model",)
        self._answers = Counter(
            "vip_llava_answers", "Complete answers.", ("model", "finish"), registry=registry
        )
        self._prompt_tokens = Counter(
            "vip_llava_prompt_tokens", "Tokens of prompts.", label, registry=registry
        )
        self._completion_tokens = Counter(
            "vip_llava_completion_tokens", "Generated tokens.", label, registry=registry
        )
        self._first_token = Histogram(
            "vip_llava_first_token_seconds",
            "Seconds from submission to the first token.",
            label,
            buckets=_SECONDS,
            registry=registry,
        )

    def count(self, model: str, generation: Generation, answer: Answer) -> None:
        """Count a complete answer of a served model."""
        self._answers.labels(model, answer.finish_reason).inc()
        self._prompt_tokens.labels(model).inc(answer.usage.prompt_tokens)
        self._completion_tokens.labels(model).inc(answer.usage.completion_tokens)
        if generation.first_token is not None:
            seconds = generation.first_token - generation.started
            self._first_token.labels(model).observe(seconds)


@dataclass(frozen=True, slots=True)
class StartedChat:
    """A chat request whose generations are running, one for each choice."""

    metadata: replies.ReplyMetadata
    assistant: Assistant
    generations: list[Generation]
    request_id: str


@dataclass(frozen=True, slots=True)
class ChatCompletions:
    """Answers the chat requests of one server."""

    settings: ServerSettings
    pool: GenerationPool
    uploads: UploadStore
    fetcher: ImageFetcher
    metrics: AnswerMetrics

    async def reply(self, body: ChatRequest, request: Request) -> Response:
        """The response; a stream starts only after everything has been validated."""
        if body.stream:
            return event_stream(self._stream(await self.start(body, request), body))
        return await cancel_on_disconnect(request.receive, self._complete(body, request))

    async def start(self, body: ChatRequest, request: Request) -> StartedChat:
        """Validate, prepare and submit; the end of the request cancels what is unfinished.

        Raises:
            ApiError: whatever is wrong with the request, or 499 if the client disconnects.
        """
        # Entered on the request's stack: a stream that is never iterated would not close it.
        exit_stack = request.state.info.exit_stack
        enter = exit_stack.enter_async_context(self._generate(body, request))
        return await cancel_on_disconnect(request.receive, enter)

    async def finish(self, chat: StartedChat, generation: Generation) -> Answer:
        """The complete answer of one generation, counted and, if configured, logged."""
        answer = await generation.answer()
        self.metrics.count(chat.metadata.model, generation, answer)
        if self.settings.log_content:
            log.info("id=%s answer: %r", chat.request_id, answer.text)
        return answer

    async def _complete(self, body: ChatRequest, request: Request) -> Response:
        async with self._generate(body, request) as chat:
            answers = [await self.finish(chat, each) for each in chat.generations]
            # Hashing and encoding large images takes time, so it does not run on the loop.
            content = await self.pool.finish(
                lambda: replies.as_json(replies.completion(chat.metadata, answers))
            )
        return Response(content, media_type="application/json")

    @asynccontextmanager
    async def _generate(self, body: ChatRequest, request: Request) -> AsyncIterator[StartedChat]:
        assistant = self.pool.models.get(body.model)
        parsed = parse_chat(body, self.settings.limits)
        info = request.state.info
        with self.pool.reserve(parsed.choices):
            sources = await load_images(parsed, info.client, self.uploads, self.fetcher)
            prepared = await self.pool.prepare(
                lambda: _prepare(assistant, parsed, sources, self.settings)
            )
            metadata = replies.ReplyMetadata(
                id=f"chatcmpl-{secrets.token_hex(12)}",
                created=int(time.time()),
                model=body.model,
                image_messages=tuple(image.message for image in parsed.images),
                return_image=body.return_image,
            )
            running = self.pool.run(assistant, prepared, streamed=bool(body.stream))
            async with running as generations:
                if self.settings.log_content:
                    log.info("id=%s prompt: %r", info.id, prepared[0].prompt)
                yield StartedChat(metadata, assistant, generations, info.id)

    async def _stream(self, chat: StartedChat, body: ChatRequest) -> AsyncGenerator[str, None]:
        """The data of each server-sent event."""
        try:
            answers: list[Answer] = []
            choices = [
                self._choice(chat, index, each, answers)
                for index, each in enumerate(chat.generations)
            ]
            async with aclosing(merge(choices)) as chunks:
                async for chunk in chunks:
                    yield replies.as_json(chunk)
            if body.stream_options is not None and body.stream_options.include_usage:
                yield replies.as_json(replies.usage_chunk(chat.metadata, answers))
            yield "[DONE]"
        except Exception as error:
            # The status has been sent: an error is an event, and no [DONE] follows.
            yield replies.as_json(stream_error(error, chat.request_id).to_json())

    async def _choice(
        self, chat: StartedChat, index: int, generation: Generation, answers: list[Answer]
    ) -> AsyncIterator[dict[str, Any]]:
        """The chunks of one answer; the last one carries the extension.

        The first chunk waits for the first token: until then a proxy can still try another worker.
        """
        decode = as_native(chat.assistant.backend).decode
        opening: dict[str, Any] = {"role": "assistant", "content": ""}
        started = False
        async for event in generation.events():
            if not started:
                yield replies.chunk(chat.metadata, index, opening, None, decode)
                started = True
            delta = {"content": event.text} if event.text or event.logprobs else {}
            chunk = replies.chunk(chat.metadata, index, delta, event, decode)
            if event.finish_reason is not None:
                answer = await self.finish(chat, generation)
                answers.append(answer)
                chunk["vip_llava"] = await self.pool.finish(
                    partial(replies.extension, chat.metadata, answer)
                )
            if delta or event.finish_reason is not None:
                yield chunk


def stream_error(error: Exception, request_id: str) -> ApiError:
    """The error to send in a stream that has started; an unexpected one is logged."""
    if isinstance(error, VipLlavaError):
        return as_api_error(error)
    log.error("id=%s failed in a stream: %s", request_id, type(error).__name__)
    return internal_error(request_id)


def _prepare(
    assistant: Assistant, chat: ParsedChat, sources: list[str | bytes], settings: ServerSettings
) -> list[Prepared]:
    """One prepared request for each choice, with consecutive seeds."""
    request = build_request(chat, sources, settings.limits)
    sampling = dict(chat.sampling)
    if chat.choices > 1:
        sampling.setdefault("seed", secrets.randbits(32))
    first = assistant.prepare(request, **sampling)
    found = [first]
    for number in range(1, chat.choices):
        params = {**sampling, "seed": (sampling["seed"] + number) % (_MAX_SEED + 1)}
        found.append(replace(first, sampling=SamplingParams(**params)))
    return found
