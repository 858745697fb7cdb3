"""The engine: requests come in at any time, from any thread, and share the steps of one model.

There need be no thread in the background: whoever waits for an answer drives the steps, and every
request gets on by them. A server calls `start`, and one thread does it for all. What goes wrong with
one request ends that request alone.

This module knows ids and tensors, never text (beyond a `decode` callable handed in for stop texts
and streaming), templates, pictures or HTTP.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vip_llava.engine.captured import Flight
from vip_llava.engine.detokenize import Decode, TextStream
from vip_llava.engine.handle import Handle
from vip_llava.engine.kv import BLOCK_TOKENS, Blocks, KVMemory
from vip_llava.engine.paths import Paths, records
from vip_llava.engine.portrait import portrait
from vip_llava.engine.runner import Runner
from vip_llava.engine.sampling import (
    Logprobs,
    Sampler,
    SamplingParams,
    SamplingState,
    logprobs,
)
from vip_llava.engine.scheduler import Row, Scheduler, TokenEvent
from vip_llava.engine.transfer import on
from vip_llava.engine.values import EngineSettings, EngineStats, check_room
from vip_llava.engine.vision import VisionCache, view_digests
from vip_llava.errors import RequestError, VipLlavaError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Engine", "Handle"]


class Engine:
    """Continuous batching over one model in eval mode. Every method may be called by any thread.

    Changed weights are noticed when a request comes in: nothing kept from before is used for it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        image_token_id: int | None = None,
        stop_ids: Collection[int] = (),
        decode: Decode | None = None,
        stop_strings: Sequence[str] = (),
        trim: bool = False,
        suppress_ids: Collection[int] = (),
        settings: EngineSettings | None = None,
    ) -> None:
        """model: a transformers VipLlava or Llava model.

        image_token_id: stands for pictures in prompts. stop_ids: end an answer and are no part of
            it. decode: ids to text; needed for `text`, for `stop_strings` (of every request) and
            for the stop texts of sampling parameters. trim: no white space at the ends of the text.
        suppress_ids: never chosen (the image token, for example).
        """
        if decode is None and stop_strings:
            raise ValueError("stop texts need a decode callable")
        self._settings = settings or EngineSettings()
        self._model = model
        self._image = image_token_id
        self._stop_ids = frozenset(stop_ids)
        self._decode, self._stops, self._trim = decode, tuple(stop_strings), trim
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        kept = self._settings.prefix_tokens
        self._blocks = Blocks(
            self._settings.blocks(positions), None if kept is None else kept // BLOCK_TOKENS
        )
        self._scheduler = Scheduler(
            self._blocks,
            BLOCK_TOKENS,
            self._settings.max_running,
            self._settings.step(model.device.type),
        )
        self._memory = KVMemory(self._blocks.count)
        captured = records(self._settings.captured, model.device)
        self._paths = Paths(
            model,
            self._memory,
            captured=captured,
            most=self._settings.max_running,
            banned=suppress_ids,
        )
        self._runner = Runner(model, self._memory, self._paths)
        self._vision = VisionCache(model, self._settings.vision_bytes, captured=captured)
        self._sampler = Sampler(model.device, suppress_ids)
        self._numbers = itertools.count()
        self._inbox: deque[Row] = deque()
        self._cancelled: deque[Row] = deque()
        self._seen = portrait(model)
        self._looked = False
        # A step that is under way while its requests wait for the one before it to be read.
        self._flight: Flight | None = None
        self._captured_steps = 0
        self._steps = self._prompt_tokens = self._cached_tokens = 0
        # Whoever holds `_turn` makes a step; `_news` tells waiting threads that one was made.
        self._turn = threading.RLock()
        self._news = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False

    def submit(
        self,
        input_ids: Sequence[int],
        pixel_values: Tensor | None = None,
        params: SamplingParams | None = None,
        *,
        on_event: Callable[[TokenEvent], None] | None = None,
    ) -> Handle:
        """Queue a request; it runs when somebody waits for any, or by the thread of `start`.

        input_ids: the prompt without padding, each view as so many image tokens as it has features.
        pixel_values: [N, 3, S, S], the views in the order of their tokens.
        on_event: called for each event by the thread that makes the steps; must not wait.
        Raises RequestError for a prompt that can't be answered.
        """
        if self._model.training:
            raise ValueError("the model is in training mode; call model.eval() first")
        params = params or SamplingParams()
        if self._decode is None and params.stop:
            raise ValueError("stop texts need a decode callable")
        prompt = [int(token) for token in input_ids]
        image_at = self._check(prompt, 0 if pixel_values is None else len(pixel_values))
        row = Row(
            number=next(self._numbers),
            prompt=prompt,
            limit=min(params.max_new_tokens, self.room(len(prompt))),
            sampling=SamplingState(params, prompt),
            stream=self._decode
            and TextStream(self._decode, (*self._stops, *params.stop), trim=self._trim),
            pixels=pixel_values,
            views=[] if pixel_values is None else view_digests(pixel_values),
            image_at=image_at,
            arrived_at=time.perf_counter(),
            on_event=on_event,
        )
        self._inbox.append(row)
        self._tell()
        return Handle(self, row)

    def step(self) -> bool:
        """Make one step for all requests; False if there is nothing to do."""
        with self._turn:
            worked = self._step()
        self._tell()
        return worked

    def room(self, prompt_tokens: int) -> int:
        """How many tokens an answer may have at most; RequestError where there is no room for one."""
        room = check_room(self._model, prompt_tokens)
        budget = self._blocks.count * BLOCK_TOKENS
        if prompt_tokens + 1 > budget:
            raise RequestError(
                f"the prompt has {prompt_tokens} tokens (pictures included) and the KV memory "
                f"holds {budget}; shorten it or give the engine more (kv_tokens)"
            )
        left = budget - prompt_tokens
        return left if room is None else min(left, room)

    def wait_any(self, handles: Sequence[Handle]) -> None:
        """Wait until at least one of these requests is done."""
        self._wait(lambda: any(handle.done for handle in handles))

    def stats(self) -> EngineStats:
        """Counts since the engine was made, and what it holds now."""
        with self._turn:
            recorders = (self._paths.recorder, self._vision.recorder)
            return EngineStats(
                steps=self._steps,
                running=len(self._scheduler.running),
                waiting=len(self._scheduler.waiting) + len(self._inbox),
                preemptions=self._scheduler.preemptions,
                kv_tokens=self._blocks.count * BLOCK_TOKENS,
                kv_tokens_used=self._blocks.used * BLOCK_TOKENS,
                kv_tokens_kept=self._blocks.index.idle * BLOCK_TOKENS,
                kv_bytes=self._memory.bytes,
                prompt_tokens=self._prompt_tokens,
                cached_tokens=self._cached_tokens,
                vision_hits=self._vision.hits,
                vision_misses=self._vision.misses,
                vision_bytes=self._vision.bytes,
                captured_steps=self._captured_steps,
                recordings=sum(recorder.count for recorder in recorders),
                recording_seconds=sum(recorder.seconds for recorder in recorders),
            )

    def forget(self) -> None:
        """Keep nothing of former requests: neither prefixes nor picture features."""
        with self._turn:
            self._blocks.forget()
            self._vision.forget()

    def warm_up(self) -> float:
        """Make all recordings now that would else be made when they are first needed.

        Those are of encodings of one picture and of steps of answers. Returns the seconds it took;
        does nothing where nothing is recorded. For servers, before they say that they are ready.
        """
        began = time.perf_counter()
        with self._turn, torch.inference_mode(), on(self._model.device):
            self._look()
            self._vision.warm_up()
            if self._paths.decode is not None:
                self._paths.decode.warm_up()
        return time.perf_counter() - began

    def start(self) -> None:
        """Let a thread make the steps from now on, whenever there is something to do."""
        if self._thread is None:
            self._stopping = False
            self._thread = threading.Thread(target=self._serve, name="vip-llava", daemon=True)
            self._thread.start()

    @property
    def driven(self) -> bool:
        """Whether the thread of `start` is alive; if it has died nobody makes the steps."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        """End that thread after its present step; requests stay and may be driven by waiting."""
        thread, self._stopping = self._thread, True
        self._tell()
        if thread is not None:
            thread.join()
        self._thread = None
        self._tell()

    def _serve(self) -> None:
        while not self._stopping:
            if not self.step():
                with self._news:
                    self._news.wait_for(self._has_work)

    def _has_work(self) -> bool:
        # Whoever cancels takes in new requests too: those are no longer in the inbox then.
        new = bool(self._inbox or self._cancelled)
        return self._stopping or new or not self._scheduler.idle

    def _tell(self) -> None:
        with self._news:
            self._news.notify_all()

    def _wait(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready`, making the steps where no thread of the engine does."""
        while not ready():
            if self._thread is not None:
                with self._news:
                    self._news.wait_for(lambda: ready() or self._thread is None)
                continue
            with self._turn:
                # Another thread may have made the step that brings it while this one waited.
                worked = ready() or self._step()
            self._tell()
            assert worked or ready(), "a request that nobody runs"

    def _cancel(self, row: Row) -> None:
        row.cancelled = True
        self._cancelled.append(row)
        # In the middle of a step of another thread its memory is in use; that step frees it.
        if self._turn.acquire(blocking=False):
            try:
                self._receive()
            finally:
                self._turn.release()
        self._tell()

    def _check(self, prompt: Sequence[int], views: int) -> list[int]:
        """Where image tokens stand; RequestError for ids that the model can't read."""
        if not prompt:
            raise RequestError("the prompt is empty; a request needs at least one token")
        image_at = [at for at, token in enumerate(prompt) if token == self._image]
        if (views == 0) != (not image_at) or (views and len(image_at) % views):
            raise RequestError(
                f"the prompt has {len(image_at)} image tokens for {views} views of pictures; "
                f"each view needs the same number, at least one"
            )
        table: Any = self._model.get_input_embeddings()
        rows = int(table.weight.shape[0])
        for token in prompt:
            if token != self._image and not 0 <= token < rows:
                raise RequestError(
                    f"token id {token} is none of the model's; allowed: 0 to {rows - 1}"
                )
        return image_at

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
        chosen = self._scheduler.plan()
        if not chosen:
            assert self._scheduler.idle, "requests wait and none can run"
            return False
        self._steps += 1
        # Answers first: the device works on them while the prompts are made ready.
        flight = self._launch([row for row, count in chosen if count == row.pending == 1])
        going = set() if flight is None else {row.number for row in flight.rows}
        fed = self._feed(self._with_features([one for one in chosen if one[0].number not in going]))
        if flight is not None:
            self._land(flight)
        if fed is not None:
            self._choose(*fed)
        self._receive()
        return True

    def _receive(self) -> None:
        """Take in what other threads asked for since the last step."""
        if self._inbox:
            self._look()
        while self._inbox:
            self._scheduler.join(self._inbox.popleft())
        while self._cancelled:
            self._end(self._cancelled.popleft())

    def _look(self) -> None:
        """Notice if weights were changed or modules replaced or hooked into."""
        seen = portrait(self._model)
        if seen.weights != self._seen.weights:
            self.forget()
        if seen.parts != self._seen.parts or not self._looked:
            self._paths.look()
            self._vision.look()
            self._looked = True
        self._seen = seen

    def _launch(self, rows: list[Row], before: Flight | None = None) -> Flight | None:
        """Start a recorded step for those that can have one; None where nobody can."""
        decode = self._paths.decode
        # A picture's place needs its features.
        rows = [row for row in rows if row.images(row.stored, row.length)[0] == len(row.image_at)]
        if decode is None or not rows:
            return None
        try:
            return decode.launch(rows, before)
        except Exception as error:
            self._paths.close_recorded(error)
            self._looked = False
            return None

    def _land(self, flight: Flight) -> None:
        """Read a recorded step, and start the next one before that if nothing speaks against it."""
        plain = flight.plain
        try:
            self._flight = self._launch_next(flight) if plain else None
            tokens = flight.tokens()
        except Exception as error:
            self._flight = None
            rows = [row for row in flight.rows if not row.done]
            self._one_by_one(rows, error, lambda row: self._run([(row, 1)]))
            return
        self._captured_steps += 1
        alive = [seat for seat, row in enumerate(flight.rows) if not row.done]
        rows = [flight.rows[seat] for seat in alive]
        for row in rows:
            self._scheduler.fed(row, 1)
        if not plain:
            whole = len(rows) == len(flight.rows)
            self._choose(rows, flight.logits if whole else flight.logits[alive])
            return
        self._tell_tokens(rows, [tokens[seat] for seat in alive], [None] * len(rows))

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
        """Fetch the features of pictures that come up, of all requests together."""
        rows = [
            row
            for row, count in chosen
            if row.features is None and len(set(row.images(row.stored, row.stored + count))) == 2
        ]
        self._fetch(rows)
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
                row.features = None  # all pictures have been read
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
        self.forget()
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
