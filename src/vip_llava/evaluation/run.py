"""Runs a benchmark: asks the questions without an answer yet, scores them, and keeps every row.

A question that fails is recorded with its reason and counts as wrong. It prints nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vip_llava.backends.native import as_native
from vip_llava.data.failures import Failures
from vip_llava.errors import DataError, VipLlavaError
from vip_llava.evaluation.asking import Outcome, ask_each
from vip_llava.evaluation.benchmark import Benchmark, BenchmarkItem, limit_per_group
from vip_llava.evaluation.provenance import file_hashes, run_provenance, weights_fingerprint
from vip_llava.evaluation.results import ResultRow, Score
from vip_llava.evaluation.run_directory import RunDirectory, slug

if TYPE_CHECKING:
    from vip_llava.answer import Answer
    from vip_llava.assistant import Assistant

__all__ = ["RunResult", "run", "select_items"]

_SHOWN = 6  # images to keep of right answers, and of wrong ones, in each group
_ROWS_PER_WRITE = 32
_SECONDS_PER_WRITE = 5.0

OnRow = Callable[[ResultRow, "Answer | None"], None]
"""Called for each new row with its complete answer, or None for a row that failed."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run. asked: how many rows this call added to the directory."""

    rows: tuple[ResultRow, ...]
    scores: tuple[Score, ...]
    asked: int
    seconds: float


def select_items(benchmark: Benchmark, limit: int | None = None) -> list[BenchmarkItem]:
    """The items to ask, at most `limit` of each group.

    Raises DataError if there are none, or if an id is not unique.
    """
    items = limit_per_group(benchmark.items(), limit)
    if not items:
        raise DataError(f"{benchmark.data}: no questions for {benchmark.name}")
    counts = Counter(item.id for item in items)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise DataError(f"{benchmark.data}: the id {repeated[0]!r} is not unique")
    return items


def run(
    assistant: Assistant,
    benchmark: Benchmark,
    output: Path,
    *,
    items: Sequence[BenchmarkItem] | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    sampling: Mapping[str, Any] | None = None,
    max_failed: int | float = 0.05,
    command: Sequence[str] = (),
    on_row: OnRow | None = None,
) -> RunResult:
    """Ask the items of a benchmark and write the run directory `output`; resumes a run there.

    items: those of `select_items(benchmark, limit)`, if the caller has them already. sampling: as
    for `Assistant.ask`; greedy by default. max_failed: how many rows may fail, as a count or a
    proportion below 1; with more the run stops with a DataError, and keeps its rows. command: the
    command line, to record it.
    """
    wanted = list(items) if items is not None else select_items(benchmark, limit)
    sampling = {"max_new_tokens": benchmark.max_new_tokens, **(sampling or {})}
    config = {
        "benchmark": benchmark.name,
        "data": file_hashes(benchmark.sources()),
        "groups": list(benchmark.chosen),
        "limit": limit,
        "seed": benchmark.options.seed,
        "alpha": benchmark.options.alpha,
        "question": benchmark.options.question,
        "all_photos": benchmark.options.all_photos,
        "sampling": sampling,
        **_model_config(assistant),
    }
    directory = RunDirectory.create_or_resume(output, config, run_provenance(command))
    # Failed rows are asked again: a missing image may have been added.
    known = {row.id: row for row in directory.rows() if row.failed is None}
    left = [item for item in wanted if item.id not in known]
    failures = _failures(max_failed, len(wanted))
    writer = _Writer(directory, benchmark, list(known.values()), failures, on_row)
    began = time.perf_counter()
    try:
        requests = [item.build_request for item in left]
        for index, outcome in ask_each(
            assistant, requests, batch_size=batch_size, sampling=sampling
        ):
            writer.add(left[index], outcome)
    finally:
        writer.flush()
    known.update((row.id, row) for row in writer.rows)
    rows = [known[item.id] for item in wanted]
    scores = benchmark.aggregate(rows)
    if left:
        directory.discard_judged_scores()
    directory.finish(rows, scores, benchmark.export(rows, slug(assistant.info.name)))
    return RunResult(tuple(rows), tuple(scores), len(left), time.perf_counter() - began)


def _model_config(assistant: Assistant) -> dict[str, Any]:
    """What distinguishes one model from another, its weights included."""
    info = assistant.info
    return {
        "model": info.name,
        "architecture": info.architecture,
        "parameters": info.parameters,
        "dtype": info.dtype,
        "template": info.template,
        "weights": weights_fingerprint(as_native(assistant.backend).model),
    }


def _failures(max_failed: int | float, rows: int) -> Failures:
    """A proportion is one of all rows, so that early failures do not end a run."""
    if isinstance(max_failed, float) and 0 < max_failed < 1:
        return Failures(max(1, int(max_failed * rows)))
    return Failures(max_failed)


class _Writer:
    """Turns outcomes into rows, and writes them to the directory in groups."""

    def __init__(
        self,
        directory: RunDirectory,
        benchmark: Benchmark,
        before: Sequence[ResultRow],
        failures: Failures,
        on_row: OnRow | None,
    ) -> None:
        self._directory, self._benchmark = directory, benchmark
        self._failures, self._on_row = failures, on_row
        self.rows: list[ResultRow] = []
        self._unwritten: list[ResultRow] = []
        self._last_write = time.perf_counter()
        self._shown = Counter((row.group, row.right) for row in before if row.shown)
        failures.seen(len(before))

    def add(self, item: BenchmarkItem, outcome: Outcome) -> None:
        """Add the row of an item. Raises DataError if too many rows failed."""
        answer = None if isinstance(outcome.answer, VipLlavaError) else outcome.answer
        if answer is None:
            row = item.failed_row(str(outcome.answer), outcome.question)
        else:
            row = self._scored_row(item, outcome.question, answer)
        self.rows.append(row)
        self._unwritten.append(row)
        waited = time.perf_counter() - self._last_write
        if len(self._unwritten) >= _ROWS_PER_WRITE or waited > _SECONDS_PER_WRITE:
            self.flush()
        if self._on_row is not None:
            self._on_row(row, answer)
        self._failures.seen()
        if row.failed is not None:
            self._failures.add(row.group or "questions", row.id, row.failed)

    def flush(self) -> None:
        """Write the rows that are not on disk yet."""
        now = time.perf_counter()
        if self._unwritten:
            self._directory.append(self._unwritten, now - self._last_write)
        self._unwritten, self._last_write = [], now

    def _scored_row(self, item: BenchmarkItem, question: str, answer: Answer) -> ResultRow:
        row = self._benchmark.scored_row(
            item,
            answer.text,
            question=question,
            regions=tuple(region.to_json() for region in answer.regions),
            notes=tuple(answer.notes),
            tokens=answer.usage.completion_tokens,
            seed=self._benchmark.options.seed,
            finish_reason=answer.finish_reason,
        )
        if answer.image is None or self._shown[row.group, row.right] >= _SHOWN:
            return row
        self._shown[row.group, row.right] += 1
        return replace(row, shown=self._directory.save_image(answer.image, item.id))
