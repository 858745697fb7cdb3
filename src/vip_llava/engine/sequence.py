"""A request on its way through the engine, and what its caller gets.

This module does no work on sequences; the scheduler, block manager and runner do.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from vip_llava.engine.detokenizer import TextStream
from vip_llava.engine.sampler import Logprobs, SamplingState
from vip_llava.kernels import BLOCK_SIZE

__all__ = ["FinishReason", "RequestOutput", "Sequence", "TokenEvent"]

FinishReason = Literal["stop", "length"]

_BLOCK_OFFSETS = torch.arange(BLOCK_SIZE)


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """A generated token, and the text that is final now."""

    token: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """What was generated for one request. Times are in seconds."""

    tokens: tuple[int, ...]
    """The generated ids, without a stop id at the end."""
    text: str
    """The text up to a stop string; '' if the engine has no `decode`."""
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that the prefix cache had."""
    max_new_tokens: int
    """The limit in force: the requested one, or less where positions or KV cache end sooner."""
    seed: int
    prefill_seconds: float
    """From submission to the first token, time in the queue included."""
    decode_seconds: float
    logprobs: tuple[Logprobs, ...] | None = None
    """One for each token, if requested."""


@dataclass(slots=True, eq=False)
class Sequence:
    """State of one request. Times are of `time.perf_counter`."""

    seq_id: int
    """Requests keep the order of these."""
    prompt_ids: list[int]
    max_tokens: int
    """Limit of generated tokens."""
    sampling: SamplingState
    text_stream: TextStream | None = None
    pixel_values: Tensor | None = None
    view_digests: list[bytes] = field(default_factory=list)
    image_positions: list[int] = field(default_factory=list)
    """Positions of the image tokens in the prompt."""
    on_event: Callable[[TokenEvent], None] | None = None
    arrival_time: float = 0.0
    output_ids: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)
    image_features: Tensor | None = None
    """[image tokens, C], from the time they are needed until all are prefilled."""
    block_table: list[int] = field(default_factory=list)
    """Blocks of the KV cache, in the order of the tokens."""
    block_hashes: list[bytes] = field(default_factory=list)
    """Of the full blocks, as far as they were needed."""
    num_computed: int = 0
    """Tokens whose keys and values are in the KV cache."""
    num_cached: int = 0
    """Prompt tokens that the prefix cache had when the sequence first ran."""
    done: bool = False
    error: BaseException | None = None
    finish_reason: FinishReason | None = None
    first_token_time: float = 0.0
    finish_time: float = 0.0
    events: deque[TokenEvent] = field(default_factory=deque)

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and the output so far."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def num_pending(self) -> int:
        """Tokens to compute before the next one can be sampled."""
        return self.num_tokens - self.num_computed

    def ids(self, start: int, end: int) -> list[int]:
        """Token ids from `start` to `end` of prompt and output."""
        size = len(self.prompt_ids)
        output = self.output_ids[max(0, start - size) : max(0, end - size)]
        return self.prompt_ids[start:end] + output

    def image_range(self, start: int, end: int) -> tuple[int, int]:
        """Which image tokens, counted from the first, lie from `start` to `end`."""
        return bisect_left(self.image_positions, start), bisect_left(self.image_positions, end)

    @property
    def images_computed(self) -> bool:
        """Whether no image token is pending."""
        return not self.image_positions or self.image_positions[-1] < self.num_computed

    def slot(self, position: int) -> int:
        """The slot of the KV cache for the token at a position."""
        block, offset = divmod(position, BLOCK_SIZE)
        return self.block_table[block] * BLOCK_SIZE + offset

    def slot_mapping(self, count: int) -> Tensor:
        """Slots [count] of the first `count` tokens, on the CPU."""
        blocks = torch.tensor(self.block_table[: -(-count // BLOCK_SIZE)], dtype=torch.long)
        return (blocks.unsqueeze(1) * BLOCK_SIZE + _BLOCK_OFFSETS).view(-1)[:count]

    @property
    def first_slot(self) -> int | None:
        """The first slot, if the blocks are contiguous."""
        first, count = self.block_table[0], len(self.block_table)
        contiguous = self.block_table == list(range(first, first + count))
        return first * BLOCK_SIZE if contiguous else None

    def append(
        self, token: int, logprobs: Logprobs | None, stop_ids: Collection[int]
    ) -> TokenEvent:
        """Append a sampled token and find out whether it finishes the sequence."""
        self.first_token_time = self.first_token_time or time.perf_counter()
        text, stream = "", self.text_stream
        if token in stop_ids:
            self.finish_reason = "stop"
        else:
            self.output_ids.append(token)
            if logprobs is not None:
                self.logprobs.append(logprobs)
            text = stream.push(token) if stream else ""
            if stream and stream.stopped:
                self.finish_reason = "stop"
            elif len(self.output_ids) >= self.max_tokens:
                self.finish_reason = "length"
        if self.finish_reason and stream:
            text += stream.finish()
        event = TokenEvent(token, text, self.finish_reason, logprobs)
        self.events.append(event)
        return event

    def output(self) -> RequestOutput:
        """The result of a sequence with a `finish_reason`."""
        assert self.finish_reason is not None
        params = self.sampling.params
        return RequestOutput(
            tokens=tuple(self.output_ids),
            text=self.text_stream.text if self.text_stream else "",
            finish_reason=self.finish_reason,
            prompt_tokens=len(self.prompt_ids),
            cached_tokens=self.num_cached,
            max_new_tokens=self.max_tokens,
            seed=params.seed or 0,
            prefill_seconds=self.first_token_time - self.arrival_time,
            decode_seconds=self.finish_time - self.first_token_time,
            logprobs=None if params.logprobs is None else tuple(self.logprobs),
        )
