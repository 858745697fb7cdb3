"""`Transcript`: a conversation on the page - its exchanges, and the JSON that the browser receives.

Plain values. Texts of visitors and models are never interpreted as markup, here or in the browser.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from vip_llava.serving.web.asking import Reply

__all__ = ["Exchange", "ModelAnswer", "Transcript"]

State = Literal["waiting", "answering", "done", "stopped", "failed"]


@dataclass(slots=True)
class ModelAnswer:
    """The answer of one model to one question."""

    model: str
    text: str = ""
    state: State = "waiting"
    error: str = ""
    reply: Reply | None = None
    drawn: str | None = None
    """URL of the image as the model saw it."""
    vote: str | None = None

    @property
    def in_history(self) -> bool:
        """Whether later questions include it as history."""
        return bool(self.text) and self.state in ("done", "stopped")

    @property
    def running(self) -> bool:
        """Whether the model has not finished."""
        return self.state in ("waiting", "answering")

    def to_json(self) -> dict[str, Any]:
        """For the browser."""
        reply = self.reply
        return {
            "model": self.model,
            "text": self.text,
            "state": self.state,
            "error": self.error,
            "drawn": self.drawn,
            "vote": self.vote,
            "notes": list(reply.notes) if reply else [],
            "about": _summary(reply) if reply else "",
            "prompt": reply.prompt if reply else "",
        }


def _summary(reply: Reply) -> str:
    tokens = reply.completion_tokens
    parts = [
        f"{tokens} token{'s' * (tokens != 1)} in {reply.seconds:.1f} s",
        f"prompt {reply.prompt_tokens} tokens",
    ]
    if reply.finish_reason == "length":
        parts.append("token limit reached")
    if reply.seed is not None:
        parts.append(f"seed {reply.seed}")
    return " · ".join(parts)


@dataclass(slots=True)
class Exchange:
    """A question, and one answer of each model."""

    number: int
    question: str
    """As typed, with <region:ID>."""
    worded: str
    """As the model reads it."""
    image: str | None
    """Id of the image in the store."""
    regions: tuple[dict[str, Any], ...]
    answers: list[ModelAnswer]
    share: dict[str, str] = field(default_factory=dict)
    """The request as texts to copy, by format."""

    @property
    def running(self) -> bool:
        """Whether any model has not finished."""
        return any(answer.running for answer in self.answers)

    def to_json(self) -> dict[str, Any]:
        """For the browser."""
        return {
            "number": self.number,
            "question": self.question,
            "image": self.image,
            "regions": [
                {key: each[key] for key in ("id", "shape", "color")} for each in self.regions
            ],
            "answers": [answer.to_json() for answer in self.answers],
            "share": self.share,
        }


@dataclass(slots=True)
class Transcript:
    """All exchanges of a conversation."""

    exchanges: list[Exchange] = field(default_factory=list)
    notice: str = ""
    """A message to the visitor, mostly why a question was not sent."""

    @property
    def running(self) -> bool:
        """Whether any answer is not finished."""
        return any(exchange.running for exchange in self.exchanges)

    def history(self, index: int) -> tuple[tuple[str, str], ...]:
        """The conversation with the model at `index`, as (role, text), without failed answers."""
        turns: list[tuple[str, str]] = []
        for exchange in self.exchanges:
            if index < len(exchange.answers) and exchange.answers[index].in_history:
                turns += [("user", exchange.worded), ("assistant", exchange.answers[index].text)]
        return tuple(turns)

    def to_json(self, *, votes: bool) -> dict[str, Any]:
        """For the browser. votes: whether answers can be voted on."""
        return {
            "exchanges": [exchange.to_json() for exchange in self.exchanges],
            "notice": self.notice,
            "votes": votes,
        }
