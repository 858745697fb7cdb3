"""From what a visitor did to turns: asking one model or two, streaming, stopping, voting.

Between the browser's values, which may be anything, and an `Asker`. Knows no Gradio and no HTML.
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
from vip_llava.serving.web.asking import Ask, Asker, Told
from vip_llava.serving.web.image_store import Held, Shelf
from vip_llava.serving.web.share import shared
from vip_llava.serving.web.transcript import Column, Talk, Turn
from vip_llava.serving.web.votes import VoteFile

__all__ = ["Conversations"]

_SHOW_SECONDS = 0.05
_FAILED = "the server failed to answer; its log says more"
_UNWRITTEN = "the vote could not be written down"
_VISITORS = 1000
log = logging.getLogger("vip_llava.serving")


class Conversations:
    """What all visitors of a page share. Every method belongs to the server's loop."""

    def __init__(
        self, asker: Asker, shelf: Shelf, limits: Limits, votes: VoteFile | None = None
    ) -> None:
        self.asker = asker
        self.votes = votes
        self._shelf = shelf
        self._limits = limits
        self._stops: dict[str, asyncio.Event] = {}
        self._talks: OrderedDict[str, Talk] = OrderedDict()

    def talk(self, visitor: str) -> Talk:
        """The visitor's conversation; those of visitors who are long gone are forgotten."""
        found = self._talks.pop(visitor, None) or Talk()
        self._talks[visitor] = found
        while len(self._talks) > _VISITORS:
            self._talks.popitem(last=False)
        return found

    def clear(self, visitor: str) -> Talk:
        """End what is being said, and begin anew."""
        self.stop(visitor)
        self._talks.pop(visitor, None)
        return self.talk(visitor)

    def leave(self, visitor: str) -> None:
        """The visitor has gone."""
        self.stop(visitor)
        self._talks.pop(visitor, None)

    async def ask(
        self,
        visitor: str,
        canvas: object,
        question: str,
        models: Sequence[str],
        sampling: Mapping[str, Any],
        *,
        again: bool = False,
    ) -> AsyncGenerator[Talk]:
        """Ask; gives the conversation each time there is something new to show.

        canvas: {"image": id or None, "regions": [...]} from the browser. What is wrong with it
        becomes a notice, and what goes wrong with one model the error of its column.
        again: ask the last question anew, in the place of the last turn.
        """
        talk = self.talk(visitor)
        talk.notice = ""
        if visitor in self._stops:
            talk.notice = "The last question is still being answered."
            yield talk
            return
        last = talk.turns[-1:] if again else []
        question = last[0].question if last else question
        earlier = Talk(talk.turns[: len(talk.turns) - len(last)])
        try:
            asks, turn, new = await self._understood(earlier, canvas, question, models, sampling)
        except VipLlavaError as error:
            talk.notice = str(error)
            yield talk
            return
        talk.turns, talk.notice = [*new.turns, turn], new.notice
        stop = self._stops[visitor] = asyncio.Event()
        try:
            async with contextlib.aclosing(self._answered(turn, asks, stop)) as news:
                async for _ in news:
                    yield talk
        finally:
            self._stops.pop(visitor, None)

    def stop(self, visitor: str) -> None:
        """End the visitor's answers; what they have said so far stays."""
        if visitor in self._stops:
            self._stops[visitor].set()

    def vote(self, visitor: str, number: object, index: object, vote: object) -> Talk:
        """Vote on an answer; a notice where there is none such, or where nobody may vote."""
        talk = self.talk(visitor)
        try:
            self._vote(talk, number, index, vote)
            talk.notice = ""
        except (VipLlavaError, OSError) as error:
            talk.notice = str(error) if isinstance(error, VipLlavaError) else _UNWRITTEN
        return talk

    def _vote(self, talk: Talk, number: object, index: object, vote: object) -> None:
        if self.votes is None:
            raise RequestError("votes are not kept on this page")
        turn = next((each for each in talk.turns if each.number == number), None)
        if turn is None or not isinstance(index, int) or not 0 <= index < len(turn.columns):
            raise RequestError("there is no such answer")
        column = turn.columns[index]
        held = self._shelf.get(turn.image)
        about = {
            "model": column.model,
            "question": turn.question,
            "regions": list(turn.regions),
            "answer": column.text,
            "image": image_hash(held.image) if held else None,
            "seed": column.told.seed if column.told else None,
        }
        self.votes.write(str(vote), about)
        column.vote = str(vote)

    async def _understood(
        self,
        talk: Talk,
        canvas: object,
        question: str,
        models: Sequence[str],
        sampling: Mapping[str, Any],
    ) -> tuple[list[Ask], Turn, Talk]:
        """What to ask, as a new turn of this talk, or of a new one where the photo is another."""
        if not question.strip():
            raise RequestError("Type a question first.")
        if len(question) > self._limits.text_chars:
            raise RequestError(f"the question is longer than {self._limits.text_chars} characters")
        known = await self.asker.models()
        unknown = [name for name in models if name not in known]
        if unknown or not models:
            raise RequestError("choose a model first" if not models else "there is no such model")
        held, regions = self._drawn(canvas)
        image = held.id if held else None
        if talk.turns and talk.turns[-1].image != image:
            talk = Talk(notice="Another photo: this is a new conversation.")
        if len(talk.turns) >= self._limits.messages:
            raise RequestError(f"after {self._limits.messages} questions, begin a new conversation")
        worded = expand(question, regions)
        asks = [
            Ask(
                model=model,
                question=worded,
                image=held.image if held else None,
                regions=regions,
                history=talk.history(index),
                sampling=sampling,
            )
            for index, model in enumerate(models)
        ]
        number = talk.turns[-1].number + 1 if talk.turns else 1
        turn = Turn(
            number=number,
            question=question,
            worded=worded,
            image=image,
            regions=tuple(region.to_json() for region in regions),
            columns=[Column(model) for model in models],
            share=dict(shared(asks[0])),
        )
        return asks, turn, talk

    def _drawn(self, canvas: object) -> tuple[Held | None, tuple[Region, ...]]:
        """The image and the regions of a canvas, checked as if anybody had written them."""
        given = canvas if isinstance(canvas, dict) else {}
        marks = given.get("regions") or []
        if not isinstance(marks, list) or len(marks) > self._limits.regions:
            raise RequestError(f"at most {self._limits.regions} marks can be on an image")
        regions = regions_from_json(marks)
        name = given.get("image")
        if name is None:
            if regions:
                raise RequestError("there are marks but no image")
            return None, ()
        held = self._shelf.get(name)
        if held is None:
            raise RequestError("the image is not here any more; choose it again")
        return held, resolve(regions, held.image.size).regions

    async def _answered(
        self, turn: Turn, asks: Sequence[Ask], stop: asyncio.Event
    ) -> AsyncGenerator[None]:
        """Run all columns at once; gives whenever there is something new, but not too often."""
        news = asyncio.Event()
        columns = list(zip(turn.columns, asks, strict=True))
        tasks = [asyncio.create_task(self._column(*each, news)) for each in columns]
        stopped = asyncio.create_task(stop.wait())
        shown = 0.0
        try:
            yield
            while not all(task.done() for task in tasks):
                changed = asyncio.create_task(news.wait())
                await asyncio.wait(
                    [changed, stopped, *(task for task in tasks if not task.done())],
                    return_when=asyncio.FIRST_COMPLETED,
                )
                changed.cancel()
                if stop.is_set():
                    break
                await asyncio.sleep(max(0.0, shown + _SHOW_SECONDS - time.monotonic()))
                news.clear()
                shown = time.monotonic()
                yield
        finally:
            for task in (*tasks, stopped):
                task.cancel()
            await asyncio.gather(*tasks, stopped, return_exceptions=True)
            for column in turn.columns:
                if column.state in ("waiting", "answering"):
                    column.state = "stopped"
        yield

    async def _column(self, column: Column, ask: Ask, news: asyncio.Event) -> None:
        try:
            async with contextlib.aclosing(self.asker.ask(ask)) as parts:
                async for part in parts:
                    if isinstance(part, Told):
                        await self._end(column, part)
                    else:
                        column.text += part
                        column.state = "answering"
                    news.set()
        except VipLlavaError as error:
            column.state, column.error = "wrong", str(error)
        except Exception as error:
            # Only its kind: the text of an error may quote a question.
            log.error("an answer failed: %s", type(error).__name__)
            column.state, column.error = "wrong", _FAILED
        news.set()

    async def _end(self, column: Column, told: Told) -> None:
        if told.image is not None:
            image = told.image
            held = await asyncio.to_thread(lambda: self._shelf.put(image, lossless=True))
            column.drawn = f"page/images/{held.id}"
        column.text, column.state = told.text, "done"
        column.told = replace(told, image=None)  # the shelf holds it, and lets it go in time
