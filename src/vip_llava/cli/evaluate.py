"""`vip-llava eval`: score a model on marked things of labelled photos."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vip_llava.cli.prepare import open_assistant
from vip_llava.cli.settings import DebugFlag, ModelOptions
from vip_llava.cli.terminal import loading, note, stderr
from vip_llava.errors import RequestError

if TYPE_CHECKING:
    from vip_llava.api import Answer, Assistant
    from vip_llava.evaluation.benchmarks.marked import Item
    from vip_llava.evaluation.page import Card

__all__ = ["EPILOG", "evaluate"]

EPILOG = """Examples

  vip-llava eval --data labelled

  vip-llava eval --data labelled --variants box,arrow,control --most 4 --html seen.html

  vip-llava eval --data labelled --all --most 2 --json scores.json
"""

_CARDS = 60  # of a variant on the page


def evaluate(
    *,
    data: Annotated[
        Path,
        typer.Option("--data", metavar="DIR", help="Folder with regions.jsonl and its photos."),
    ],
    variants: Annotated[
        list[str] | None,
        typer.Option(
            "--variants",
            metavar="NAME,...",
            help="What to ask (repeatable; all if not given): a shape, or drawn, control, four, sides.",
        ),
    ] = None,
    most: Annotated[
        int | None,
        typer.Option("--most", metavar="N", min=1, help="At most N questions a variant."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Ask about all photos, not the validation split alone.")
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write scores and all answers as JSON."),
    ] = None,
    html_file: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a page with the pictures as drawn."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", min=1, help="Questions that run together.")
    ] = 8,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights", metavar="DIR", help="Trained parts to put into the default model."
        ),
    ] = None,
    model: ModelOptions,
    debug: DebugFlag = False,
) -> None:
    """Score a model: does it say what a mark points at?

    Every labelled thing is marked and asked about; an answer is right if it equals the label. The
    variant "control" asks without a mark: what is guessed. The table is on stdout.
    """
    wanted = _variants(variants)
    for target in (json_file, html_file):
        if target is not None and not target.absolute().parent.is_dir():
            raise RequestError(f"{target}: there is no folder {target.absolute().parent}")
    if weights is not None and model.model is not None:
        raise RequestError("--weights are parts of the default model; leave --model out")

    from vip_llava.evaluation.run import photos_to_ask

    photos = photos_to_ask(data.expanduser(), everything=everything)
    note(f"{len(photos)} photos of {data}")
    assistant = open_assistant(model, {}) if weights is None else _with_weights(weights, model)
    cards: dict[str, list[Card]] | None = None if html_file is None else {}
    found = _ask(assistant, photos, wanted, most, batch_size, cards)
    scores = [each["score"] for each in found.values()]
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        note(f"written: {json_file}")
    if html_file is not None and cards is not None:
        from vip_llava.evaluation.page import write_page

        write_page(html_file, f"Marked things: {assistant.info.name}", scores, cards)
        note(f"written: {html_file}")
    _show(scores)


def _variants(given: Sequence[str] | None) -> list[str]:
    from vip_llava.evaluation.benchmarks.marked import VARIANTS

    if not given:
        return list(VARIANTS)
    names = [name.strip() for text in given for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in VARIANTS]
    if unknown or not names:
        raise RequestError(f"--variants {' '.join(given)}: known are {', '.join(VARIANTS)}")
    return list(dict.fromkeys(names))


def _with_weights(weights: Path, options: ModelOptions) -> Assistant:
    """The default model with other trained parts."""
    chosen = options.keywords()
    refused = sorted(chosen.keys() - {"device", "dtype"})
    if refused:
        raise RequestError(f"--weights can't go with --{refused[0]}")
    with loading(f"opening {weights}") as progress:
        from vip_llava.api import Assistant
        from vip_llava.model.default import load_default
        from vip_llava.model.placement import Placement

        place = Placement.of(chosen.get("dtype", "auto"), chosen.get("device"), None, None)
        parts = load_default(
            dtype=place.dtype,
            device=place.device,
            weights=weights.expanduser(),
            progress=progress,
        )
        return Assistant(*parts, name=str(weights))


def _ask(
    assistant: Assistant,
    photos: Sequence[Any],
    variants: Sequence[str],
    most: int | None,
    batch_size: int,
    cards: dict[str, list[Card]] | None,
) -> dict[str, dict[str, Any]]:
    """Score and answers of each variant; `cards` is filled for the page."""
    from vip_llava.evaluation.run import evaluate as score_variant

    found = {}
    for variant in variants:
        kept: list[Card] = []
        with _bar(variant) as (begin, advance):

            def seen(item: Item, answer: Answer, kept: list[Card] = kept) -> None:
                advance()
                if cards is not None and len(kept) < _CARDS and answer.image is not None:
                    kept.append(_card(item, answer))

            result, rows = score_variant(
                assistant,
                photos,
                variant,
                most=most,
                batch_size=batch_size,
                on_answer=seen,
                on_items=begin,
            )
        found[variant] = {"score": result.row(), "answers": rows}
        if cards is not None:
            cards[variant] = kept
    return found


def _card(item: Item, answer: Answer) -> Card:
    from vip_llava.evaluation.benchmarks.marked import is_right
    from vip_llava.evaluation.page import Card, thumbnail
    from vip_llava.regions import expand

    assert answer.image is not None
    return Card(
        id=item.id,
        picture=thumbnail(answer.image),
        question=expand(str(item.request["question"]), answer.regions),
        expected=item.answer,
        answer=answer.text,
        right=is_right(item, answer.text),
    )


@contextlib.contextmanager
def _bar(variant: str) -> Iterator[tuple[Callable[[int], None], Callable[[], None]]]:
    """A progress bar on stderr; where that is no terminal, one line a variant."""
    console = stderr()
    if not console.is_terminal:
        yield lambda total: note(f"{variant}: {total} questions"), lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(variant, total=None)
        yield lambda total: shown.update(task, total=total), lambda: shown.advance(task)


def _show(scores: Sequence[Mapping[str, Any]]) -> None:
    """The table on stdout; shares in percent."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    titles = ("Variant", "Items", "Right %", "Not person %", "By label %", '"person" for other %')
    for number, title in enumerate(titles):
        table.add_column(title, justify="right" if number else "left")
    for row in scores:
        name, items, *shares = row.values()
        percent = ("" if share is None else f"{100 * share:.1f}" for share in shares)
        table.add_row(str(name), str(items), *percent)
    Console(file=sys.stdout).print(table)
