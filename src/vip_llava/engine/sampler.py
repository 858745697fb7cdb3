"""Sampling the next token of each request by its own parameters.

Requests in a batch share nothing: each has its own parameters and random generator, and every
operation is row by row, so that a request draws in any batch what it would draw alone, also after a
preemption. The generators are on the CPU, so that a seed means the same on every device.

This module knows no model, text or cache: it turns `logits [R, V]` into token ids.
Shape letters: R requests of this step, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from operator import is_

import torch
from torch import Tensor

from vip_llava.engine.device_transfer import to_device_async
from vip_llava.sampling_params import SamplingParams

__all__ = ["Logprobs", "Sampler", "SamplingState", "logprobs"]


class SamplingState:
    """Sampling parameters and state of one request; it stays with the request in any batch."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int]) -> None:
        """`prompt`: its ids without padding, for the repetition penalty.

        Ids beyond the vocabulary (an image token can be one) are ignored.
        """
        self.params = params.with_seed()
        assert self.params.seed is not None
        self.is_argmax = params.greedy and params.repetition_penalty == 1.0
        """Whether each token is the most probable one of the model's own distribution."""
        self.generator = torch.Generator(device="cpu").manual_seed(self.params.seed)
        self._prompt = prompt if params.repetition_penalty != 1.0 else ()
        self._seen: Tensor | None = None

    def seen(self, vocabulary: int, device: torch.device) -> Tensor:
        """Which tokens [V] occur in the prompt and the output so far."""
        if self._seen is None:
            ids = torch.tensor(self._prompt, dtype=torch.long)
            seen = torch.zeros(vocabulary, dtype=torch.bool)
            seen[ids[ids < vocabulary]] = True
            self._seen = to_device_async(seen, device)
        return self._seen


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Natural logarithms of probabilities, of the model's own distribution."""

    chosen: float
    best: tuple[tuple[int, float], ...]
    """The most probable tokens, best first."""


def logprobs(
    logits: Tensor, tokens: Sequence[int | None], states: Sequence[SamplingState]
) -> list[Logprobs | None]:
    """Log probabilities of the sampled tokens by `logits [R, V]`, for the requests that want them."""
    rows = [
        row
        for row, (token, state) in enumerate(zip(tokens, states, strict=True))
        if token is not None and state.params.logprobs is not None
    ]
    found: list[Logprobs | None] = [None] * len(tokens)
    if not rows:
        return found
    scores = logits[rows].float().log_softmax(dim=-1)
    sampled = torch.tensor([[tokens[row]] for row in rows], device=logits.device)
    most = min(max(states[row].params.logprobs or 0 for row in rows), scores.shape[-1])
    values, ids = scores.topk(most)
    chosen = scores.gather(1, sampled).squeeze(1).tolist()
    for row, one, best, best_ids in zip(rows, chosen, values.tolist(), ids.tolist(), strict=True):
        count = states[row].params.logprobs
        found[row] = Logprobs(one, tuple(zip(best_ids[:count], best[:count], strict=True)))
    return found


