"""`vip-llava eval NAME`: ask a model the questions of a benchmark and score its answers.

Each benchmark is a verb of the group `eval`, all with the same options; without a name it is `marked`.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from vip_llava.cli.evaluate_options import QuestionOptions, RunOptions, WriteOptions
from vip_llava.cli.prepare import open_assistant
from vip_llava.cli.settings import DebugFlag, ModelOptions, option_name
from vip_llava.cli.terminal import counting, loading, note
from vip_llava.errors import RequestError

if TYPE_CHECKING:
    from vip_llava.assistant import Assistant
    from vip_llava.evaluation.items import Benchmark, Item, Score
    from vip_llava.evaluation.run import Result

__all__ = ["ABOUT", "EvalGroup", "benchmark_verb", "epilog", "show"]

#: Benchmark -> what its example adds to `vip-llava eval NAME --data NAME --output runs/NAME`.
_EXAMPLES = {
    "vcr": "--groups qa",
    "vip-bench": "--groups human",
    "shapes": "--all --most 1 --groups box,arrow,control",
    "recognition": "--all --most 2",
}
_MARKED = """Examples

  vip-llava eval --data labelled

  vip-llava eval marked --data labelled --groups box,arrow,control --most 4 --html seen.html

  vip-llava eval marked --data labelled --all --most 1 --output runs/marked --json scores.json
"""


#: Benchmark -> its line on the help page; a test holds that these are the benchmarks' own words.
ABOUT = {
    "visual7w": "Visual7W pointing: which of four marked boxes is it?",
    "pointqa": "PointQA LookTwice: how many are like the marked one?",
    "vcr": "VCR: Q->A, QA->R and the joint Q->AR",
    "vip-bench": "ViP-Bench: open questions about drawn marks, by capability (needs a judge)",
    "refcocog": "RefCOCOg region captioning: CIDEr and METEOR",
    "recognition": "What is in the red box? Any COCO-style file, by label and by size",
    "shapes": "What is marked? Eight shapes, colours, widths, and a control without a mark",
    "marked": "What is marked, and only because of the mark? The default model's validation",
}


def epilog(benchmark: str) -> str:
    """The examples under the help of a benchmark."""
    if benchmark == "marked":
        return _MARKED
    folder = "labelled" if benchmark in ("shapes", "recognition") else benchmark
    words = f"vip-llava eval {benchmark} --data {folder} --output runs/{benchmark}"
    return f"Examples\n\n  {words} {_EXAMPLES.get(benchmark, '')}".rstrip() + "\n"


class EvalGroup(TyperGroup):
    """`vip-llava eval --data DIR` without a benchmark means the default model's own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and args[0] not in ("-h", "--help"):
            args = ["marked", *args]
        return super().parse_args(ctx, args)


def benchmark_verb(benchmark: str) -> Callable[..., None]:
    """The verb of one benchmark: its name and its help; the options are everyone's."""

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
            raise RequestError("--weights are parts of the default model; leave --model out")
        opened, items = _questions(benchmark, data, questions)
        assistant = _assistant(running, model)
        with _folder(writing.output) as folder:
            command = typed(ctx)
            try:
                scores = _run(assistant, opened, items, folder, questions.most, running, command)
            except KeyboardInterrupt:
                if writing.output is not None:
                    note(f"stopped; the same command goes on in {writing.output}")
                raise
            _write(folder, writing)
        show(scores)

    verb.__doc__ = f"{ABOUT[benchmark]}\n\n{_ALL}"
    verb.__name__ = benchmark.replace("-", "_")
    return verb


_ALL = """Every question is asked once; one that can't be asked is reported, counted as wrong, and never
replaced. Scores with their 95 % intervals are on stdout."""


def typed(ctx: typer.Context) -> list[str]:
    """The command line, word for word."""
    state = ctx.obj if isinstance(ctx.obj, dict) else {}
    return ["vip-llava", *map(str, state.get("argv", ()))]


