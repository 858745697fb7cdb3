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
    on_row: Callable[[ResultRow], None] | None = None,
) -> RunResult:
    """Ask the items of a benchmark and write the run directory `output`; resumes a run there.

    items: those of `select_items(benchmark, limit)`, if the caller has them already. sampling: as
    for `Assistant.ask`; greedy by default. max_failed: how many rows may fail, as a count or a
    proportion below 1; with more the run stops with a DataError, and keeps its rows. command: the
    command line, to record it. on_row: called for each new row.
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
    recorder = _Recorder(directory, benchmark, list(known.values()), failures)
    began = time.perf_counter()
    builders = [item.build_request for item in left]
    try:
        for index, outcome in ask_each(
            assistant, builders, batch_size=batch_size, sampling=sampling
        ):
            row = known[left[index].id] = recorder.add(left[index], outcome)
            if on_row is not None:
                on_row(row)
            recorder.check(row)
    finally:
        directory.add_seconds(time.perf_counter() - began)
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


class _Recorder:
    """Turns outcomes into rows, and appends each to the run directory."""

    def __init__(
        self,
        directory: RunDirectory,
        benchmark: Benchmark,
        before: Sequence[ResultRow],
        failures: Failures,
    ) -> None:
        self._directory, self._benchmark, self._failures = directory, benchmark, failures
        self._shown = Counter((row.group, row.right) for row in before if row.shown)
        failures.seen(len(before))

    def add(self, item: BenchmarkItem, outcome: Outcome) -> ResultRow:
        """Record the outcome of an item; `check` then tells whether too many failed."""
        if isinstance(outcome.answer, VipLlavaError):
            row = item.failed_row(str(outcome.answer), outcome.question)
        else:
            row = self._scored_row(item, outcome.question, outcome.answer)
        self._directory.append(row)
        return row

    def check(self, row: ResultRow) -> None:
        """Raises DataError if too many rows failed."""
        self._failures.seen()
        if row.failed is not None:
            self._failures.add(row.group or "questions", row.id, row.failed)

    def _scored_row(self, item: BenchmarkItem, question: str, answer: Answer) -> ResultRow:
        row = self._benchmark.scored_row(
            item,
            answer.text,
            question=question,
            regions=[region.to_json() for region in answer.regions],
            notes=list(answer.notes),
            tokens=answer.usage.completion_tokens,
            seed=self._benchmark.options.seed,
            finish_reason=answer.finish_reason,
        )
        if answer.image is None or self._shown[row.group, row.right] >= _SHOWN:
            return row
        self._shown[row.group, row.right] += 1
        return replace(row, shown=self._directory.save_image(answer.image, item.id))
