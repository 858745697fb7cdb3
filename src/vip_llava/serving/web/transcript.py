"""A conversation on the page: its turns, the columns of each, and the JSON that the browser is sent.

Plain values. Text of people and of models stays text here; the browser shows it as such.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from vip_llava.serving.web.asking import Told

__all__ = ["Column", "Talk", "Turn"]

State = Literal["waiting", "answering", "done", "stopped", "wrong"]


@dataclass(slots=True)
class Column:
    """What one model says to one question."""

    model: str
    text: str = ""
    state: State = "waiting"
    error: str = ""
    told: Told | None = None
    drawn: str | None = None
    """Address of the image as the model saw it."""
    vote: str | None = None

    @property
    def said(self) -> bool:
        """Whether it is part of what was said, so that later questions may follow on it."""
        return bool(self.text) and self.state in ("done", "stopped")

    def to_json(self) -> dict[str, Any]:
        """For the browser."""
        told = self.told
        return {
            "model": self.model,
            "text": self.text,
            "state": self.state,
            "error": self.error,
            "drawn": self.drawn,
            "vote": self.vote,
            "notes": list(told.notes) if told else [],
            "about": _about(told) if told else "",
            "prompt": told.prompt if told else "",
        }


def _about(told: Told) -> str:
    parts = [
        f"{told.completion_tokens} token{'s' * (told.completion_tokens != 1)} in {told.seconds:.1f} s",
        f"prompt {told.prompt_tokens} tokens",
    ]
    if told.finish_reason == "length":
        parts.append("ended at the limit of tokens")
    if told.seed is not None:
        parts.append(f"seed {told.seed}")
    return " · ".join(parts)


@dataclass(slots=True)
class Turn:
    """A question, and one column for each model asked."""

    number: int
    question: str
    """As it was typed, with <region:ID>."""
    worded: str
    """As the model reads it."""
    image: str | None
    regions: tuple[dict[str, Any], ...]
    columns: list[Column]
    share: dict[str, str] = field(default_factory=dict)
    """The request as texts to copy, by kind."""

    def to_json(self) -> dict[str, Any]:
        """For the browser."""
        return {
            "number": self.number,
            "question": self.question,
            "image": self.image,
            "regions": [
                {key: each[key] for key in ("id", "shape", "color")} for each in self.regions
            ],
            "columns": [column.to_json() for column in self.columns],
            "share": self.share,
        }


@dataclass(slots=True)
class Talk:
    """All turns so far."""

    turns: list[Turn] = field(default_factory=list)
    notice: str = ""
    """Something that the person has to know, most often why nothing was asked."""

    def history(self, index: int) -> tuple[tuple[str, str], ...]:
        """What was said in a column, as (role, text); questions without an answer are left out."""
        said: list[tuple[str, str]] = []
        for turn in self.turns:
            if index < len(turn.columns) and turn.columns[index].said:
                said += [("user", turn.worded), ("assistant", turn.columns[index].text)]
        return tuple(said)

    def to_json(self, *, votes: bool) -> dict[str, Any]:
        """For the browser. votes: whether answers may be voted on."""
        return {
            "turns": [turn.to_json() for turn in self.turns],
            "notice": self.notice,
            "votes": votes,
        }
