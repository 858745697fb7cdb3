"""POST /v1/chat/completions: the steps from a checked body to a reply, whole or streamed.

Puts the parts together - understanding, images, answering, replies - and does nothing itself.
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

from vip_llava.errors import VipLlavaError
from vip_llava.sampling_params import SamplingParams
from vip_llava.serving.api import replies
from vip_llava.serving.api.chat import Asked, gathered, opened, understood
from vip_llava.serving.middleware.errors import as_problem, internal
from vip_llava.serving.middleware.stream import EventStream, merged, unless_gone

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from vip_llava.answer import Answer
    from vip_llava.assistant import Assistant
    from vip_llava.prompting.prepare import Prepared
    from vip_llava.serving.api.answering import Answering, Run
    from vip_llava.serving.api.fetch import Fetcher
    from vip_llava.serving.api.replies import Frame
    from vip_llava.serving.api.schemas import ChatRequest
    from vip_llava.serving.api.uploads import Uploads
    from vip_llava.serving.settings import ServerSettings

__all__ = ["AnswerCounts", "Completions"]

_MOST_SEED = 2**53 - 1
_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)
log = logging.getLogger("vip_llava.serving")


class AnswerCounts:
    """What is counted of answers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        label = ("model",)
        self.answers = Counter(
            "vip_llava_answers", "Whole answers.", ("model", "finish"), registry=registry
        )
        self.prompt_tokens = Counter(
            "vip_llava_prompt_tokens", "Tokens of prompts.", label, registry=registry
        )
        self.completion_tokens = Counter(
            "vip_llava_completion_tokens", "Tokens of answers.", label, registry=registry
        )
        self.first_token = Histogram(
            "vip_llava_first_token_seconds",
            "Seconds from a request's submission to the first token.",
            label,
            buckets=_SECONDS,
            registry=registry,
        )

    def whole(self, model: str, run: Run, answer: Answer) -> None:
        """Count one answer. `model` is one of the server's names."""
        self.answers.labels(model, answer.finish_reason).inc()
        self.prompt_tokens.labels(model).inc(answer.usage.prompt_tokens)
        self.completion_tokens.labels(model).inc(answer.usage.completion_tokens)
        if run.first_token is not None:
            self.first_token.labels(model).observe(run.first_token - run.began)


@dataclass(frozen=True, slots=True)
class _Job:
    """One request on its way."""

    frame: Frame
    asked: Asked
    assistant: Assistant
    runs: list[Run]
    request_id: str


