"""Print a data report in a terminal: tables and a histogram on stdout."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vip_llava.cli.terminal import printable

if TYPE_CHECKING:
    from rich.table import Table

    from vip_llava.data.check import DataReport

__all__ = ["show_report"]

_SHOWN = 20  # bad rows, missing images and groups of repeated rows
_BAR = 40  # columns of the longest bar


def show_report(report: DataReport) -> None:
    """Print `report` on stdout."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False)
    for title, table in _tables(report):
        console.print(Text(title, style="bold"))
        console.print(table)
    state = "is ready for training" if report.usable else "needs fixes before training"
    style = "bold green" if report.usable else "bold red"
    console.print(Text(printable(f"{report.file} {state}."), style=style))


def _tables(report: DataReport) -> list[tuple[str, Table]]:
    counts = [(kind, str(count)) for kind, count in report.kinds.most_common()]
    counts += [("bad rows", str(report.bad))] if report.bad else []
    counts += [("all rows", str(report.rows))]
    tables = [("Rows", _table(("kind", "rows"), counts))]
    tables.append(("Images", _table(("", "number"), _images(report))))
    bars = _bars(report)
    if bars:
        tables.append(("Length", _table((report.unit, "rows", ""), bars)))
    if report.problems:
        rows = [(str(each.row), each.id, each.reason) for each in report.problems[:_SHOWN]]
        title = _titled("Bad rows", len(rows), report.bad)
        tables.append((title, _table(("row", "id", "reason"), rows)))
    if report.missing:
        names = [(name, str(count)) for name, count in report.missing.most_common(_SHOWN)]
        title = _titled("Missing images", len(names), len(report.missing))
        tables.append((title, _table(("image", "rows"), names)))
    for title, groups in (
        ("Rows with the same id", report.repeated_ids),
        ("Rows with the same content", report.repeated_rows),
    ):
        if groups:
            shown = [(str(first), _listed(rest)) for first, rest in list(groups.items())[:_SHOWN]]
            table = _table(("row", "again in rows"), shown)
            tables.append((_titled(title, len(shown), len(groups)), table))
    return tables


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        table.add_column(head, justify="right" if head in ("rows", "number") else "left")
    for row in rows:
        # Ids and reasons come from a file: no markup, no control characters.
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def _titled(title: str, shown: int, total: int) -> str:
    return title if shown == total else f"{title} ({shown} of {total})"


def _listed(numbers: Sequence[int]) -> str:
    text = ", ".join(map(str, numbers[:10]))
    return text if len(numbers) <= 10 else f"{text} and {len(numbers) - 10} more"


def _images(report: DataReport) -> list[tuple[str, str]]:
    rows = [("rows without an image", str(report.text_only))]
    rows.append(("different images named", str(report.images)))
    missing = str(len(report.missing)) if report.images_checked else "not checked"
    return [*rows, ("of them missing", missing)]


def _bars(report: DataReport) -> list[tuple[str, str, str]]:
    bars = report.histogram()
    most = max((bar.rows for bar in bars), default=0)
    rows = []
    for bar in bars:
        words = f"{bar.low} or more" if bar.high is None else f"{bar.low} to {bar.high - 1}"
        rows.append((words, str(bar.rows), "█" * -(-bar.rows * _BAR // most)))
    return rows
