"""`vip-llava eval report`: one page of finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vip_llava.cli.settings import DebugFlag
from vip_llava.cli.terminal import note
from vip_llava.errors import RequestError

__all__ = ["REPORT_EPILOG", "report"]

REPORT_EPILOG = """Examples

  vip-llava eval report runs/shapes -o page.html

  vip-llava eval report runs/shapes runs/shapes-2 -o both.html --title "Two models"
"""


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of finished runs (--output).")
    ],
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PAGE", help="The page to write (.html).")
    ],
    title: Annotated[
        str, typer.Option("--title", metavar="TEXT", help="Its title.")
    ] = "vip-llava evaluation",
    debug: DebugFlag = False,
) -> None:
    """Write one page of one or more runs: scores, charts, images.

    Runs of the same benchmark stand side by side, with their differences on the same questions. The
    page is one file that fetches nothing.
    """
    if not output.absolute().parent.is_dir():
        raise RequestError(f"{output}: there is no folder {output.absolute().parent}")
    if output.is_dir():
        raise RequestError(f"{output}: a folder; name the page's file")
    from vip_llava.evaluation.report.page import report as page

    text = page([path.expanduser() for path in runs], title=title)
    output.write_text(text, encoding="utf-8")
    note(f"written: {output} ({len(text.encode()) / 1e6:.1f} MB)")
