"""One HTML page of one or several runs: scores with intervals, charts, models side by side, galleries.

Everything is inside the file (images as data addresses, charts as SVG, no script, nothing fetched), so
it can be mailed or put beside a paper. It is made of the runs' folders alone; data and models are not
needed.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from vip_llava.errors import DataError
from vip_llava.evaluation.items import Row, Score
from vip_llava.evaluation.report.charts import COLORS, Bar, bars, radar
from vip_llava.evaluation.report.compare import differences
from vip_llava.evaluation.report.gallery import gallery
from vip_llava.evaluation.report.markup import STYLE, table
from vip_llava.evaluation.run_directory import RunFolder
from vip_llava.evaluation.tables import table_of

__all__ = ["Loaded", "load_run", "report"]

_LARGEST_RADAR = 14
_CHARTS = 2


@dataclass(frozen=True, slots=True)
class Loaded:
    """A run as the page needs it."""

    name: str
    path: Path
    about: dict[str, Any]
    rows: tuple[Row, ...]
    scores: tuple[Score, ...]

    @property
    def benchmark(self) -> str:
        return str(self.about["asked"]["benchmark"])


def load_run(path: Path, name: str | None = None) -> Loaded:
    """A finished run. Raises DataError where there is none, or where it has not been finished."""
    folder = RunFolder.open(path)
    about, rows = folder.about, folder.rows()
    try:
        scores = json.loads((path / "scores.json").read_text("utf-8"))
        if (path / "judged.json").is_file():
            # What was counted without a judge says nothing beside what a judge said.
            judged = json.loads((path / "judged.json").read_text("utf-8"))
            scores, means = judged["scores"], judged["rows"]
            rows = [replace(row, score=float(means.get(row.id, 0.0))) for row in rows]
        found = tuple(Score(**each) for each in scores)
    except FileNotFoundError:
        raise DataError(f"{path}: the run was not finished; the same command goes on") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: its scores can't be read: {error}") from None
    model = name or str(about["asked"]["model"])
    return Loaded(model, path, about, tuple(rows), found)


def report(paths: Sequence[Path], title: str = "vip-llava evaluation") -> str:
    """The page's text for runs of one or several models and benchmarks. Raises DataError."""
    runs = _named([load_run(path) for path in paths])
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        '<meta name="viewport" content="width=device-width">',
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>",
    ]
    for benchmark in dict.fromkeys(run.benchmark for run in runs):
        parts += _benchmark(benchmark, [run for run in runs if run.benchmark == benchmark])
    parts += ["<h2>How this was made</h2>", *(_made(run) for run in runs)]
    return "\n".join([*parts, "</body></html>", ""])


def _named(runs: Sequence[Loaded]) -> list[Loaded]:
    """Runs whose models have the same name get that of their folder, too."""
    names = [(run.benchmark, run.name) for run in runs]
    return [
        run
        if names.count((run.benchmark, run.name)) == 1
        else Loaded(f"{run.name} ({run.path.name})", run.path, run.about, run.rows, run.scores)
        for run in runs
    ]


def _benchmark(name: str, runs: Sequence[Loaded]) -> list[str]:
    parts = [f"<section><h2>{escape(name)}</h2>"]
    if len(runs) > 1:
        keys = (
            f'<li><span style="background:{COLORS[number % len(COLORS)]}"></span>{escape(run.name)}</li>'
            for number, run in enumerate(runs)
        )
        parts.append(f'<ul class="key">{"".join(keys)}</ul>')
        parts.append(_unlike(runs))
    parts += _charts(runs)
    for run in runs:
        parts.append(f"<h3>{escape(run.name)}</h3>{_failed(run)}")
        parts += [table(head, lines) for head, lines in table_of(run.scores)]
        methods = dict.fromkeys(f"{s.name}: {s.method}" for s in run.scores if s.method)
        parts.append("".join(f'<p class="note">{escape(text)}</p>' for text in methods))
    parts += differences([(run.name, run.rows) for run in runs])
    for run in runs:
        parts += gallery(run.path, run.name, run.rows)
    return [*parts, "</section>"]