class Sampler:
    """Samples tokens for any selection of requests, each with its own state."""

    def __init__(self, device: torch.device, suppress_ids: Collection[int] = ()) -> None:
        """`suppress_ids` are never sampled."""
        self._device = device
        # Apple's GPU has no float64; a float32 sum is good enough for one uniform number.
        self._float = torch.float32 if device.type == "mps" else torch.float64
        self._suppress = sorted(set(suppress_ids))
        self._suppressed: Tensor | None = None
        self._states: tuple[SamplingState, ...] = ()

    def _prepare(self, states: Sequence[SamplingState], vocabulary: int) -> None:
        """Build the columns of parameters, unless the requests are those of the last call."""
        if self._suppressed is None:
            suppressed = [token for token in self._suppress if 0 <= token < vocabulary]
            self._suppressed = to_device_async(
                torch.tensor(suppressed, dtype=torch.long), self._device
            )
        if len(states) == len(self._states) and all(map(is_, states, self._states)):
            return
        self._states = tuple(states)
        params = [state.params for state in states]
        self._drawn = [row for row, one in enumerate(params) if not one.greedy]
        self._penalized = [row for row, one in enumerate(params) if one.repetition_penalty != 1.0]
        self._drawn_rows = to_device_async(
            torch.tensor(self._drawn, dtype=torch.long), self._device
        )
        self._penalized_rows = to_device_async(
            torch.tensor(self._penalized, dtype=torch.long), self._device
        )
        drawn = [params[row] for row in self._drawn]
        self._temperature = self._column([row.temperature for row in drawn])
        self._top_p = self._column([row.top_p for row in drawn])
        self._top_k = self._column([float(row.top_k or 2**31) for row in drawn])
        self._log_min_p = self._column([_log(row.min_p) for row in drawn])
        self._penalty = self._column([params[row].repetition_penalty for row in self._penalized])
        self._cuts = any(row.top_p < 1 or row.top_k > 0 for row in drawn)

    def _column(self, values: Sequence[float]) -> Tensor:
        return to_device_async(torch.tensor(values, dtype=torch.float32).unsqueeze(1), self._device)

    def __call__(self, logits: Tensor, states: Sequence[SamplingState]) -> list[int | None]:
        """`logits [R, V]` -> the next token of each request. Does not change the logits.

        None where the logits are not finite.
        """
        # One transfer for both, because each waits for the device.
        chosen, finite = torch.stack(self.choose(logits, states)).tolist()
        return [int(token) if good else None for token, good in zip(chosen, finite, strict=True)]

    def choose(self, logits: Tensor, states: Sequence[SamplingState]) -> tuple[Tensor, Tensor]:
        """The same without synchronizing: tokens [R], and 1 where the logits are finite, else 0."""
        vocabulary = logits.shape[-1]
        self._prepare(states, vocabulary)
        assert self._suppressed is not None
        scores = logits.float()
        if self._suppressed.numel():
            scores = scores.index_fill(1, self._suppressed, -math.inf)
        if self._penalized:
            scores = self._with_penalty(scores, vocabulary)
        best, tokens = scores.max(dim=-1)
        if self._drawn:
            drawn = self._draw(scores.index_select(0, self._drawn_rows))
            # With logits that are not finite the index may be beyond the vocabulary.
            tokens[self._drawn_rows] = drawn.clamp(max=vocabulary - 1)
        for row in self._penalized:
            states[row].seen(vocabulary, self._device).index_fill_(0, tokens[row : row + 1], True)
        return tokens, best.isfinite().long()

    def _with_penalty(self, scores: Tensor, vocabulary: int) -> Tensor:
        rows = self._penalized
        seen = torch.stack([self._states[row].seen(vocabulary, self._device) for row in rows])
        before = scores.index_select(0, self._penalized_rows)
        after = torch.where(before > 0, before / self._penalty, before * self._penalty)
        scores = scores.clone()
        scores[self._penalized_rows] = torch.where(seen, after, before)
        return scores

    def _draw(self, scores: Tensor) -> Tensor:
        """One token of each row, by inverting its cumulative distribution at one uniform number.

        Cumulating in the order of the vocabulary is stable: a rounding difference moves a boundary
        by as much, whereas a sort could swap nearly equal tokens.
        """
        scores = scores / self._temperature
        if self._cuts:
            scores = scores.masked_fill(~self._kept(scores), -math.inf)
        floor = scores.amax(dim=-1, keepdim=True) + self._log_min_p
        scores = scores.masked_fill(scores < floor, -math.inf)
        reached = scores.to(self._float).softmax(dim=-1).cumsum(dim=-1)
        total = reached[:, -1:].contiguous()
        numbers = [
            torch.rand(1, generator=self._states[row].generator, dtype=torch.float64)
            for row in self._drawn
        ]
        target = to_device_async(torch.stack(numbers).to(self._float), self._device) * total
        drawn = torch.searchsorted(reached, target, right=True)
        last = torch.searchsorted(reached, total)  # rounding may put the number at the end
        return torch.minimum(drawn, last).squeeze(1)

    def _kept(self, scores: Tensor) -> Tensor:
        """Which tokens [R, V] `top_k` and `top_p` keep; the most probable one always."""
        ordered, order = scores.sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(scores.shape[-1], device=scores.device).unsqueeze(0)
        kept = rank < self._top_k
        chances = ordered.masked_fill(~kept, -math.inf).softmax(dim=-1)
        kept &= chances.cumsum(dim=-1) - chances < self._top_p
        return torch.zeros_like(kept).scatter(1, order, kept)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
