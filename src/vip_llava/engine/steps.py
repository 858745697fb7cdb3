"""What an engine does in one step: who takes part, what they are fed, what becomes of it.

Answers go on by recorded steps where those are open (`paths`), and while nothing speaks against it
the next one is under way before the last is read; prompts are read beside them in pieces.
A failure is traced to its request and ends that one alone.

This module knows rows, ids and tensors. It knows no threads: whoever calls it has the turn.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vip_llava.engine.block_manager import BLOCK_TOKENS, Blocks, KVMemory
from vip_llava.engine.config import EngineSettings
from vip_llava.engine.decode_graphs import Flight
from vip_llava.engine.device_transfer import on
from vip_llava.engine.encoder_cache import VisionCache
from vip_llava.engine.model_runner import Runner
from vip_llava.engine.pace import Pace
from vip_llava.engine.runner_selection import Paths, records
from vip_llava.engine.sampler import Logprobs, Sampler, logprobs
from vip_llava.engine.scheduler import Row, Scheduler, TokenEvent
from vip_llava.engine.watch import Watch
from vip_llava.errors import RequestError, VipLlavaError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Steps"]

_USUAL_TEXTS = (16, 32, 64, 128)
"""Tokens of questions, alone and behind an image, for which steps are recorded ahead."""


class Steps:
    """One model, its memory and its requests."""

    def __init__(
        self,
        model: PreTrainedModel,
        stop_ids: Collection[int],
        suppress_ids: Collection[int],
        settings: EngineSettings,
    ) -> None:
        self._settings = settings
        self._model = model
        self._stop_ids = frozenset(stop_ids)
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        kept = settings.prefix_tokens
        self._blocks = Blocks(
            settings.blocks(positions), None if kept is None else kept // BLOCK_TOKENS
        )
        most, tokens = settings.max_running, settings.step(model.device.type)
        self._scheduler = Scheduler(self._blocks, BLOCK_TOKENS, most, tokens[0])
        self._pace = Pace(*tokens)
        self._memory = KVMemory(self._blocks.count)
        captured = records(settings.captured, model.device)
        self._paths = Paths(model, self._memory, captured=captured, most=most, banned=suppress_ids)
        self._runner = Runner(model, self._memory, self._paths)
        self._vision = VisionCache(model, settings.vision_bytes, captured=captured)
        self._sampler = Sampler(model.device, suppress_ids)
        # What other threads put down between two steps.
        self._inbox: deque[Row] = deque()
        self._cancelled: deque[Row] = deque()
        self._watch = Watch(model, self._paths, self._vision, self._forget)
        # Requests that were taken in without a close look: that comes while the device works on them.
        self._unsure: list[Row] = []
        # A step that is under way while its requests wait for the one before it to be read.
        self._flight: Flight | None = None
        self._captured_steps = 0
        self._steps = self._prompt_tokens = self._cached_tokens = 0

    def _step(self) -> bool:
        """One step; the caller has the turn. False: there was nothing to do."""
        with torch.inference_mode(), on(self._model.device):
            return self._make_step()

    def _make_step(self) -> bool:
        self._receive()
        flight, self._flight = self._flight, None
        if flight is not None and any(not row.done for row in flight.rows):
            self._steps += 1
            self._land(flight)
            self._receive()
            return True
        began = time.perf_counter()
        answering = any(row.tokens for row in self._scheduler.running)
        # Recorded prompts take as long one by one as together, and a cut one longer than a whole one.
        whole = self._paths.prompts is not None
        chosen = self._scheduler.plan(self._pace.tokens(answering), whole=whole)
        if not chosen:
            assert self._scheduler.idle, "requests wait and none can run"
            return False
        self._steps += 1
        # Answers first: the device works on them while the prompts are made ready.
        sure = [one for one in chosen if one[0] not in self._unsure]
        flight = self._launch([row for row, count in sure if count == row.pending == 1])
        going = set() if flight is None else {row.number for row in flight.rows}
        fed = self._feed(self._with_features([one for one in chosen if one[0].number not in going]))
        fed = self._made_sure(fed)
        if flight is not None:
            self._land(flight)
        if fed is not None:
            self._choose(*fed)
            if fed[0]:  # that was waited for
                tokens = sum(count for _, count in chosen) - len(going)
                self._pace.took(tokens, time.perf_counter() - began)
        self._watch.settle()
        self._receive()
        return True

    def _receive(self) -> None:
        """Take in what other threads asked for since the last step."""
        new = len(self._inbox)  # who comes after the look has to wait for the next
        hasty = new > 0 and self._watch.hasty and self._watch.unmoved()
        if new and not hasty:
            self._watch.look()
        for _ in range(new):
            row = self._inbox.popleft()
            if hasty:
                self._unsure.append(row)
            else:
                self._watch.guessed_right(row)
            self._scheduler.join(row)
        while self._cancelled:
            self._end(self._cancelled.popleft())

    def _made_sure(self, fed: tuple[list[Row], Tensor] | None) -> tuple[list[Row], Tensor] | None:
        """Take the close look that is owed. Those that something was not so for were fed nothing:
        they begin anew."""
        unsure, self._unsure = self._unsure, []
        wrong = [row for row in unsure if not self._watch.guessed_right(row)]
        if unsure and self._watch.look():
            wrong = unsure
        if not wrong:
            return fed
        self._forget()
        for row in wrong:
            if row in self._scheduler.running:
                self._scheduler.put_off(row)
        if fed is None:
            return None
        seats = [seat for seat, row in enumerate(fed[0]) if row not in wrong]
        return ([fed[0][seat] for seat in seats], fed[1][seats]) if seats else None

    def _warm_up(self) -> None:
        """Make the recordings that would else be made when they are first needed."""
        self._watch.look()
        view = 0
        with suppress(Exception):  # whoever brings an image will be told
            view = self._vision.warm_up(self._settings.max_running)
        decode, prompts = self._paths.decode, self._paths.prompts
        if decode is not None:
            try:
                decode.warm_up()
            except Exception as error:
                self._paths.close_recorded(error)
        if prompts is not None:
            try:
                prompts.warm_up(_USUAL_TEXTS + tuple(view + text for text in _USUAL_TEXTS))
            except Exception as error:
                self._paths.close_prompts(error)
        self._watch.settle()

    def _launch(self, rows: list[Row], before: Flight | None = None) -> Flight | None:
        """Start a recorded step for those that can have one; None where nobody can."""
        decode = self._paths.decode
        # An image's place needs its features.
        rows = [row for row in rows if row.images(row.stored, row.length)[0] == len(row.image_at)]
        if decode is None or not rows:
            return None
        try:
            return decode.launch(rows, before)
        except Exception as error:
            self._paths.close_recorded(error)
            return None

    def _land(self, flight: Flight) -> None:
        """Read a recorded step, and start the next one before that if nothing speaks against it."""
        try:
            self._flight = None if flight.told else self._launch_next(flight)
            tokens = flight.tokens()
        except Exception as error:
            self._flight = None
            rows = [row for row in flight.rows if not row.done]
            self._one_by_one(rows, error, lambda row: self._run([(row, 1)]))
            return
        self._captured_steps += 1
        told = logprobs(flight.logits, tokens, [row.sampling for row in flight.rows])
        for row in flight.rows:
            if not row.done:
                self._scheduler.fed(row, 1)
        self._tell_tokens(flight.rows, tokens, told)

    def _launch_next(self, flight: Flight) -> Flight | None:
        """The step after one that is not read yet, for all who surely take part in it.

        Who turns out to have ended with the first has taken part for nothing; that token is dropped.
        """
        rows = [row for row in flight.rows if not row.done]
        going = [row for row in rows if len(row.tokens) + 1 < row.limit]
        scheduler = self._scheduler
        if flight.step is not self._paths.decode or self._inbox or not going:
            return None
        # Somebody else is to run, or may join when one has ended.
        if len(rows) < len(scheduler.running) or (scheduler.waiting and len(going) < len(rows)):
            return None
        if not scheduler.settled or not scheduler.ahead(going):
            return None
        return self._launch(going, flight)

    def _with_features(self, chosen: list[tuple[Row, int]]) -> list[tuple[Row, int]]:
        """Fetch the features of images that come up, of all requests together."""
        rows = [
            row
            for row, count in chosen
            if row.features is None and len(set(row.images(row.stored, row.stored + count))) == 2
        ]
        # A guess is good for finding what was read before; features are made for pixels.
        for row in rows:
            if not self._watch.guessed_right(row):
                self._scheduler.put_off(row)
        self._fetch([row for row in rows if row in self._scheduler.running])
        running = self._scheduler.running
        return [one for one in chosen if one[0] in running]

    def _fetch(self, rows: list[Row]) -> None:
        wanted = [(row.views, row.pixels) for row in rows if row.pixels is not None]
        if not wanted:
            return
        try:
            found = self._vision.features(wanted)
        except Exception as error:
            self._one_by_one(rows, error, lambda row: self._fetch([row]))
            return
        for row, features in zip(rows, found, strict=True):
            if len(features) == len(row.image_at):
                row.features = features
                continue
            views = len(row.views)
            self._fail(
                row,
                RequestError(
                    f"the prompt has {len(row.image_at) // views} image tokens for each view, "
                    f"and the model makes {len(features) // views}"
                ),
            )

    def _run(self, chosen: list[tuple[Row, int]]) -> None:
        fed = self._feed(chosen)
        if fed is not None:
            self._choose(*fed)

    def _feed(self, chosen: list[tuple[Row, int]]) -> tuple[list[Row], Tensor] | None:
        """Feed so many tokens of each request; those that can choose a token, and logits for it."""
        if not chosen:
            return None
        counts = dict(chosen)
        try:
            ready, logits = self._runner(chosen)
        except Exception as error:
            self._one_by_one(list(counts), error, lambda row: self._run([(row, counts[row])]))
            return None
        for row, count in chosen:
            self._scheduler.fed(row, count)
            if row.images(row.stored, row.length)[0] == len(row.image_at):
                row.features = None  # all images have been read
        return ready, logits

    def _choose(self, ready: list[Row], logits: Tensor) -> None:
        """The next token of each of these requests, by its logits [R, V]."""
        # Cancelled by what a neighbour's event led to.
        seats = [seat for seat, row in enumerate(ready) if not row.done]
        if len(seats) < len(ready):
            ready, logits = [ready[seat] for seat in seats], logits[seats]
        if ready:
            states = [row.sampling for row in ready]
            tokens = self._sampler(logits, states)
            self._tell_tokens(ready, tokens, logprobs(logits, tokens, states))

    def _tell_tokens(
        self,
        rows: Sequence[Row],
        tokens: Sequence[int | None],
        told: Sequence[Logprobs | None],
    ) -> None:
        for row, token, about in zip(rows, tokens, told, strict=True):
            if row.done:
                continue
            try:
                self._take(row, token, about)
            except Exception as error:
                self._fail(row, error)

    def _one_by_one(
        self, rows: Sequence[Row], error: Exception, again: Callable[[Row], None]
    ) -> None:
        """Something failed for several: find out for whom. The memory may do for each by itself."""
        if len(rows) > 1:
            for row in rows:
                again(row)
        elif isinstance(error, torch.OutOfMemoryError) and self._make_way(rows[0]):
            return
        else:
            self._fail(rows[0], error)

    def _make_way(self, row: Row) -> bool:
        """The device's memory is full: put a request off, if others or what is kept fill it."""
        others = len(self._scheduler.running) > 1
        if not others and not self._blocks.index.idle and not self._vision.bytes:
            return False
        self._scheduler.put_off(row)
        self._scheduler.crowded()
        self._forget()
        if self._model.device.type == "cuda":  # not run where this was written
            torch.cuda.empty_cache()
        return True

    def _take(self, row: Row, token: int | None, about: Logprobs | None) -> None:
        """Give a request its next token and find out whether it ends with it."""
        if token is None:
            raise VipLlavaError(
                "the model's outputs are not finite numbers: its arithmetic overflowed; "
                'load it with dtype="float32" or dtype="bfloat16"'
            )
        if not row.first_token_at:
            row.first_token_at = time.perf_counter()
            self._prompt_tokens += len(row.prompt)
            self._cached_tokens += row.cached
        text = ""
        if token in self._stop_ids:
            row.finish_reason = "stop"
        else:
            row.tokens.append(token)
            if about is not None:
                row.logprobs.append(about)
            text = row.stream.push(token) if row.stream else ""
            if row.stream and row.stream.stopped:
                row.finish_reason = "stop"
            elif len(row.tokens) >= row.limit:
                row.finish_reason = "length"
        if row.finish_reason:
            text += row.stream.finish() if row.stream else ""
        event = TokenEvent(token, text, row.finish_reason, about)
        row.events.append(event)
        if row.on_event is not None:
            row.on_event(event)
        if row.finish_reason:
            self._end(row)

    def _forget(self) -> None:
        self._blocks.forget()
        self._vision.forget()

    def _fail(self, row: Row, error: BaseException) -> None:
        row.error = error
        self._end(row)

    def _end(self, row: Row) -> None:
        if row.done:
            return
        self._scheduler.leave(row)
        row.pixels = None
        row.finished_at = time.perf_counter()
        row.done = True
