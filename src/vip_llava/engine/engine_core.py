"""What an engine does in one step: schedule sequences, compute them, sample their tokens.

Decode steps are graphs where the runner has them, and unless something prevents it the next one is
launched before the last one is read; prompts are prefilled beside them in chunks. A failure is
traced to its request and ends that request only.

This module knows sequences, ids and tensors. It knows no threads: the caller holds the lock.
"""

from __future__ import annotations

import time
from collections import abc, deque
from contextlib import suppress

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vip_llava.engine.block_manager import BlockManager
from vip_llava.engine.config import EngineConfig, EngineStats
from vip_llava.engine.decode_graphs import InFlightStep
from vip_llava.engine.device_transfer import current_device
from vip_llava.engine.encoder_cache import EncoderCache
from vip_llava.engine.kv_cache import KVCache
from vip_llava.engine.model_runner import Batch, ModelRunner
from vip_llava.engine.sampler import Logprobs, Sampler, logprobs
from vip_llava.engine.scheduler import PrefillBudget, Scheduler
from vip_llava.engine.sequence import Sequence
from vip_llava.errors import RequestError, VipLlavaError
from vip_llava.kernels import BLOCK_SIZE

__all__ = ["EngineCore"]

_WARM_UP_TEXT_TOKENS = (16, 32, 64, 128)
"""Tokens of usual questions, alone and after an image, whose prefill graphs `warm_up` captures."""


