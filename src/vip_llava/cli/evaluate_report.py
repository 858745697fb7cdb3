"""`vip-llava eval report`: one HTML page for finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vip_llava.cli.model_options import DebugFlag
from vip_llava.cli.terminal import note
from vip_llava.errors import RequestError

__all__ = ["REPORT_EPILOG", "report"]

REPORT_EPILOG = """Examples

  vip-llava eval report runs/shapes -o page.html

  vip-llava eval report runs/shapes runs/shapes-2 -o both.html
"""


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Directories of finished runs (--output)."),
    ],
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PAGE", help="The HTML file to write.")
    ],
    title: Annotated[
        str, typer.Option("--title", metavar="TEXT", help="Title of the page.")
    ] = "vip-llava evaluation",
    debug: DebugFlag = False,
) -> None:
    """Write an HTML page for one or more runs: scores, charts, images.

    Runs of the same benchmark are shown side by side, with their differences on the same
    questions. The page is a single file that loads nothing else.
    """
    if not output.absolute().parent.is_dir():
        raise RequestError(f"{output}: the folder {output.absolute().parent} does not exist")
    if output.is_dir():
        raise RequestError(f"{output} is a folder; name a file")
    from vip_llava.evaluation.report.page import render_page

    text = render_page([path.expanduser() for path in runs], title=title)
    output.write_text(text, encoding="utf-8")
    note(f"written: {output} ({len(text.encode()) / 1e6:.1f} MB)")
