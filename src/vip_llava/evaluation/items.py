"""What every benchmark is made of: items to ask, rows that come back, scores, and the base class.

An `Item` is one question that has not been built yet; a `Row` is what became of it and all that a
score or a page needs, so that both can be made again without model or data. It deliberately does
not know models, files of runs or pages.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from vip_llava.errors import DataError, RequestError
from vip_llava.prompting.prepare import Request

__all__ = ["Benchmark", "Item", "Options", "Row", "Score", "Verdict", "spread"]


@dataclass(frozen=True, slots=True)
class Item:
    """One question. `make` builds the request and may raise a `VipLlavaError`: then the item failed.

    expected, facts: JSON values; what is right, and what scores are broken down by. image: its name
    in the data, or an empty string.
    """

    id: str
    group: str
    expected: Any
    make: Callable[[], Request] = field(repr=False)
    image: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer is worth.

    score: 0..1, or None where only a later step (a judge, a corpus metric) can tell. right: for
    questions with right answers. read: what was understood of the answer (a letter, a number).
    """

    score: float | None
    right: bool | None = None
    read: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One item as it was asked, or why it could not be (`failed`). Everything in it is JSON."""

    id: str
    group: str
    expected: Any
    image: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    question: str = ""
    answer: str = ""
    score: float | None = None
    right: bool | None = None
    read: str | None = None
    failed: str | None = None
    regions: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    tokens: int = 0
    seed: int = 0
    finish_reason: str = ""
    shown: str = ""
    """The file of the drawn image in the run's folder, where one was kept."""

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Row:
        """The row of such an object. Raises DataError for missing or unknown keys."""
        known = {each.name for each in fields(cls)}
        unknown = sorted(set(value) - known)
        try:
            if unknown:
                raise TypeError(f"unknown key {unknown[0]!r}")
            lists = {key: tuple(value[key]) for key in ("regions", "notes") if key in value}
            return cls(**{**value, **lists})
        except TypeError as error:
            raise DataError(f"no row of an evaluation: {error}") from None


@dataclass(frozen=True, slots=True)
class Score:
    """One number of a benchmark: `value` with its 95 % interval, over `count` questions.

    kind: "share" (0..1, shown in percent) or "points" (as it is). axis: what `group` is one of
    ("shape", "capability", ...); a page draws one chart for each axis. failed: how many of `count` could
    not be asked; they count as wrong. method: how it was judged.
    """

    name: str
    group: str
    value: float | None
    count: int
    low: float | None = None
    high: float | None = None
    failed: int = 0
    kind: str = "share"
    axis: str = ""
    method: str = ""

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a person may choose about a benchmark; which of it has a meaning is up to the benchmark.

    images: the folder of images, if it is not the one of the data. groups: which of the groups, all
    if empty. seed: of everything drawn by lot. alpha: opacity of marks, 0..255 (the original's
    evaluations use 128). everything: also photos that the default model was trained on.
    """

    images: Path | None = None
    groups: tuple[str, ...] = ()
    seed: int = 0
    alpha: int = 128
    question: str | None = None
    everything: bool = False


class Benchmark(ABC):
    """One benchmark over data of its own format. A new one is a file with a subclass and its name in
    `benchmarks.BENCHMARKS`."""

    name: ClassVar[str]
    about: ClassVar[str]
    needs: ClassVar[str]
    """What the data is: a file or the names in a folder."""
    groups: ClassVar[tuple[str, ...]] = ()
    """What `Options.groups` may choose from; empty: no groups."""
    max_new_tokens: ClassVar[int] = 128

    def __init__(self, data: Path, options: Options) -> None:
        """Raises DataError where `data` is not what it needs, RequestError for unknown groups."""
        self.data, self.options = data, options
        unknown = [name for name in options.groups if name not in self.groups]
        if unknown:
            known = ", ".join(self.groups) or "none"
            raise RequestError(f"{self.name} has no group {unknown[0]!r}; known are {known}")
        if not data.exists():
            raise DataError(f"{data}: no such file or folder; {self.name} needs {self.needs}")

    @property
    def chosen(self) -> tuple[str, ...]:
        """The groups to ask, in the benchmark's order."""
        asked = self.options.groups
        return tuple(name for name in self.groups if not asked or name in asked)

    @abstractmethod
    def items(self) -> Sequence[Item]:
        """All items, in an order that never changes; ids are unique. No image is opened."""

    @abstractmethod
    def sources(self) -> Sequence[Path]:
        """The files that say what is asked; a run that is resumed must find the same ones."""

    @classmethod
    @abstractmethod
    def judge(cls, expected: Any, facts: Mapping[str, Any], answer: str) -> Verdict:
        """What one answer is worth."""

    @classmethod
    @abstractmethod
    def scores(cls, rows: Sequence[Row]) -> list[Score]:
        """The scores of finished rows, the most important one first."""

    @classmethod
    def files(cls, rows: Sequence[Row], model: str) -> dict[str, str]:
        """Further files of a run, name -> text, in formats that others read."""
        return {}


def spread(items: Iterable[Item], most: int | None) -> list[Item]:
    """At most `most` items of each group, evenly spread over it, in the same order."""
    kept = list(items)
    if most is None:
        return kept
    places: dict[str, list[int]] = {}
    for place, item in enumerate(kept):
        places.setdefault(item.group, []).append(place)
    chosen = {
        several[i * len(several) // most] if len(several) > most else several[i]
        for several in places.values()
        for i in range(min(most, len(several)))
    }
    return [item for place, item in enumerate(kept) if place in chosen]
