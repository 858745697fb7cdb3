"""Recorded steps for prompts: the new tokens of one request in, the logits of its next token out.

Launching the hundreds of kernels of a prompt takes the host longer than a fast GPU takes for them.
So the step is recorded for a few numbers of tokens, to which a prompt (or what is new of it) is
filled up at the end: nothing before sees what is there, and it is stored nowhere. A size is recorded
when it comes for the second time, or ahead by `warm_up`; those longest unused go first.

This module knows rows and places; it decides nothing, and knows no text.
Shape letters: N tokens of a size, C width, W blocks of the longest text, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from vip_llava.engine.block_manager import BLOCK_TOKENS, KVMemory
from vip_llava.engine.device_transfer import sent
from vip_llava.engine.fused_runner import FusedLlama, Prompt
from vip_llava.engine.graph_pool import Recorder, Recording, Recordings
from vip_llava.engine.scheduler import Row

__all__ = ["PromptStep", "size_for"]

_MOST_TOKENS = 1024
"""Of more tokens the kernels take longer than their launches."""
_MOST_RECORDINGS = 16
_ALIGNED = 4  # numbers; kernels are made once for all addresses that are multiples of 16 bytes
_HEAD = 4  # tokens before the new ones, tokens in all, which of the new is the last, nothing


def size_for(count: int) -> int:
    """To how many tokens so many are filled up: 16, 32 or a multiple of 64."""
    return next((size for size in (16, 32) if size >= count), -(-count // 64) * 64)


class PromptStep:
    """The recordings of one model over one memory."""

    def __init__(
        self, llama: FusedLlama, memory: KVMemory, recorder: Recorder, *, positions: int
    ) -> None:
        """positions: no text gets longer."""
        self._llama, self._memory, self._recorder = llama, memory, recorder
        self._most = min(_MOST_TOKENS, size_for(positions))
        self._width = -(-positions // (BLOCK_TOKENS * _ALIGNED)) * _ALIGNED
        numbers = _HEAD + self._width + 3 * self._most
        self._numbers = torch.zeros(numbers, dtype=torch.int32, device=recorder.device)
        # Features of images, in the places of their tokens; what else is there is not read.
        self._features = llama.embed(self._numbers[: self._most]).zero_()
        self._recordings = Recordings(_MOST_RECORDINGS)
        self._met: set[int] = set()

    def ready(self, count: int) -> bool:
        """Whether so many new tokens may go this way now. A size met for the first time may not."""
        size = size_for(count)
        if size > self._most:
            return False
        met = size in self._met
        self._met.add(size)
        return met

    def __call__(self, row: Row, count: int) -> Tensor:
        """Feed the next `count` tokens of a request, whose features are there: logits [1, V].

        Nothing is waited for. The logits are good until any recording of the recorder is called.
        """
        start = row.stored
        size = size_for(count)
        self._memory.reach(int(row.places[: start + count].max()) + 1)
        recording = self._recording(size)
        numbers = torch.zeros(_HEAD + self._width + 3 * size, dtype=torch.int32)
        numbers[:3] = torch.tensor([start, start + count, count - 1])
        blocks = row.blocks[: -(-(start + count) // BLOCK_TOKENS)]
        numbers[_HEAD : _HEAD + len(blocks)] = torch.tensor(blocks)
        positions, places, ids = numbers[_HEAD + self._width :].view(3, size)
        torch.arange(start, start + count, out=positions[:count])
        places[:count] = row.places[start : start + count]
        places[count:] = -1
        ids[:count] = torch.tensor(row.ids(start, start + count))
        first, last = row.images(start, start + count)
        if last > first:
            assert row.features is not None, "features are fetched before the step"
            at = torch.tensor(row.image_at[first:last]) - start
            ids[at] = -1
            at = sent(at, self._features.device)
            self._features.index_copy_(0, at, row.features[first:last].to(self._features))
        if self._numbers.is_cuda:
            numbers = numbers.pin_memory()
        self._numbers[: len(numbers)].copy_(numbers, non_blocking=True)
        return recording()

    def warm_up(self, counts: Iterable[int]) -> None:
        """Record the sizes for so many new tokens now, as far as they are recorded at all."""
        self._memory.reach(1)
        sizes = {size_for(count) for count in counts if 0 < count <= self._most}
        for size in sorted(sizes, reverse=True):
            self._met.add(size)
            self._recording(size)

    def _recording(self, size: int) -> Recording:
        self._llama.lay_out()
        return self._recordings.of(size, self._memory.moves, lambda: self._made(size))

    def _made(self, size: int) -> Recording:
        # Recording makes the step a few times: for a text of no tokens, which writes nothing.
        self._numbers.zero_()
        places = slice(_HEAD + self._width + size, _HEAD + self._width + 2 * size)
        self._numbers[places] = -1
        return self._recorder.record(lambda: self._work(size))

    def _work(self, size: int) -> Tensor:
        """The step itself: logits [1, V]."""
        head, table = self._numbers[:_HEAD], self._numbers[_HEAD : _HEAD + self._width]
        positions, places, ids = self._numbers[_HEAD + self._width :][: 3 * size].view(3, size)
        words = self._llama.embed(ids.clamp(min=0))
        embeds = torch.where(ids.unsqueeze(1) < 0, self._features[:size], words)
        step = Prompt(positions, places, table, span=head[:2], last=head[2:3])
        return self._llama.prompt(embeds, step)
