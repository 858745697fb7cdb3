"""What a caller holds of a request: its events, its result, and the way to give it up.

This module knows no model; it waits by the engine that it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vip_llava.engine.config import Generated
from vip_llava.engine.scheduler import Row, TokenEvent
from vip_llava.errors import RequestError

if TYPE_CHECKING:
    from vip_llava.engine.engine import Engine

__all__ = ["Handle"]


class Handle(Iterator[TokenEvent]):
    """A request that was submitted. Iterate its events, take its `result`, or `cancel` it."""

    def __init__(self, engine: Engine, row: Row) -> None:
        self._engine = engine
        self._row = row

    @property
    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._row.done

    def __next__(self) -> TokenEvent:
        """The next token, waiting for it. Raises the error that ended the request, if one did."""
        self._engine._wait(lambda: bool(self._row.events) or self._row.done)
        if self._row.events:
            return self._row.events.popleft()
        if self._row.error is not None:
            raise self._row.error
        raise StopIteration

    def result(self) -> Generated:
        """Wait to the end; events not yet iterated stay for iterating.

        Raises the error that ended the request; RequestError for a cancelled one.
        """
        row = self._row
        self._engine._wait(lambda: row.done)
        if row.error is not None:
            raise row.error
        if row.finish_reason is None:
            raise RequestError("the request was cancelled")
        return Generated(
            tokens=tuple(row.tokens),
            text=row.stream.text if row.stream else "",
            finish_reason=row.finish_reason,
            prompt_tokens=len(row.prompt),
            cached_tokens=row.cached,
            max_new_tokens=row.limit,
            seed=row.sampling.params.seed or 0,
            prefill_seconds=row.first_token_at - row.arrived_at,
            decode_seconds=row.finished_at - row.first_token_at,
            logprobs=None if row.sampling.params.logprobs is None else tuple(row.logprobs),
        )

    def cancel(self) -> None:
        """Give it up; its memory is free before the next step. Does nothing once it is done."""
        self._engine._cancel(self._row)