def _questions(name: str, data: Path, chosen: QuestionOptions) -> tuple[Benchmark, list[Item]]:
    """The benchmark and its items, before a model is opened."""
    from vip_llava.evaluation.benchmarks import benchmark_class, open_benchmark
    from vip_llava.evaluation.items import Options
    from vip_llava.evaluation.run import items_of

    options = Options(
        images=chosen.images.expanduser() if chosen.images is not None else None,
        groups=chosen.names(benchmark_class(name).groups),
        seed=chosen.seed,
        alpha=chosen.alpha,
        question=chosen.question,
        everything=chosen.everything,
    )
    benchmark = open_benchmark(name, data.expanduser(), options)
    items = items_of(benchmark, chosen.most)
    for group, number in Counter(item.group for item in items).items():
        note(f"{group or name}: {number} questions")
    return benchmark, items


def _assistant(running: RunOptions, options: ModelOptions) -> Assistant:
    """The model, or the default model with other trained parts."""
    weights = running.weights
    if weights is None:
        return open_assistant(options, {})
    chosen = options.keywords()
    refused = sorted(chosen.keys() - {"device", "dtype"})
    if refused:
        raise RequestError(f"--weights can't go with {option_name(refused[0])}")
    with loading(f"opening {weights}") as progress:
        from vip_llava.assistant import Assistant
        from vip_llava.backends.native import NativeBackend
        from vip_llava.models.default.build import load_default
        from vip_llava.models.placement import Placement

        place = Placement.of(chosen.get("dtype", "auto"), chosen.get("device"), None, None)
        parts = load_default(
            dtype=place.dtype,
            device=place.device,
            weights=weights.expanduser(),
            progress=progress,
        )
        return Assistant(NativeBackend(*parts, name=str(weights)))


@contextlib.contextmanager
def _folder(output: Path | None) -> Iterator[Path]:
    """The run's folder; without one a run leaves nothing behind but what is asked for."""
    if output is not None:
        yield output.expanduser()
        return
    with tempfile.TemporaryDirectory(prefix="vip-llava-eval-") as made:
        yield Path(made) / "run"


def _run(
    assistant: Assistant,
    benchmark: Benchmark,
    items: Sequence[Item],
    folder: Path,
    most: int | None,
    running: RunOptions,
    command: Sequence[str],
) -> Sequence[Score]:
    from vip_llava.evaluation.run import run

    with counting(benchmark.name, "questions") as progress:
        done = 0

        def seen(*_: object) -> None:
            nonlocal done
            done += 1
            progress(done, len(items))

        result = run(
            assistant,
            benchmark,
            folder,
            items=items,
            most=most,
            batch_size=running.batch_size,
            max_failed=running.limit,
            command=command,
            on_row=seen,
        )
    _tell(result, len(items))
    return result.scores


def _tell(result: Result, count: int) -> None:
    """How it went, in a few lines on stderr."""
    if result.asked < count:
        note(f"{count - result.asked} of {count} answers were there already")
    failed = [row for row in result.rows if row.failed is not None]
    for row in failed[:5]:
        note(f"failed: {row.id}: {row.failed}")
    if failed:
        note(f"{len(failed)} of {count} questions could not be asked; they count as wrong")
    if result.asked:
        note(f"{result.asked} questions in {result.seconds:.1f} s")


def _write(folder: Path, writing: WriteOptions) -> None:
    """The files for people and for other programs."""
    if writing.json_file is not None:
        from vip_llava.evaluation.run_directory import RunFolder

        content = {
            "scores": json.loads((folder / "scores.json").read_text("utf-8")),
            "answers": [row.to_json() for row in RunFolder.open(folder).rows()],
        }
        writing.json_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        note(f"written: {writing.json_file}")
    if writing.html_file is not None:
        from vip_llava.evaluation.report.page import report

        writing.html_file.write_text(report([folder]), encoding="utf-8")
        note(f"written: {writing.html_file}")
    if writing.output is not None:
        note(f"written: {writing.output}")


def show(scores: Sequence[Score]) -> None:
    """The table on stdout, one line a group; shares in percent with their 95 % intervals."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from vip_llava.evaluation.tables import table_of

    # A file or a pipe has no width; a narrow terminal breaks within a cell, never cuts it.
    wide = None if sys.stdout.isatty() else 200
    for head, lines in table_of(scores):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for number, title in enumerate(head):
            table.add_column(title, justify="right" if number else "left", overflow="fold")
        for line in lines:
            table.add_row(*line)
        Console(file=sys.stdout, width=wide).print(table)
