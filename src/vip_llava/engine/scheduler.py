"""Which sequences take part in the next step, and with how many tokens.

Sequences keep the order of their arrival. Decoding ones get one token each; the rest of the step's
token budget goes to prefill, earliest first, in chunks if necessary, so that a long prompt does not
stall the others. When KV cache runs short the latest sequence is preempted: its blocks are freed and
it is computed anew later. The earliest sequence can always run, so every sequence finishes.

This module does accounting. It runs no model and knows no text.
"""

from __future__ import annotations

from bisect import insort
from collections import abc

from vip_llava.engine.block_manager import BlockManager
from vip_llava.engine.sequence import Sequence
from vip_llava.kernels import BLOCK_SIZE

__all__ = ["MAX_STALL_SECONDS", "PrefillBudget", "Scheduler"]

MAX_STALL_SECONDS = 0.1
"""How long a step with prefill may take while sequences decode, by the measured prefill rate."""


class PrefillBudget:
    """Tokens of a step: as many as the device prefills within `MAX_STALL_SECONDS`.

    Decoding sequences wait for a step with prefill, and the more tokens it has, the smaller is the
    share of its overhead.
    """

    def __init__(self, low: int, high: int) -> None:
        """`low` tokens are always allowed, `high` only while nothing decodes."""
        self.low, self.high = low, high
        self._rate = 0.0

    def tokens(self, decoding: bool) -> int:
        """Token budget of the next step; `decoding`: whether a sequence waits for its end."""
        if not decoding:
            return self.high
        return max(self.low, min(self.high, int(self._rate * MAX_STALL_SECONDS)))

    def observe(self, tokens: int, seconds: float) -> None:
        """Record a step that prefilled `tokens` in `seconds`."""
        # Small steps are mostly overhead, and a single slow one may have compiled kernels.
        if 2 * tokens > self.low and seconds > 0:
            self._rate = max(tokens / seconds, 0.9 * self._rate)


class Scheduler:
    """The waiting and the running sequences. Not thread-safe; the engine holds a lock."""

    def __init__(self, blocks: BlockManager, budget: PrefillBudget, max_num_seqs: int) -> None:
        if budget.low <= max_num_seqs:
            raise ValueError(
                f"max_batched_tokens is {budget.low}; it must exceed max_num_seqs, {max_num_seqs}"
            )
        self._blocks = blocks
        self.budget = budget
        self._max_num_seqs = max_num_seqs
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._out_of_memory = False

    @property
    def idle(self) -> bool:
        """Whether there are no sequences."""
        return not self.waiting and not self.running

    def add(self, seq: Sequence) -> None:
        """Queue a sequence, in the order of arrival."""
        insort(self.waiting, seq, key=lambda one: one.seq_id)

    def remove(self, seq: Sequence) -> None:
        """Drop a finished or cancelled sequence and free its blocks."""
        (self.running if seq in self.running else self.waiting).remove(seq)
        self._blocks.free(seq)
        self._out_of_memory = False

    def schedule(self, *, whole_prompts: bool = False) -> list[tuple[Sequence, int]]:
        """The sequences of the next step with their token counts; their blocks are allocated.

        whole_prompts: a prompt that does not fit behind another waits for the next step instead of
            being split.
        """
        scheduled: list[tuple[Sequence, int]] = []
        preemptions = self.num_preemptions
        budget = self.budget.tokens(decoding=any(seq.output_ids for seq in self.running))
        budget = left = budget - sum(seq.num_pending == 1 for seq in self.running)
        for seq in list(self.running):
            if whole_prompts and left < min(seq.num_pending, budget):
                left = 0
            count = 1 if seq.num_pending == 1 else min(seq.num_pending, left)
            if seq not in self.running or not count or not self._grow(seq, count):
                continue
            left -= count if seq.num_pending > 1 else 0
            scheduled.append((seq, count))
        # After a preemption no sequence is admitted: it would only be preempted in turn.
        while self.num_preemptions == preemptions and left:
            cached = self._next_prefix()
            if cached is None:
                break
            seq = self.waiting[0]
            if whole_prompts and left < min(budget, seq.num_tokens - len(cached) * BLOCK_SIZE):
                break
            self._admit(seq, cached)
            count = min(seq.num_pending, left)
            left -= count
            scheduled.append((seq, count))
        return scheduled

    def preempt(self, seq: Sequence) -> None:
        """Free the blocks of a running sequence and queue it to be computed anew."""
        self.num_preemptions += 1
        self.running.remove(seq)
        self._blocks.free(seq)
        self.add(seq)

    def preempt_for_memory(self, seq: Sequence) -> None:
        """Preempt a sequence that the device had no memory for; admit none until one finishes."""
        self.preempt(seq)
        self._out_of_memory = True

    @property
    def can_admit(self) -> bool:
        """Whether a waiting sequence could run now."""
        return self._next_prefix() is not None

    def reserve_ahead(self, seqs: abc.Sequence[Sequence]) -> bool:
        """Allocate blocks for the next two tokens of each, if no preemption is needed for it."""
        missing = sum(self._blocks.missing(seq, 2) for seq in seqs)
        fits = missing <= self._blocks.pool.num_available
        return fits and all(self._blocks.grow(seq, 2) for seq in seqs)

    def _next_prefix(self) -> list[int] | None:
        """Cached blocks of the first waiting sequence; None if none waits or it cannot run now."""
        full = len(self.running) >= self._max_num_seqs or (self._out_of_memory and self.running)
        if not self.waiting or full:
            return None
        return self._blocks.find_prefix(self.waiting[0])

    def _admit(self, seq: Sequence, cached: list[int]) -> None:
        # All blocks at once: those it was admitted for must not go to the next one.
        self._blocks.allocate(seq, cached)
        self.waiting.remove(seq)
        # A preempted sequence may have arrived before some that run.
        insort(self.running, seq, key=lambda one: one.seq_id)

    def _grow(self, seq: Sequence, count: int) -> bool:
        """Blocks for `count` more tokens, preempting later sequences; False: it was preempted."""
        while not self._blocks.grow(seq, count):
            latest = self.running[-1]
            self.preempt(latest)
            if latest is seq:
                return False
        return True
