"""`Conversations`: what visitors do - ask one model or two, stop, vote - applied to transcripts.

It validates the browser's values, which may be anything, and calls a `ChatClient`. It does not
know Gradio or HTML.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vip_llava.errors import RequestError, VipLlavaError
from vip_llava.images import image_hash
from vip_llava.regions import Region, regions_from_json, resolve
from vip_llava.regions.phrases import expand
from vip_llava.serving.settings import Limits
from vip_llava.serving.web.asking import ChatClient, Question, Reply
from vip_llava.serving.web.image_store import ImageStore, StoredImage
from vip_llava.serving.web.share import share_texts
from vip_llava.serving.web.transcript import Exchange, ModelAnswer, Transcript
from vip_llava.serving.web.votes import VoteFile

__all__ = ["Conversations"]

_UPDATE_SECONDS = 0.05
_FAILED = "internal error; the server's log has details"
_VOTE_FAILED = "the vote could not be saved"
_MAX_VISITORS = 1000
log = logging.getLogger("vip_llava.serving")


class Conversations:
    """The conversations of all visitors; for the server's event loop only."""

    def __init__(
        self, client: ChatClient, images: ImageStore, limits: Limits, votes: VoteFile | None = None
    ) -> None:
        self.client = client
        self.votes = votes
        self._images = images
        self._limits = limits
        self._stops: dict[str, asyncio.Event] = {}
        self._transcripts: OrderedDict[str, Transcript] = OrderedDict()

    def transcript(self, visitor: str) -> Transcript:
        """The visitor's transcript; those of the least recent visitors are discarded."""
        found = self._transcripts.pop(visitor, None) or Transcript()
        self._transcripts[visitor] = found
        while len(self._transcripts) > _MAX_VISITORS:
            self._transcripts.popitem(last=False)
        return found

    def clear(self, visitor: str) -> Transcript:
        """Stop the visitor's answers and start a new conversation."""
        self.leave(visitor)
        return self.transcript(visitor)

    def leave(self, visitor: str) -> None:
        """Stop the visitor's answers and discard the transcript."""
        self.stop(visitor)
        self._transcripts.pop(visitor, None)

    def stop(self, visitor: str) -> None:
        """Stop the visitor's answers; their text so far is kept."""
        if visitor in self._stops:
            self._stops[visitor].set()

    async def ask(
        self,
        visitor: str,
        canvas: object,
        question: str,
        models: Sequence[str],
        sampling: Mapping[str, Any],
        *,
        again: bool = False,
    ) -> AsyncGenerator[Transcript]:
        """Ask a question; yields the transcript whenever it has changed.

        An invalid question becomes a notice, and the error of a model part of its answer.

        Args:
            canvas: {"image": id or None, "regions": [...]} from the browser.
            again: ask the last question again, in place of the last exchange.
        """
        transcript = self.transcript(visitor)
        transcript.notice = ""
        if visitor in self._stops:
            transcript.notice = "The last question is still being answered."
            yield transcript
            return
        last = transcript.exchanges[-1:] if again else []
        question = last[0].question if last else question
        earlier = Transcript(transcript.exchanges[: len(transcript.exchanges) - len(last)])
        try:
            questions, exchange, new = await self._parse(
                earlier, canvas, question, models, sampling
            )
        except VipLlavaError as error:
            transcript.notice = str(error)
            yield transcript
            return
        transcript.exchanges, transcript.notice = [*new.exchanges, exchange], new.notice
        stop = self._stops[visitor] = asyncio.Event()
        try:
            async with contextlib.aclosing(self._run(exchange, questions, stop)) as updates:
                async for _ in updates:
                    yield transcript
        finally:
            self._stops.pop(visitor, None)

    def vote(self, visitor: str, number: object, index: object, vote: object) -> Transcript:
        """Vote on an answer; an invalid vote becomes a notice."""
        transcript = self.transcript(visitor)
        try:
            self._vote(transcript, number, index, vote)
            transcript.notice = ""
        except (VipLlavaError, OSError) as error:
            transcript.notice = str(error) if isinstance(error, VipLlavaError) else _VOTE_FAILED
        return transcript

    def _vote(self, transcript: Transcript, number: object, index: object, vote: object) -> None:
        if self.votes is None:
            raise RequestError("this page has no voting")
        exchange = next((each for each in transcript.exchanges if each.number == number), None)
        count = len(exchange.answers) if exchange else 0
        if exchange is None or not isinstance(index, int) or not 0 <= index < count:
            raise RequestError("no such answer")
        answer = exchange.answers[index]
        stored = self._images.get(exchange.image)
        record = {
            "model": answer.model,
            "question": exchange.question,
            "regions": list(exchange.regions),
            "answer": answer.text,
            "image": image_hash(stored.image) if stored else None,
            "seed": answer.reply.seed if answer.reply else None,
        }
        self.votes.write(str(vote), record)
        answer.vote = str(vote)

    async def _parse(
        self,
        transcript: Transcript,
        canvas: object,
        text: str,
        models: Sequence[str],
        sampling: Mapping[str, Any],
    ) -> tuple[list[Question], Exchange, Transcript]:
        """The questions, as a new exchange of this transcript, or of a new one for a new image."""
        if not text.strip():
            raise RequestError("Type a question first.")
        if len(text) > self._limits.text_chars:
            raise RequestError(f"the question is longer than {self._limits.text_chars} characters")
        known = await self.client.models()
        if not models or any(name not in known for name in models):
            raise RequestError("unknown model" if models else "choose a model first")
        stored, regions = self._parse_canvas(canvas)
        image_id = stored.id if stored else None
        if transcript.exchanges and transcript.exchanges[-1].image != image_id:
            transcript = Transcript(notice="Another photo: this is a new conversation.")
        if len(transcript.exchanges) >= self._limits.messages:
            raise RequestError(f"start a new conversation after {self._limits.messages} questions")
        worded = expand(text, regions)
        questions = [
            Question(
                model=model,
                text=worded,
                image=stored.image if stored else None,
                regions=regions,
                history=transcript.history(index),
                sampling=sampling,
            )
            for index, model in enumerate(models)
        ]
        exchange = Exchange(
            number=transcript.exchanges[-1].number + 1 if transcript.exchanges else 1,
            question=text,
            worded=worded,
            image=image_id,
            regions=tuple(region.to_json() for region in regions),
            answers=[ModelAnswer(model) for model in models],
            share=dict(share_texts(questions[0])),
        )
        return questions, exchange, transcript

    def _parse_canvas(self, canvas: object) -> tuple[StoredImage | None, tuple[Region, ...]]:
        """The image and the resolved regions of a canvas, fully validated."""
        given = canvas if isinstance(canvas, dict) else {}
        values = given.get("regions") or []
        if not isinstance(values, list) or len(values) > self._limits.regions:
            raise RequestError(f"an image can have at most {self._limits.regions} marks")
        regions = regions_from_json(values)
        image_id = given.get("image")
        if image_id is None:
            if regions:
                raise RequestError("there are marks but no image")
            return None, ()
        stored = self._images.get(image_id)
        if stored is None:
            raise RequestError("the image has expired; choose it again")
        return stored, resolve(regions, stored.image.size).regions

    async def _run(
        self, exchange: Exchange, questions: Sequence[Question], stop: asyncio.Event
    ) -> AsyncGenerator[None]:
        """Run all models concurrently; yields after changes, at most every `_UPDATE_SECONDS`."""
        changed = asyncio.Event()
        pairs = zip(exchange.answers, questions, strict=True)
        tasks = [asyncio.create_task(self._ask_model(*pair, changed)) for pair in pairs]
        stopped = asyncio.create_task(stop.wait())
        updated = 0.0
        try:
            yield
            while not all(task.done() for task in tasks):
                change = asyncio.create_task(changed.wait())
                await asyncio.wait(
                    [change, stopped, *(task for task in tasks if not task.done())],
                    return_when=asyncio.FIRST_COMPLETED,
                )
                change.cancel()
                if stop.is_set():
                    break
                await asyncio.sleep(max(0.0, updated + _UPDATE_SECONDS - time.monotonic()))
                changed.clear()
                updated = time.monotonic()
                yield
        finally:
            for task in (*tasks, stopped):
                task.cancel()
            await asyncio.gather(*tasks, stopped, return_exceptions=True)
            for answer in exchange.answers:
                if answer.running:
                    answer.state = "stopped"
        yield

    async def _ask_model(
        self, answer: ModelAnswer, question: Question, changed: asyncio.Event
    ) -> None:
        try:
            async with contextlib.aclosing(self.client.ask(question)) as parts:
                async for part in parts:
                    if isinstance(part, Reply):
                        await self._finish(answer, part)
                    else:
                        answer.text += part
                        answer.state = "answering"
                    changed.set()
        except VipLlavaError as error:
            answer.state, answer.error = "failed", str(error)
        except Exception as error:
            # The type only: the message of an error may quote a question.
            log.error("an answer failed: %s", type(error).__name__)
            answer.state, answer.error = "failed", _FAILED
        changed.set()

    async def _finish(self, answer: ModelAnswer, reply: Reply) -> None:
        if reply.image is not None:
            image = reply.image
            stored = await asyncio.to_thread(lambda: self._images.put(image, lossless=True))
            answer.drawn = f"page/images/{stored.id}"
        answer.text, answer.state = reply.text, "done"
        answer.reply = replace(reply, image=None)  # the store holds and evicts it
