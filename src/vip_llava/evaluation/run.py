"""Runs a benchmark: asks what has not been asked yet, judges, keeps every row, scores.

Questions come from a benchmark and answers from a model; this module brings them together and makes
sure that nothing is lost or replaced on the way. It prints nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vip_llava.backends.native import as_native
from vip_llava.data.failures import Failures
from vip_llava.errors import DataError, RequestError, VipLlavaError
from vip_llava.evaluation.asking import Asked, ask_each
from vip_llava.evaluation.identity import about_run, about_sources, fingerprint
from vip_llava.evaluation.items import Benchmark, Item, Row, Score, spread
from vip_llava.evaluation.run_directory import RunFolder, slug

if TYPE_CHECKING:
    from vip_llava.answer import Answer
    from vip_llava.assistant import Assistant

__all__ = ["Result", "items_of", "run"]

_SHOWN = 6  # images kept of right answers, and of wrong ones, in each group
_EVERY = 32  # rows between two writes
_PAUSE = 5.0  # seconds after which rows are written in any case


@dataclass(frozen=True, slots=True)
class Result:
    """A finished run."""

    rows: tuple[Row, ...]
    scores: tuple[Score, ...]
    asked: int
    """How many rows this call asked; the others were in the folder."""
    seconds: float


def items_of(benchmark: Benchmark, most: int | None = None) -> list[Item]:
    """The items to ask: at most `most` of each group. Raises DataError for none, or for an id twice."""
    items = spread(benchmark.items(), most)
    if not items:
        raise DataError(f"{benchmark.data}: nothing to ask for {benchmark.name}")
    twice = [name for name, times in Counter(item.id for item in items).items() if times > 1]
    if twice:
        raise DataError(f"{benchmark.data}: the id {twice[0]!r} comes more than once")
    return items


def run(
    assistant: Assistant,
    benchmark: Benchmark,
    folder: Path,
    *,
    items: Sequence[Item] | None = None,
    most: int | None = None,
    batch_size: int = 8,
    sampling: Mapping[str, Any] | None = None,
    max_failed: int | float = 0.05,
    command: Sequence[str] = (),
    on_row: Callable[[Row, Answer | None], None] | None = None,
) -> Result:
    """Ask every item of a benchmark and write the run's folder; a stopped run goes on.

    items: of `items_of(benchmark, most)`, if they are there already. sampling: as for
    `Assistant.ask`; greedy by default. max_failed: a number or share of rows that may fail before the
    run stops with DataError; what has been asked until then is kept. command: as it was typed.
    on_row: gets each new row with its whole answer.
    """
    wanted = list(items) if items is not None else items_of(benchmark, most)
    given = {"max_new_tokens": benchmark.max_new_tokens, **(sampling or {})}
    asked = {
        "benchmark": benchmark.name,
        "data": about_sources(benchmark.sources()),
        "groups": list(benchmark.chosen),
        "most": most,
        "seed": benchmark.options.seed,
        "alpha": benchmark.options.alpha,
        "question": benchmark.options.question,
        "everything": benchmark.options.everything,
        "sampling": given,
        "model": assistant.info.name,
        **about_model(assistant),
    }
    place = RunFolder.begin(folder, asked, about_run(command))
    # What failed before is tried again: the missing image may be there by now.
    known = {row.id: row for row in place.rows() if row.failed is None}
    left = [item for item in wanted if item.id not in known]
    limit = allowed(max_failed, len(wanted))
    writer = _Writer(place, list(known.values()), Failures(limit), on_row)
    began = time.perf_counter()
    try:
        answers = ask_each(
            assistant, [item.make for item in left], batch_size=batch_size, sampling=given
        )
        for index, found in answers:
            writer.take(left[index], found, benchmark)
    finally:
        writer.flush()
    known.update((row.id, row) for row in writer.rows)
    rows = [known[item.id] for item in wanted]
    scores = type(benchmark).scores(rows)
    model = slug(assistant.info.name)
    if left:
        place.forget_grades()
    place.finish(rows, scores, type(benchmark).files(rows, model))
    return Result(tuple(rows), tuple(scores), len(left), time.perf_counter() - began)


def about_model(assistant: Assistant) -> dict[str, Any]:
    """What tells one model from another, its weights included."""
    info = assistant.info
    return {
        "architecture": info.architecture,
        "parameters": info.parameters,
        "dtype": info.dtype,
        "template": info.template,
        "weights": fingerprint(as_native(assistant.backend).model),
    }


def allowed(max_failed: int | float, rows: int) -> int:
    """How many of so many rows may fail; a share allows at least one. Raises RequestError."""
    if isinstance(max_failed, bool) or max_failed < 0:
        raise RequestError(f"max_failed: {max_failed!r}; a number of rows or a share below 1")
    if isinstance(max_failed, int):
        return max_failed
    if max_failed >= 1:
        raise RequestError(f"max_failed: {max_failed!r}; a share is below 1, a number is whole")
    return max(1, int(max_failed * rows)) if max_failed else 0


class _Writer:
    """Turns answers into rows and writes them now and then."""

    def __init__(
        self,
        folder: RunFolder,
        before: Sequence[Row],
        failures: Failures,
        on_row: Callable[[Row, Answer | None], None] | None,
    ) -> None:
        self._folder, self._failures, self._on_row = folder, failures, on_row
        self.rows: list[Row] = []
        self._unwritten: list[Row] = []
        self._since = time.perf_counter()
        self._shown = Counter((row.group, row.right) for row in before if row.shown)
        failures.seen(len(before))

    def take(self, item: Item, asked: Asked, benchmark: Benchmark) -> None:
        """One more answer. Raises DataError where too many rows failed."""
        row, said = self._row(item, asked, benchmark)
        self.rows.append(row)
        self._unwritten.append(row)
        if len(self._unwritten) >= _EVERY or time.perf_counter() - self._since > _PAUSE:
            self.flush()
        if self._on_row is not None:
            self._on_row(row, said)
        self._failures.seen()
        if row.failed is not None:
            self._failures.add(row.group or "questions", row.id, row.failed)

    def flush(self) -> None:
        """Write what has not been written."""
        now = time.perf_counter()
        if self._unwritten:
            self._folder.add(self._unwritten, now - self._since)
        self._unwritten, self._since = [], now

    def _row(self, item: Item, asked: Asked, benchmark: Benchmark) -> tuple[Row, Answer | None]:
        answer = asked.answer
        known: dict[str, Any] = {
            "id": item.id,
            "group": item.group,
            "expected": item.expected,
            "image": item.image,
            "facts": dict(item.facts),
            "question": asked.question,
        }
        if isinstance(answer, VipLlavaError):
            return Row(**known, failed=str(answer), score=0.0), None
        verdict = type(benchmark).judge(item.expected, item.facts, answer.text)
        shown = ""
        if answer.image is not None and self._shown[item.group, verdict.right] < _SHOWN:
            self._shown[item.group, verdict.right] += 1
            shown = self._folder.keep_image(answer.image, item.id)
        row = Row(
            **known,
            answer=answer.text,
            score=verdict.score,
            right=verdict.right,
            read=verdict.read,
            regions=tuple(region.to_json() for region in answer.regions),
            notes=tuple(answer.notes),
            tokens=answer.usage.completion_tokens,
            seed=benchmark.options.seed,
            finish_reason=answer.finish_reason,
            shown=shown,
        )
        return row, answer
