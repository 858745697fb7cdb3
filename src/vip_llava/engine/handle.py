"""What a caller holds of a request: its events, its result, and cancellation.

This module knows no model and no engine; it is given the ways to wait and to cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vip_llava.engine.sequence import RequestOutput, Sequence, TokenEvent
from vip_llava.errors import RequestError

__all__ = ["Handle"]


class Handle(Iterator[TokenEvent]):
    """A submitted request. Iterate its events, take its `result`, or `cancel` it."""

    def __init__(
        self,
        sequence: Sequence,
        wait: Callable[[Callable[[], bool]], None],
        cancel: Callable[[Sequence], None],
    ) -> None:
        """`wait` returns once its argument is true; `cancel` ends a sequence."""
        self._sequence, self._wait, self._cancel = sequence, wait, cancel

    @property
    def done(self) -> bool:
        """Whether it finished, failed or was cancelled."""
        return self._sequence.done

    def __next__(self) -> TokenEvent:
        """Wait for the next token. Raises the error that ended the request, if one did."""
        seq = self._sequence
        self._wait(lambda: bool(seq.events) or seq.done)
        if seq.events:
            return seq.events.popleft()
        if seq.error is not None:
            raise seq.error
        raise StopIteration

    def result(self) -> RequestOutput:
        """Wait for the end; events that were not iterated remain.

        Raises the error that ended the request; RequestError for a cancelled one.
        """
        seq = self._sequence
        self._wait(lambda: seq.done)
        if seq.error is not None:
            raise seq.error
        if seq.finish_reason is None:
            raise RequestError("the request was cancelled")
        return seq.output()

    def cancel(self) -> None:
        """Cancel the request; its memory is freed before the next step. No-op once it is done."""
        self._cancel(self._sequence)