class EngineCore:
    """One model, its memory and its sequences."""

    def __init__(
        self,
        model: PreTrainedModel,
        stop_ids: abc.Collection[int],
        suppress_ids: abc.Collection[int],
        config: EngineConfig,
    ) -> None:
        self._model, self._config = model, config
        self.stop_ids = frozenset(stop_ids)
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        kept = config.prefix_cache_tokens
        self._blocks = BlockManager(
            config.num_blocks(positions), None if kept is None else kept // BLOCK_SIZE
        )
        self.scheduler = Scheduler(
            self._blocks,
            PrefillBudget(*config.token_budgets(model.device.type)),
            config.max_num_seqs,
        )
        graphs = config.cuda_graphs
        graphs = model.device.type == "cuda" if graphs is None else graphs
        self.runner = ModelRunner(
            model,
            KVCache(self._blocks.pool.num_blocks),
            cuda_graphs=graphs,
            max_num_seqs=config.max_num_seqs,
            suppress_ids=suppress_ids,
        )
        self.encoder = EncoderCache(model, config.encoder_cache_bytes, cuda_graphs=graphs)
        self._sampler = Sampler(model.device, suppress_ids)
        # Other threads append to these between two steps.
        self._submitted: deque[Sequence] = deque()
        self._cancelled: deque[Sequence] = deque()
        self._in_flight: InFlightStep | None = None
        self._steps = self._graph_steps = self._prompt_tokens = self._cached_tokens = 0

    @property
    def kv_cache_tokens(self) -> int:
        """The most tokens that the KV cache holds."""
        return self._blocks.pool.num_blocks * BLOCK_SIZE

    @property
    def has_work(self) -> bool:
        """Whether a step would do something. Any thread may ask."""
        return bool(self._submitted or self._cancelled) or not self.scheduler.idle

    def submit(self, seq: Sequence) -> None:
        """Queue a sequence for the next step. Any thread may call this."""
        self._submitted.append(seq)

    def cancel(self, seq: Sequence) -> None:
        """End a sequence at the next step or `drain`. Any thread may call this."""
        self._cancelled.append(seq)

    def drain(self) -> None:
        """Take in the sequences submitted and cancelled since the last step."""
        if self._submitted:
            self.runner.retry_graphs()
        while self._submitted:
            self.scheduler.add(self._submitted.popleft())
        while self._cancelled:
            self._end(self._cancelled.popleft())

    def step(self) -> bool:
        """Make one step; False if there was nothing to do."""
        with torch.inference_mode(), current_device(self._model.device):
            return self._step()

    def clear_cache(self) -> None:
        """Forget prefixes and image features of former requests."""
        self._blocks.pool.clear()
        self.encoder.clear()

    def invalidate(self) -> None:
        """Forget prefixes, image features and graphs, and look at the model anew."""
        with torch.inference_mode(), current_device(self._model.device):
            self._blocks.pool.clear()
            self.encoder.reset()
            self.runner.select()

    def warm_up(self) -> None:
        """Capture the graphs that would otherwise be captured when they are first needed."""
        with torch.inference_mode(), current_device(self._model.device):
            view = 0
            with suppress(Exception):  # the first request with an image reports it
                view = self.encoder.warm_up(self._config.max_num_seqs)
            texts = _WARM_UP_TEXT_TOKENS
            self.runner.warm_up(texts + tuple(view + text for text in texts))

    def stats(self) -> EngineStats:
        """Counts so far, and what is held now."""
        runner, encoder = self.runner, self.encoder
        pools = (runner.decode_pool, runner.prefill_pool, encoder.pool)
        return EngineStats(
            steps=self._steps,
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting) + len(self._submitted),
            preemptions=self.scheduler.num_preemptions,
            kv_cache_tokens=self.kv_cache_tokens,
            kv_cache_tokens_used=self._blocks.pool.num_used * BLOCK_SIZE,
            kv_cache_tokens_idle=self._blocks.pool.num_idle * BLOCK_SIZE,
            kv_cache_bytes=runner.kv_cache.bytes,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            encoder_cache_hits=encoder.hits,
            encoder_cache_misses=encoder.misses,
            encoder_cache_bytes=encoder.bytes,
            graph_steps=self._graph_steps,
            graphs=sum(pool.num_captured for pool in pools),
            graph_capture_seconds=sum(pool.seconds for pool in pools),
            graph_bytes=sum(pool.bytes for pool in pools),
            fallback=runner.fallback or encoder.fallback,
        )

    def _step(self) -> bool:
        self.drain()
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is not None and any(not seq.done for seq in in_flight.seqs):
            self._steps += 1
            self._finish_decode(in_flight)
            self.drain()
            return True
        began = time.perf_counter()
        # Prefill graphs take as long one by one as together, and a split prompt takes longer.
        whole_prompts = self.runner.prefill_graphs is not None
        batch = self.scheduler.schedule(whole_prompts=whole_prompts)
        if not batch:
            assert self.scheduler.idle, "sequences wait and none can run"
            return False
        self._steps += 1
        # Decode first: the device works on it while the prompts are prepared.
        decoding = [seq for seq, n in batch if n == seq.num_pending == 1 and _is_text_next(seq)]
        in_flight = self.runner.launch_decode(decoding)
        launched = {seq.seq_id for seq in in_flight.seqs} if in_flight else set()
        batch = [one for one in batch if one[0].seq_id not in launched]
        ready = self._compute(self._with_features(batch))
        if in_flight is not None:
            self._finish_decode(in_flight)
        if ready is not None:
            self._sample(*ready)
            if ready[0]:  # sampling waited for the device
                tokens = sum(count for _, count in batch)
                self.scheduler.budget.observe(tokens, time.perf_counter() - began)
        self.drain()
        return True

    def _finish_decode(self, step: InFlightStep) -> None:
        """Read a decode step, after launching the next one if nothing prevents that."""
        try:
            self._in_flight = None if step.needs_logprobs else self._launch_ahead(step)
            tokens = step.tokens()
        except Exception as error:
            self._in_flight = None
            seqs = [seq for seq in step.seqs if not seq.done]
            self._isolate(seqs, error, lambda seq: self._compute_and_sample([(seq, 1)]))
            return
        self._graph_steps += 1
        details = logprobs(step.logits, tokens, [seq.sampling for seq in step.seqs])
        for seq in step.seqs:
            if not seq.done:
                self._blocks.advance(seq, 1)
        self._append(step.seqs, tokens, details)

    def _launch_ahead(self, step: InFlightStep) -> InFlightStep | None:
        """Launch the step after one that was not read yet, for its sequences that go on.

        A sequence that turns out to have finished by then takes part in vain; its token is dropped.
        """
        seqs = [seq for seq in step.seqs if not seq.done]
        going = [seq for seq in seqs if len(seq.output_ids) + 1 < seq.max_tokens]
        scheduler = self.scheduler
        if step.graphs is not self.runner.decode_graphs or self._submitted or not going:
            return None
        # Another sequence is to run, or may be admitted when one has finished.
        if len(seqs) < len(scheduler.running) or (scheduler.waiting and len(going) < len(seqs)):
            return None
        if scheduler.can_admit or not scheduler.reserve_ahead(going):
            return None
        return self.runner.launch_decode(going, step)

    def _with_features(self, batch: Batch) -> Batch:
        """The batch, after computing image features that it needs and does not have."""
        seqs = []
        for seq, count in batch:
            first, last = seq.image_range(seq.num_computed, seq.num_computed + count)
            if last > first and seq.image_features is None:
                seqs.append(seq)
        if not seqs:
            return batch
        self._encode(seqs)
        return [one for one in batch if one[0] in self.scheduler.running]

    def _encode(self, seqs: list[Sequence]) -> None:
        wanted = [(s.view_digests, s.pixel_values) for s in seqs if s.pixel_values is not None]
        try:
            found = self.encoder.features(wanted)
        except Exception as error:
            self._isolate(seqs, error, lambda seq: self._encode([seq]))
            return
        for seq, features in zip(seqs, found, strict=True):
            if len(features) == len(seq.image_positions):
                seq.image_features = features
                continue
            views = len(seq.view_digests)
            message = (
                f"the prompt has {len(seq.image_positions) // views} image tokens for each view; "
                f"the model has {len(features) // views} features"
            )
            self._fail(seq, RequestError(message))

    def _compute_and_sample(self, batch: Batch) -> None:
        ready = self._compute(batch)
        if ready is not None:
            self._sample(*ready)

    def _compute(self, batch: Batch) -> tuple[list[Sequence], Tensor] | None:
        """Compute tokens of each sequence; those that can sample a token, and their logits."""
        if not batch:
            return None
        counts = dict(batch)
        try:
            ready, logits = self.runner.execute(batch)
        except Exception as error:
            seqs = list(counts)
            self._isolate(seqs, error, lambda seq: self._compute_and_sample([(seq, counts[seq])]))
            return None
        for seq, count in batch:
            self._blocks.advance(seq, count)
            if seq.images_computed:
                seq.image_features = None
        return ready, logits

    def _sample(self, seqs: list[Sequence], logits: Tensor) -> None:
        """Sample the next token of each sequence by its logits [R, V]."""
        # An event callback may have cancelled some.
        rows = [row for row, seq in enumerate(seqs) if not seq.done]
        if len(rows) < len(seqs):
            seqs, logits = [seqs[row] for row in rows], logits[rows]
        if seqs:
            states = [seq.sampling for seq in seqs]
            tokens = self._sampler(logits, states)
            self._append(seqs, tokens, logprobs(logits, tokens, states))

    def _append(
        self,
        seqs: abc.Sequence[Sequence],
        tokens: abc.Sequence[int | None],
        details: abc.Sequence[Logprobs | None],
    ) -> None:
        for seq, token, detail in zip(seqs, tokens, details, strict=True):
            if not seq.done:
                try:
                    self._append_token(seq, token, detail)
                except Exception as error:
                    self._fail(seq, error)

    def _append_token(self, seq: Sequence, token: int | None, detail: Logprobs | None) -> None:
        if token is None:
            raise VipLlavaError(
                "the model's outputs are not finite numbers: its arithmetic overflowed; "
                'load it with dtype="float32" or dtype="bfloat16"'
            )
        if not seq.first_token_time:
            self._prompt_tokens += len(seq.prompt_ids)
            self._cached_tokens += seq.num_cached
        event = seq.append(token, detail, self.stop_ids)
        if seq.on_event is not None:
            seq.on_event(event)
        if seq.finish_reason:
            self._end(seq)

    def _isolate(
        self, seqs: list[Sequence], error: Exception, retry: abc.Callable[[Sequence], None]
    ) -> None:
        """Handle the failure of a step: retry its sequences one by one, or end the only one.

        Running out of memory preempts a sequence that runs beside others instead of ending it.
        """
        if len(seqs) > 1:
            for seq in seqs:
                retry(seq)
        elif not isinstance(error, torch.OutOfMemoryError) or not self._free_memory(seqs[0]):
            self._fail(seqs[0], error)

    def _free_memory(self, seq: Sequence) -> bool:
        """Preempt a sequence and clear caches; False if neither would free memory."""
        alone = len(self.scheduler.running) == 1
        if alone and not self._blocks.pool.num_idle and not self.encoder.bytes:
            return False
        self.scheduler.preempt_for_memory(seq)
        self.clear_cache()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
        return True

    def _fail(self, seq: Sequence, error: BaseException) -> None:
        seq.error = error
        self._end(seq)

    def _end(self, seq: Sequence) -> None:
        if not seq.done:
            self.scheduler.remove(seq)
            seq.pixel_values = None
            seq.finish_time = time.perf_counter()
            seq.done = True


def _is_text_next(seq: Sequence) -> bool:
    """Whether the next pending token is not an image token."""
    first, last = seq.image_range(seq.num_computed, seq.num_computed + 1)
    return first == last
