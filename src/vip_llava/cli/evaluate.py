"""`vip-llava eval NAME`: ask a model the questions of a benchmark and score its answers.

Each benchmark of the registry is a verb of the group `eval`; all have the same options.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vip_llava.cli.evaluate_options import QuestionOptions, RunOptions, WriteOptions
from vip_llava.cli.inputs import open_assistant
from vip_llava.cli.model_options import DebugFlag, ModelOptions, option_name
from vip_llava.cli.terminal import counting, loading, note
from vip_llava.errors import RequestError
from vip_llava.evaluation.benchmarks import BENCHMARKS, benchmark_class, open_benchmark

if TYPE_CHECKING:
    from vip_llava.assistant import Assistant
    from vip_llava.evaluation.benchmark import Benchmark, BenchmarkItem
    from vip_llava.evaluation.results import Score
    from vip_llava.evaluation.run import RunResult

__all__ = ["BENCHMARKS", "BenchmarkHelp", "benchmark_verb", "epilog", "show"]

_HELP = """Every question is asked once. A question that cannot be asked is reported and counts as \
wrong; it is never replaced. The scores with their 95 % intervals go to stdout."""


class BenchmarkHelp:
    """A command that reads its help from the class of its benchmark, and only if it is shown.

    Importing the classes takes longer than the start of the program.
    """

    name: str

    @property
    def help(self) -> str:
        return f"{benchmark_class(self.name).about}\n\n{_HELP}"

    @help.setter
    def help(self, value: object) -> None:
        pass


def epilog(benchmark: str) -> str:
    """The example in the help of a benchmark."""
    words = f"vip-llava eval {benchmark} --data {benchmark} --limit 2 -o runs/{benchmark}"
    return f"Examples\n\n  {words}\n"


def benchmark_verb(benchmark: str) -> Callable[..., None]:
    """The verb of one benchmark; the options are the same for all."""

    def verb(
        ctx: typer.Context,
        *,
        data: Annotated[
            Path,
            typer.Option(
                "--data", "--question-file", metavar="PATH", help="The benchmark's folder or file."
            ),
        ],
        questions: QuestionOptions,
        running: RunOptions,
        writing: WriteOptions,
        model: ModelOptions,
        debug: DebugFlag = False,
    ) -> None:
        writing.check()
        if running.weights is not None and model.model is not None:
            raise RequestError("--weights are for the default model; leave --model out")
        opened, items = _open(benchmark, data, questions)
        assistant = _assistant(running, model)
        with _run_directory(writing.output) as directory:
            try:
                scores = _run(
                    assistant, opened, items, directory, questions.limit, running, _typed(ctx)
                )
            except KeyboardInterrupt:
                if writing.output is not None:
                    note(f"interrupted; the same command resumes the run in {writing.output}")
                raise
            _write(directory, writing)
        show(scores)

    verb.__name__ = benchmark.replace("-", "_")
    return verb


def _typed(ctx: typer.Context) -> list[str]:
    """The command line as it was typed."""
    state = ctx.obj if isinstance(ctx.obj, dict) else {}
    return ["vip-llava", *map(str, state.get("argv", ()))]


def _open(name: str, data: Path, chosen: QuestionOptions) -> tuple[Benchmark, list[BenchmarkItem]]:
    """The benchmark and its items; mistakes are found before a model is opened."""
    from vip_llava.evaluation.benchmark import BenchmarkOptions
    from vip_llava.evaluation.run import select_items

    options = BenchmarkOptions(
        images=chosen.images.expanduser() if chosen.images is not None else None,
        groups=chosen.names(benchmark_class(name).groups),
        seed=chosen.seed,
        alpha=chosen.alpha,
        question=chosen.question,
        all_photos=chosen.all_photos,
    )
    benchmark = open_benchmark(name, data.expanduser(), options)
    items = select_items(benchmark, chosen.limit)
    for group, number in Counter(item.group for item in items).items():
        note(f"{group or name}: {number} questions")
    return benchmark, items


def _assistant(running: RunOptions, options: ModelOptions) -> Assistant:
    """The model, or the default model with other trained weights."""
    weights = running.weights
    if weights is None:
        return open_assistant(options, {})
    chosen = options.keywords()
    refused = sorted(chosen.keys() - {"device", "dtype"})
    if refused:
        raise RequestError(f"--weights can't be combined with {option_name(refused[0])}")
    with loading(f"opening {weights}") as progress:
        from vip_llava.assistant import Assistant
        from vip_llava.backends.native import NativeBackend
        from vip_llava.models.default.build import load_default
        from vip_llava.models.placement import Placement

        place = Placement.resolve(chosen.get("dtype", "auto"), chosen.get("device"), None, None)
        parts = load_default(
            dtype=place.dtype,
            device=place.device,
            weights=weights.expanduser(),
            progress=progress,
        )
        return Assistant(NativeBackend(*parts, name=str(weights)))


@contextlib.contextmanager
def _run_directory(output: Path | None) -> Iterator[Path]:
    """The directory of the run; a temporary one without --output."""
    if output is not None:
        yield output.expanduser()
        return
    with tempfile.TemporaryDirectory(prefix="vip-llava-eval-") as temporary:
        yield Path(temporary) / "run"


def _run(
    assistant: Assistant,
    benchmark: Benchmark,
    items: Sequence[BenchmarkItem],
    directory: Path,
    limit: int | None,
    running: RunOptions,
    command: Sequence[str],
) -> Sequence[Score]:
    from vip_llava.evaluation.run import run

    with counting(benchmark.name, "questions") as progress:
        done = 0

        def count(*_: object) -> None:
            nonlocal done
            done += 1
            progress(done, len(items))

        result = run(
            assistant,
            benchmark,
            directory,
            items=items,
            limit=limit,
            batch_size=running.batch_size,
            max_failed=running.max_failed_rows,
            command=command,
            on_row=count,
        )
    _summarize(result, len(items))
    return result.scores


def _summarize(result: RunResult, count: int) -> None:
    """A few lines about the run on stderr."""
    if result.asked < count:
        note(f"{count - result.asked} of {count} answers were already in the run directory")
    failed = [row for row in result.rows if row.failed is not None]
    for row in failed[:5]:
        note(f"failed: {row.id}: {row.failed}")
    if failed:
        note(f"{len(failed)} of {count} questions could not be asked; they count as wrong")
    if result.asked:
        note(f"{result.asked} questions in {result.seconds:.1f} s")


def _write(directory: Path, writing: WriteOptions) -> None:
    """Write the JSON file and the page, if they were asked for."""
    if writing.json_file is not None:
        from vip_llava.evaluation.run_directory import RunDirectory

        content = {
            "scores": json.loads((directory / "scores.json").read_text("utf-8")),
            "answers": [asdict(row) for row in RunDirectory.open(directory).rows()],
        }
        writing.json_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if writing.html_file is not None:
        from vip_llava.evaluation.report.page import render_page

        writing.html_file.write_text(render_page([directory]), encoding="utf-8")
    for path in (writing.json_file, writing.html_file, writing.output):
        if path is not None:
            note(f"written: {path}")


def show(scores: Sequence[Score]) -> None:
    """Print the scores as tables on stdout, one line per group, with their 95 % intervals."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from vip_llava.evaluation.tables import score_tables

    # A file or a pipe has no width; a narrow terminal wraps within a cell and cuts nothing.
    width = None if sys.stdout.isatty() else 200
    for head, lines in score_tables(scores):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for number, title in enumerate(head):
            table.add_column(title, justify="right" if number else "left", overflow="fold")
        for line in lines:
            table.add_row(*line)
        Console(file=sys.stdout, width=width).print(table)