def _unlike(runs: Sequence[Loaded]) -> str:
    """A warning where runs that stand side by side were not asked the same in the same way."""
    keys = ("data", "groups", "most", "seed", "alpha", "question", "everything", "sampling")
    first = runs[0].about["asked"]
    unlike = [
        key
        for key in keys
        if any(run.about["asked"].get(key) != first.get(key) for run in runs[1:])
    ]
    if not unlike:
        return ""
    return (
        f'<p class="failed">These runs differ in {escape(", ".join(unlike))}: their scores stand for '
        "different questions. The differences below are on the questions that they share.</p>"
    )


def _charts(runs: Sequence[Loaded]) -> list[str]:
    """For the first scores of each axis: bars, and a radar where it can be read.

    The others are in the tables; a chart of each would bury the one that matters.
    """
    every = dict.fromkeys((s.axis, s.name) for run in runs for s in run.scores)
    keys = [key for key in every if [k for k in every if k[0] == key[0]].index(key) < _CHARTS]
    parts = []
    for axis, name in keys:
        groups = list(
            dict.fromkeys(
                s.group for run in runs for s in run.scores if (s.axis, s.name) == (axis, name)
            )
        )
        if len(groups) < 2 and len(runs) < 2:
            continue
        series = [(run.name, [_found(run, axis, name, group) for group in groups]) for run in runs]
        chart = bars([group or "all" for group in groups], series)
        if 3 <= len(groups) <= _LARGEST_RADAR and axis in ("shape", "capability"):
            chart += radar(groups, series)
        heading = f"{name} by {axis}" if axis else name
        parts.append(
            f'<figure class="chart"><figcaption>{escape(heading)}</figcaption>{chart}</figure>'
        )
    return parts


def _found(run: Loaded, axis: str, name: str, group: str) -> Bar:
    for score in run.scores:
        if (score.axis, score.name, score.group) == (axis, name, group):
            return Bar(score.value, score.low, score.high)
    return Bar(None)


def _failed(run: Loaded) -> str:
    failed = [row for row in run.rows if row.failed is not None]
    if not failed:
        return ""
    listed = "".join(
        f"<li><code>{escape(row.id)}</code>: {escape(row.failed or '')}</li>" for row in failed[:20]
    )
    more = f"<li>and {len(failed) - 20} more</li>" if len(failed) > 20 else ""
    return (
        f'<p class="failed">{len(failed)} of {len(run.rows)} questions could not be asked and count '
        f"as wrong:</p><ul>{listed}{more}</ul>"
    )


def _made(run: Loaded) -> str:
    """Command, versions, hardware, data: what somebody needs who wants the same numbers."""
    about, asked = run.about, run.about["asked"]
    seconds, count = float(about.get("seconds", 0)), len(run.rows)
    speed = f"{count} questions in {seconds:.0f} s" + (
        f", {count / seconds:.1f} a second" if seconds else ""
    )
    hardware = about.get("hardware", {})
    machine = ", ".join(
        [
            *hardware.get("devices", []),
            f"{hardware.get('processor', '')}, {hardware.get('cores', '?')} cores",
            str(hardware.get("system", "")),
        ]
    )
    data = "; ".join(f"{name} sha256 {digest}" for name, digest in asked.get("data", {}).items())
    parts = ("architecture", "parameters", "dtype", "template")
    model = ", ".join([str(asked.get("model")), *(f"{k} {asked[k]}" for k in parts if k in asked)])
    chosen = ("groups", "most", "seed", "alpha", "sampling")
    lines = [
        ["command", shlex.join(map(str, about.get("command", [])))],
        ["begun", str(about.get("begun", ""))],
        ["time", speed],
        ["model", model],
        ["data", data],
        ["settings", ", ".join(f"{key} {asked[key]}" for key in chosen if key in asked)],
        ["versions", ", ".join(f"{k} {v}" for k, v in about.get("versions", {}).items())],
        ["hardware", machine],
    ]
    return f"<h3>{escape(run.benchmark)}, {escape(run.name)}</h3>{table([], lines)}"
