"""The decode loop: prefill once, then one token a step for every row that still runs.

Rows are LEFT padded, each with its own positions, so that a row in a batch computes what it would
compute alone. Pictures enter in the prefill only. A finished row leaves the batch and the cache.

This module knows ids and tensors, never text (beyond a `decode` callable handed in for stop texts
and streaming), templates, pictures or HTTP.
Shape letters: B rows at the start, R rows still running, T padded prompt length, V vocabulary,
N views (pictures) of the whole batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from vip_llava.engine.detokenize import Decode, TextStream
from vip_llava.engine.sampling import Sampler, SamplingParams
from vip_llava.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Decoding", "FinishReason", "Generated", "TokenEvent", "check_room", "generate"]

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One step of one row: the token it chose and the text that became certain by it."""

    row: int
    token: int
    text: str
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Generated:
    """What one row generated. Times are seconds; `prefill_seconds` is the whole batch's."""

    tokens: tuple[int, ...]
    """The generated ids; a stop id that ended the row is not among them."""
    text: str
    """The text handed out, up to a stop text; '' where no `decode` was given."""
    finish_reason: FinishReason
    prompt_tokens: int
    max_new_tokens: int
    """The limit that held: what was asked, or less where the model's positions end sooner."""
    seed: int
    prefill_seconds: float
    decode_seconds: float


@dataclass(slots=True)
class _Row:
    """The growing state of one row of the batch."""

    index: int
    limit: int
    prompt_tokens: int
    seed: int
    stream: TextStream | None
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    finished_at: float = 0.0


def check_room(model: PreTrainedModel, prompt_tokens: int) -> int | None:
    """How many tokens still fit after a prompt (None: no limit known); `RequestError` if none."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return None
    room = int(positions) - prompt_tokens
    if room < 1:
        raise RequestError(
            f"the prompt has {prompt_tokens} tokens (pictures included) and the model holds "
            f"{positions} positions, which leaves no room for an answer; "
            f"shorten it by at least {1 - room} tokens"
        )
    return room


class Decoding:
    """One batch on its way. Iterating runs it: each item is the events of one step.

    `logits [R, V]` of the newest step and `running` (row numbers, in the order of `logits`) may be
    read between steps. Leaving the iteration early is fine; nothing runs in the background.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        inputs: Mapping[str, Tensor],
        params: Sequence[SamplingParams],
        stop_ids: Collection[int] = (),
        *,
        decode: Decode | None = None,
        stop_strings: Sequence[str] = (),
        trim: bool = False,
        suppress_ids: Collection[int] = (),
    ) -> None:
        """See `generate`."""
        _check(model, inputs, params)
        if decode is None and (stop_strings or any(row.stop for row in params)):
            raise ValueError("stop texts need a decode callable")
        self._model = model
        self._device = model.device
        self._stop_ids = frozenset(stop_ids)
        self._ids = inputs["input_ids"].to(self._device)
        self._pixels = _pixels(model, inputs.get("pixel_values"))
        mask = inputs["attention_mask"].bool().cpu()
        prompts = [
            ids[kept].tolist() for ids, kept in zip(inputs["input_ids"].cpu(), mask, strict=True)
        ]
        self._sampler = Sampler(params, prompts, self._device, suppress_ids)
        self.rows: list[_Row] = []
        for index, (row, prompt) in enumerate(zip(self._sampler.params, prompts, strict=True)):
            room = check_room(model, len(prompt))
            stream = decode and TextStream(decode, (*stop_strings, *row.stop), trim=trim)
            limit = row.max_new_tokens if room is None else min(row.max_new_tokens, room)
            assert row.seed is not None
            self.rows.append(_Row(index, limit, len(prompt), row.seed, stream or None))
        # Ones for every token to come: a step then only takes a longer slice.
        longest = max(row.limit for row in self.rows)
        self._mask = torch.nn.functional.pad(mask, (0, longest), value=True).to(self._device)
        self._pads = [int(count) for count in (~mask).sum(dim=1)]
        self._positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0).to(self._device)
        self._cache = DynamicCache(config=model.config.get_text_config())
        self.running = list(range(len(self.rows)))
        self.logits: Tensor | None = None
        self._began = self._first_token_at = 0.0

    def __iter__(self) -> Iterator[list[TokenEvent]]:
        """Run to the end; at most once."""
        if self._began:
            raise RuntimeError("this batch has been run")
        self._began = time.perf_counter()
        # The mode is entered anew for each step, so that it is never left on for the consumer.
        with torch.inference_mode():
            events = self._step(self._ids, pixel_values=self._pixels, positions=self._positions)
        self._pixels = None
        self._first_token_at = time.perf_counter()
        while True:
            yield events
            newest = [event.token for event in events]
            with torch.inference_mode():
                kept = self._drop_finished()
                if not kept:
                    return
                ids = torch.tensor([newest[i] for i in kept], device=self._device).unsqueeze(1)
                self._positions = self._positions[:, -1:] + 1
                events = self._step(ids, positions=self._positions)

    def _step(
        self, ids: Tensor, positions: Tensor, pixel_values: Tensor | None = None
    ) -> list[TokenEvent]:
        """Feed `ids [R, T or 1]`, choose a token for each row, and say what that did."""
        length = self._cache.get_seq_length() + ids.shape[1]
        padded = any(self._pads[row] for row in self.running)
        extra: dict[str, Any] = {} if pixel_values is None else {"pixel_values": pixel_values}
        output = self._model(
            input_ids=ids,
            # Without padding no mask is needed, and attention then takes its faster path.
            attention_mask=self._mask[:, :length].long() if padded else None,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            **extra,
        )
        self.logits = output.logits[:, -1].to(self._device)
        chosen = self._sampler(self.logits)
        return [
            self._take(self.rows[row], token)
            for row, token in zip(self.running, chosen, strict=True)
        ]

    def _take(self, row: _Row, token: int) -> TokenEvent:
        """Give a row its next token and find out whether the row ends with it."""
        text = ""
        if token in self._stop_ids:
            row.finish_reason = "stop"
        else:
            row.tokens.append(token)
            text = row.stream.push(token) if row.stream else ""
            if row.stream and row.stream.stopped:
                row.finish_reason = "stop"
            elif len(row.tokens) >= row.limit:
                row.finish_reason = "length"
        if row.finish_reason:
            row.finished_at = time.perf_counter()
            text += row.stream.finish() if row.stream else ""
        return TokenEvent(row.index, token, text, row.finish_reason)

    def _drop_finished(self) -> list[int]:
        """Shrink everything to the rows that still run; returns their former places."""
        kept = [at for at, row in enumerate(self.running) if self.rows[row].finish_reason is None]
        if len(kept) == len(self.running):
            return kept
        self.running = [self.running[at] for at in kept]
        if kept:
            places = torch.tensor(kept, device=self._device)
            self._cache.batch_select_indices(places)
            self._mask, self._positions = self._mask[places], self._positions[places]
            self._sampler.keep(kept)
        return kept

    def results(self) -> list[Generated]:
        """One `Generated` for each row in the order of the inputs; all rows must have ended."""
        if any(row.finish_reason is None for row in self.rows):
            raise RuntimeError("the batch has not been run to its end")
        return [
            Generated(
                tokens=tuple(row.tokens),
                text=row.stream.text if row.stream else "",
                finish_reason=row.finish_reason or "stop",
                prompt_tokens=row.prompt_tokens,
                max_new_tokens=row.limit,
                seed=row.seed,
                prefill_seconds=self._first_token_at - self._began,
                decode_seconds=max(0.0, row.finished_at - self._first_token_at),
            )
            for row in self.rows
        ]


