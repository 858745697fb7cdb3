"""The engine: requests arrive at any time, from any thread, and share the steps of one model.

A background thread is optional: a caller that waits for a result drives the steps, which serve all
requests. `start` runs one thread for all, as a server needs. The failure of a request ends that
request only.

What happens in a step is in `engine_core`; this module is about callers and threads. It knows ids
and tensors, no templates, images or HTTP, and text only through the `decode` callable it is given.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import abc
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from vip_llava.engine.config import EngineConfig, EngineStats
from vip_llava.engine.detokenizer import Decode, TextStream
from vip_llava.engine.encoder_cache import view_digests as digests_of
from vip_llava.engine.engine_core import EngineCore
from vip_llava.engine.handle import Handle
from vip_llava.engine.sampler import SamplingState
from vip_llava.engine.sequence import Sequence, TokenEvent
from vip_llava.errors import RequestError
from vip_llava.sampling_params import SamplingParams

__all__ = ["Engine"]


class Engine:
    """Continuous batching over one model in eval mode. Any thread may call any method."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        image_token_id: int | None = None,
        stop_ids: abc.Collection[int] = (),
        decode: Decode | None = None,
        stop_strings: abc.Sequence[str] = (),
        trim: bool = False,
        suppress_ids: abc.Collection[int] = (),
        config: EngineConfig | None = None,
    ) -> None:
        """
        model: a VipLlava or Llava model of transformers.
        image_token_id: stands for images in prompts.
        stop_ids: end an answer and are not part of it.
        decode: ids to text; needed for `text`, for `stop_strings` (of every request) and for the
            stop strings of sampling parameters.
        trim: strip white space at both ends of the text.
        suppress_ids: never sampled (the image token, for example).
        """
        if decode is None and stop_strings:
            raise ValueError("stop strings need a decode callable")
        self._model: Any = model
        self._core = EngineCore(model, stop_ids, suppress_ids, config or EngineConfig())
        self._image_token_id = image_token_id
        self._decode, self._stop_strings, self._trim = decode, tuple(stop_strings), trim
        self._seq_ids = itertools.count()
        # Held by the thread that makes a step.
        self._lock = threading.RLock()
        # Notified after each step and each submission.
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False

    def submit(
        self,
        input_ids: abc.Sequence[int],
        pixel_values: Tensor | None = None,
        params: SamplingParams | None = None,
        *,
        view_digests: abc.Sequence[bytes] | None = None,
        on_event: abc.Callable[[TokenEvent], None] | None = None,
    ) -> Handle:
        """Queue a request. It runs while a caller waits for any request, or by the thread of `start`.

        input_ids: the prompt without padding, each view as as many image tokens as it has features.
        pixel_values: [N, 3, S, S], the views in the order of their tokens.
        view_digests: one for each view, if the caller knows them; equal digests must mean equal
            pixels. Otherwise every pixel is hashed.
        on_event: called for each event by the thread that makes the steps; must not block.
        Raises RequestError for a prompt that cannot be answered.
        """
        if self._model.training:
            raise ValueError("the model is in training mode; call model.eval() first")
        params = params or SamplingParams()
        if self._decode is None and params.stop:
            raise ValueError("stop strings need a decode callable")
        prompt = list(map(int, input_ids))
        views = 0 if pixel_values is None else len(pixel_values)
        image_positions = self._image_positions(prompt, views)
        if view_digests is not None and len(view_digests) != views:
            raise ValueError(f"{len(view_digests)} digests for {views} views; give one for each")
        if pixel_values is not None:
            # Converted first: there may be less to hash and to send.
            pixel_values = pixel_values.to(self._core.encoder.dtype)
            view_digests = view_digests or digests_of(pixel_values)
        stream = None
        if self._decode is not None:
            stop_strings = (*self._stop_strings, *params.stop)
            stream = TextStream(self._decode, stop_strings, trim=self._trim)
        seq = Sequence(
            seq_id=next(self._seq_ids),
            prompt_ids=prompt,
            max_tokens=min(params.max_new_tokens, self.room(len(prompt))),
            sampling=SamplingState(params, prompt),
            text_stream=stream,
            pixel_values=pixel_values,
            view_digests=list(view_digests or ()),
            image_positions=image_positions,
            on_event=on_event,
            arrival_time=time.perf_counter(),
        )
        self._core.submit(seq)
        self._notify()
        return Handle(seq, self._wait, self._cancel)

    def step(self) -> bool:
        """Make one step for all requests; False if there is nothing to do."""
        with self._lock:
            worked = self._core.step()
        self._notify()
        return worked

    def room(self, prompt_tokens: int) -> int:
        """The most tokens that can follow a prompt; RequestError if not even one can."""
        config = self._model.config.get_text_config()
        positions = getattr(config, "max_position_embeddings", None)
        # The model's limit first: no setting can raise it.
        if positions is not None and prompt_tokens + 1 > positions:
            raise RequestError(
                f"the prompt has {prompt_tokens} tokens (images included) and the model has "
                f"{positions} positions, which leaves no room for an answer; "
                f"shorten it by at least {prompt_tokens + 1 - positions} tokens"
            )
        limit = self._core.kv_cache_tokens
        if prompt_tokens + 1 > limit:
            raise RequestError(
                f"the prompt has {prompt_tokens} tokens (images included) and the KV cache "
                f"holds {limit}; shorten it or increase kv_cache_tokens"
            )
        return min(limit, limit if positions is None else int(positions)) - prompt_tokens

    def wait_any(self, handles: abc.Sequence[Handle]) -> None:
        """Wait until at least one of these requests is done."""
        self._wait(lambda: any(handle.done for handle in handles))

    def stats(self) -> EngineStats:
        """Counts since the engine was created, and what it holds now."""
        with self._lock:
            return self._core.stats()

    def invalidate(self) -> None:
        """Look at the model anew, after its weights or modules changed.

        Weights or modules may change under an engine only through this method: call it after any
        change and before the next request. It forgets prefixes, image features and graphs and
        selects the runner anew. Requests that are running keep what they have computed.
        """
        with self._lock:
            self._core.invalidate()

    def clear_cache(self) -> None:
        """Forget prefixes and image features of former requests; graphs stay."""
        with self._lock:
            self._core.clear_cache()

    def warm_up(self) -> float:
        """Capture now the graphs that would otherwise be captured when they are first needed.

        They are encodings of a few images, prompts of usual sizes and decode steps. Returns the
        seconds it took; does nothing without graphs. A server calls it before it reports ready.
        """
        began = time.perf_counter()
        with self._lock:
            self._core.warm_up()
        return time.perf_counter() - began

    def start(self) -> None:
        """Start a thread that makes steps whenever there is something to do."""
        if self._thread is None:
            self._stopping = False
            self._thread = threading.Thread(target=self._run, name="vip-llava", daemon=True)
            self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether the thread of `start` is alive."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        """End that thread after its current step; requests remain and waiting callers drive them."""
        thread, self._stopping = self._thread, True
        self._notify()
        if thread is not None:
            thread.join()
        self._thread = None
        self._notify()

    def _run(self) -> None:
        while not self._stopping:
            if not self.step():
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping or self._core.has_work)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _wait(self, ready: abc.Callable[[], bool]) -> None:
        """Wait until `ready`, making steps unless the thread of `start` does."""
        while not ready():
            if self._thread is not None:
                with self._changed:
                    self._changed.wait_for(lambda: ready() or self._thread is None)
                continue
            with self._lock:
                # Another thread may have made the decisive step while this one waited.
                worked = ready() or self._core.step()
            self._notify()
            assert worked or ready(), "the request is not known to the scheduler"

    def _cancel(self, seq: Sequence) -> None:
        self._core.cancel(seq)
        # While another thread makes a step, the memory is in use; that step frees it.
        if self._lock.acquire(blocking=False):
            try:
                self._core.drain()
            finally:
                self._lock.release()
        self._notify()

    def _image_positions(self, prompt: abc.Sequence[int], views: int) -> list[int]:
        """Positions of image tokens; RequestError for ids that the model cannot read."""
        if not prompt:
            raise RequestError("the prompt is empty; a request needs at least one token")
        found = [at for at, token in enumerate(prompt) if token == self._image_token_id]
        if (views == 0) != (not found) or (views and len(found) % views):
            raise RequestError(
                f"the prompt has {len(found)} image tokens for {views} views of images; "
                f"each view needs the same number, at least one"
            )
        rows = int(self._model.get_input_embeddings().weight.shape[0])
        for token in set(prompt):
            if token != self._image_token_id and not 0 <= token < rows:
                raise RequestError(
                    f"token id {token} is not in the vocabulary; allowed: 0 to {rows - 1}"
                )
        return found