@dataclass(frozen=True, slots=True)
class Completions:
    """Answers chat requests for one server."""

    settings: ServerSettings
    answering: Answering
    uploads: Uploads
    fetcher: Fetcher
    counts: AnswerCounts

    async def reply(self, body: ChatRequest, request: Request) -> Response:
        """The reply; a stream begins only once everything that can be wrong has been checked."""
        if body.stream:
            return EventStream(await self.events(body, request))
        return await unless_gone(request.receive, self._whole(body, request))

    async def _whole(self, body: ChatRequest, request: Request) -> Response:
        async with self._job(body, request) as job:
            answers = [await self._answer(job, run) for run in job.runs]
            # Hashing and packing of large images takes its time: not on the loop.
            text = await self.answering.in_thread(
                lambda: replies.as_json(replies.whole(job.frame, answers))
            )
        return Response(text, media_type="application/json")

    async def events(self, body: ChatRequest, request: Request) -> AsyncGenerator[bytes]:
        """The server-sent events of a streamed reply; raises whatever Problem there is before them."""
        # The job ends with the request: a generator that nobody begins would never end it.
        enter = request.state.passage.ends.enter_async_context(self._job(body, request))
        job = await unless_gone(request.receive, enter)
        return self._events(job, body)

    @asynccontextmanager
    async def _job(self, body: ChatRequest, request: Request) -> AsyncIterator[_Job]:
        """Everything before the first token. Raises whatever Problem there is."""
        assistant = self.answering.models.get(body.model)
        asked = understood(body, self.settings.limits)
        passage = request.state.passage
        with self.answering.places(asked.choices):
            prepared = await self._prepared(assistant, asked, passage.client)
            frame = replies.Frame(
                id=f"chatcmpl-{secrets.token_hex(12)}",
                created=int(time.time()),
                model=body.model,
                messages=tuple(image.message for image in asked.images),
                return_image=body.return_image,
            )
            streamed = bool(body.stream)
            async with self.answering.runs(assistant, prepared, streamed=streamed) as runs:
                if self.settings.log_content:
                    log.info("id=%s asked: %r", passage.id, prepared[0].prompt)
                yield _Job(frame, asked, assistant, runs, passage.id)

    async def _prepared(self, assistant: Assistant, asked: Asked, owner: str) -> list[Prepared]:
        sources = await gathered(asked, owner, self.uploads, self.fetcher)
        return await self.answering.prepare(
            lambda: _prepared(assistant, asked, sources, self.settings)
        )

    async def _answer(self, job: _Job, run: Run) -> Answer:
        answer = await run.answer()
        self.counts.whole(job.frame.model, run, answer)
        if self.settings.log_content:
            log.info("id=%s answered: %r", job.request_id, answer.text)
        return answer

    async def _events(self, job: _Job, body: ChatRequest) -> AsyncGenerator[bytes, None]:
        try:
            answers: list[Answer] = []
            choices = [self._choice(job, index, run, answers) for index, run in enumerate(job.runs)]
            async with aclosing(merged(choices)) as events:
                async for event in events:
                    yield event
            if body.stream_options is not None and body.stream_options.include_usage:
                yield replies.as_event(replies.usage_chunk(job.frame, answers))
            yield b"data: [DONE]\n\n"
        except VipLlavaError as error:
            # The status has been sent: an error is an event, and no [DONE] follows.
            yield replies.as_event(as_problem(error).to_json())
        except Exception as error:
            log.error("id=%s failed in a stream: %s", job.request_id, type(error).__name__)
            yield replies.as_event(internal(job.request_id).to_json())

    async def _choice(
        self, job: _Job, index: int, run: Run, answers: list[Answer]
    ) -> AsyncIterator[bytes]:
        """The events of one answer; the last one has the extension."""
        decode = job.assistant.processor.tokenizer.decode
        first: dict[str, Any] = {"role": "assistant", "content": ""}
        yield replies.as_event(replies.chunk(job.frame, index, first, None, decode))
        async for event in run.events():
            delta = {"content": event.text} if event.text or event.logprobs else {}
            piece = replies.chunk(job.frame, index, delta, event, decode)
            if event.finish_reason is not None:
                answer = await self._answer(job, run)
                answers.append(answer)
                piece["vip_llava"] = await self.answering.in_thread(
                    partial(replies.extension, job.frame, answer)
                )
            if delta or event.finish_reason is not None:
                yield replies.as_event(piece)


def _prepared(
    assistant: Assistant, asked: Asked, sources: list[str | bytes], settings: ServerSettings
) -> list[Prepared]:
    """One prepared request for each answer, with seeds that follow one another."""
    request = opened(asked, sources, settings.limits)
    sampling = dict(asked.sampling)
    if asked.choices > 1:
        sampling.setdefault("seed", secrets.randbits(32))
    found = [assistant.prepare(request, **sampling)]
    for number in range(1, asked.choices):
        params = {**sampling, "seed": (sampling["seed"] + number) % (_MOST_SEED + 1)}
        found.append(_with_sampling(found[0], params))
    return found


def _with_sampling(prepared: Prepared, sampling: dict[str, Any]) -> Prepared:
    """The same prompt, answered by other parameters."""
    return replace(prepared, sampling=SamplingParams(**sampling))
