"""The engine: requests come in at any time, from any thread, and share the steps of one model.

There need be no thread in the background: whoever waits for an answer drives the steps, and every
request gets on by them. A server calls `start`, and one thread does it for all. What goes wrong with
one request ends that request alone.

What happens in a step is `steps`' matter; here is who asks and who makes the steps.
This module knows ids and tensors, never text (beyond a `decode` callable handed in for stop texts
and streaming), templates, images or HTTP.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vip_llava.engine.block_manager import BLOCK_TOKENS
from vip_llava.engine.config import EngineSettings, EngineStats, check_room
from vip_llava.engine.detokenizer import Decode, TextStream
from vip_llava.engine.device_transfer import on
from vip_llava.engine.handle import Handle
from vip_llava.engine.sampler import SamplingState
from vip_llava.engine.scheduler import Row, TokenEvent
from vip_llava.engine.steps import Steps
from vip_llava.errors import RequestError
from vip_llava.sampling_params import SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Engine", "Handle"]


class Engine(Steps):
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

        image_token_id: stands for images in prompts. stop_ids: end an answer and are no part of
            it. decode: ids to text; needed for `text`, for `stop_strings` (of every request) and
            for the stop texts of sampling parameters. trim: no white space at the ends of the text.
        suppress_ids: never chosen (the image token, for example).
        """
        if decode is None and stop_strings:
            raise ValueError("stop texts need a decode callable")
        super().__init__(model, stop_ids, suppress_ids, settings or EngineSettings())
        self._image = image_token_id
        self._decode, self._stops, self._trim = decode, tuple(stop_strings), trim
        self._numbers = itertools.count()
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
        prompt = list(map(int, input_ids))
        image_at = self._check(prompt, 0 if pixel_values is None else len(pixel_values))
        pixel_values, views, guessed = self._watch.views(pixel_values)
        row = Row(
            number=next(self._numbers),
            prompt=prompt,
            limit=min(params.max_new_tokens, self.room(len(prompt))),
            sampling=SamplingState(params, prompt),
            stream=self._decode
            and TextStream(self._decode, (*self._stops, *params.stop), trim=self._trim),
            pixels=pixel_values,
            views=views,
            guessed=guessed,
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
                f"the prompt has {prompt_tokens} tokens (images included) and the KV memory "
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
            paths = self._paths
            recorders = (paths.recorder, paths.prompt_recorder, self._vision.recorder)
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
                recording_bytes=sum(recorder.bytes for recorder in recorders),
                closed=paths.closed or self._vision.closed,
            )

    def forget(self) -> None:
        """Keep nothing of former requests: neither prefixes nor image features."""
        with self._turn:
            self._forget()

    def warm_up(self) -> float:
        """Make all recordings now that would else be made when they are first needed.

        Those are of encodings of a few images, of prompts of usual sizes and of answers. Returns the seconds it took;
        does nothing where nothing is recorded. For servers, before they say that they are ready.
        """
        began = time.perf_counter()
        with self._turn, torch.inference_mode(), on(self._model.device):
            self._warm_up()
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
                f"the prompt has {len(image_at)} image tokens for {views} views of images; "
                f"each view needs the same number, at least one"
            )
        table: Any = self._model.get_input_embeddings()
        rows = int(table.weight.shape[0])
        for token in set(prompt):
            if token != self._image and not 0 <= token < rows:
                raise RequestError(
                    f"token id {token} is none of the model's; allowed: 0 to {rows - 1}"
                )
        return image_at
