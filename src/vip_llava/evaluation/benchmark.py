"""The base class of benchmarks, and the items that a benchmark asks.

A `BenchmarkItem` is a question whose request is built when its turn comes, so that a benchmark of
any size holds no images. It does not know models, run directories or pages.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from vip_llava.errors import DataError, RequestError
from vip_llava.evaluation.results import AnswerScore, ResultRow, Score

if TYPE_CHECKING:
    from vip_llava.prompting.prepare import Request

__all__ = ["Benchmark", "BenchmarkItem", "BenchmarkOptions", "limit_per_group", "raising"]


@dataclass(frozen=True, slots=True)
class BenchmarkItem:
    """One question of a benchmark.

    build_request: may raise a `VipLlavaError`; then the item failed. expected, facts: JSON values,
    the right answer and what scores are broken down by. image: its name in the data, or "".
    """

    id: str
    group: str
    expected: Any
    build_request: Callable[[], Request] = field(repr=False)
    image: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def failed_row(self, reason: str, question: str = "") -> ResultRow:
        """The row of this item if it could not be asked; it counts as wrong."""
        return self.row(failed=reason, score=0.0, question=question)

    def row(self, **known: Any) -> ResultRow:
        """A row with this item's fields, and others of `ResultRow`."""
        facts = dict(self.facts)
        return ResultRow(self.id, self.group, self.expected, self.image, facts, **known)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkOptions:
    """What a user chooses about a benchmark; a benchmark ignores what has no meaning for it.

    images: the folder of the images, if it is not that of the data. groups: the groups to ask; all
    if empty. seed: of all random choices. alpha: opacity of marks, 0..255 (the original's
    evaluations use 128). question: replaces the benchmark's own. all_photos: also ask about photos
    that the default model was trained on.
    """

    images: Path | None = None
    groups: tuple[str, ...] = ()
    seed: int = 0
    alpha: int = 128
    question: str | None = None
    all_photos: bool = False


class Benchmark(ABC):
    """One benchmark over data in its own format.

    A new benchmark is a file with a subclass, and a line in `benchmarks.BENCHMARKS`.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    """One line for the help page."""
    needs: ClassVar[str]
    """What the data is: a file, or the names in a folder."""
    groups: ClassVar[tuple[str, ...]] = ()
    """The values of `BenchmarkOptions.groups`; empty if the benchmark has no groups."""
    max_new_tokens: ClassVar[int] = 128

    def __init__(self, data: Path, options: BenchmarkOptions) -> None:
        """Raises DataError if `data` is not what it needs, RequestError for unknown groups."""
        self.data, self.options = data, options
        unknown = [name for name in options.groups if name not in self.groups]
        if unknown:
            known = ", ".join(self.groups) or "none"
            raise RequestError(f"{self.name} has no group {unknown[0]!r}; its groups: {known}")
        if not data.exists():
            raise DataError(f"{data}: no such file or folder; {self.name} needs {self.needs}")

    @property
    def chosen(self) -> tuple[str, ...]:
        """The groups to ask, in the benchmark's order."""
        asked = self.options.groups
        return tuple(name for name in self.groups if not asked or name in asked)

    @abstractmethod
    def items(self) -> Sequence[BenchmarkItem]:
        """All items, always in the same order and with unique ids. Opens no image."""

    @abstractmethod
    def sources(self) -> Sequence[Path]:
        """The files that define the questions; a resumed run must find the same content."""

    @classmethod
    @abstractmethod
    def score(cls, expected: Any, answer: str) -> AnswerScore:
        """The score of one answer."""

    @classmethod
    @abstractmethod
    def aggregate(cls, rows: Sequence[ResultRow]) -> list[Score]:
        """The scores of a finished run, the most important one first."""

    @classmethod
    def export(cls, rows: Sequence[ResultRow], model: str) -> dict[str, str]:
        """Further files of a run in formats of other programs: name -> text."""
        return {}

    @classmethod
    def scored_row(cls, item: BenchmarkItem, answer: str, **known: Any) -> ResultRow:
        """The row of an item with its answer; `known`: further fields of `ResultRow`."""
        score = cls.score(item.expected, answer)
        return item.row(
            answer=answer, score=score.value, right=score.right, read=score.read, **known
        )


def raising(error: Exception) -> Callable[[], NoReturn]:
    """The `build_request` of an item that is known to be invalid."""

    def build() -> NoReturn:
        raise error

    return build


def limit_per_group(items: Iterable[BenchmarkItem], limit: int | None) -> list[BenchmarkItem]:
    """At most `limit` items of each group, evenly spaced over it, in the same order."""
    kept = list(items)
    if limit is None:
        return kept
    places: defaultdict[str, list[int]] = defaultdict(list)
    for place, item in enumerate(kept):
        places[item.group].append(place)
    chosen = {
        several[i * len(several) // min(limit, len(several))]
        for several in places.values()
        for i in range(min(limit, len(several)))
    }
    return [item for place, item in enumerate(kept) if place in chosen]
