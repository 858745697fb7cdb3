"""The interface between `Assistant` and what answers: one class a backend implements.

A backend prepares a request in its own way (with token ids and pixels, or with drawn images only),
takes prepared requests from any thread, and returns completions. This module does not know any
backend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from vip_llava.prompting.prepare import Prepared, Request
    from vip_llava.sampling_params import SamplingParams

__all__ = ["Backend", "Completion", "ModelInfo", "PendingCompletion", "TokenLogprob"]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model of a backend; None where a backend does not know."""

    name: str
    architecture: str | None = None
    parameters: int | None = None
    dtype: str | None = None
    device: str | None = None
    template: str | None = None
    tokens_per_view: int | None = None
    """Tokens that one view of an image takes in the prompt."""
    max_positions: int | None = None
    """Prompt and answer together hold at most this many tokens."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability, before penalties and temperature."""

    token: int
    text: str
    logprob: float
    best: tuple[TokenLogprob, ...] = ()
    """The most probable tokens at its position, best first, as many as were requested."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; "best" only if it was requested."""
        values: dict[str, Any] = {"token": self.token, "text": self.text, "logprob": self.logprob}
        return {**values, "best": [each.to_json() for each in self.best]} if self.best else values


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model generated for one request. Times are seconds."""

    text: str
    """Without surrounding white space, stop strings and control tokens."""
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    seed: int
    prefill_seconds: float
    """From submission to the first token, time in the queue included."""
    decode_seconds: float
    logprobs: tuple[TokenLogprob, ...] | None = None
    notes: tuple[str, ...] = ()


class PendingCompletion(Protocol):
    """A submitted request. Iterating it yields pieces of text as they are generated."""

    @property
    def done(self) -> bool:
        """Whether it has ended: complete, failed or cancelled."""

    def __iter__(self) -> Iterator[str]: ...

    def result(self) -> Completion:
        """Wait for the end. Raises the error that ended it; RequestError if it was cancelled."""

    def cancel(self) -> None:
        """Stop generating. Does nothing once the request is done."""


class Backend(Protocol):
    """A model that answers prepared requests. Methods may be called by any thread."""

    @property
    def info(self) -> ModelInfo:
        """What was loaded."""

    def prepare(self, request: Request, sampling: SamplingParams) -> Prepared:
        """Everything up to the model's input. Raises what is wrong with the request."""

    def submit(
        self, prepared: Prepared, on_event: Callable[[Any], None] | None = None
    ) -> PendingCompletion:
        """Queue a prepared request.

        Args:
            on_event: called for each token or piece of text as it is generated, by a thread of the
                backend; must not block.
        """

    def wait_any(self, pending: Sequence[Any]) -> None:
        """Return once at least one of these submitted requests is done."""