def generate(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    params: Sequence[SamplingParams],
    stop_ids: Collection[int] = (),
    on_token: Callable[[TokenEvent], None] | None = None,
    *,
    decode: Decode | None = None,
    stop_strings: Sequence[str] = (),
    trim: bool = False,
    suppress_ids: Collection[int] = (),
) -> list[Generated]:
    """Generate for a batch; returns one `Generated` for each row, in order.

    model: a transformers VipLlava or Llava model in eval mode.
    inputs: `input_ids [B, T]` and `attention_mask [B, T]`, LEFT padded; `pixel_values [N, 3, S, S]`
        where the rows hold image tokens (views in row order).
    params: one for each row. stop_ids: end a row and are not part of it.
    on_token: called for each row at each step, in the calling thread.
    decode: ids to text; needed for `text`, for `stop_strings` (those of the template, for all rows)
        and for the stop texts of the params. trim: no white space at the ends of the text.
    suppress_ids: never chosen (the image token, for example).
    Errors: `RequestError` if a prompt leaves no room in the model's positions.
    """
    decoding = Decoding(
        model,
        inputs,
        params,
        stop_ids,
        decode=decode,
        stop_strings=stop_strings,
        trim=trim,
        suppress_ids=suppress_ids,
    )
    for events in decoding:
        if on_token is not None:
            for event in events:
                on_token(event)
    return decoding.results()


def _check(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], params: Sequence[SamplingParams]
) -> None:
    """Mistakes of the calling program; they raise so that `python -O` keeps them."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if ids.dim() != 2 or 0 in ids.shape or ids.shape != mask.shape:
        raise ValueError(f"input_ids {list(ids.shape)} and attention_mask {list(mask.shape)}")
    if len(params) != len(ids):
        raise ValueError(f"{len(params)} sampling parameters for {len(ids)} rows")
    if not mask[:, -1].all() or (mask[:, 1:] < mask[:, :-1]).any():
        raise ValueError("rows must be padded on the left")
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() first")


def _pixels(model: PreTrainedModel, pixels: Tensor | None) -> Tensor | None:
    """The pictures on the model's device, in the number type of its vision tower."""
    if pixels is None:
        return None
    tower = getattr(model.base_model, "vision_tower", model)
    dtypes = [p.dtype for p in tower.parameters() if p.dtype.is_floating_point]
    return pixels.to(device=model.device, dtype=dtypes[0] if dtypes else model.dtype)
