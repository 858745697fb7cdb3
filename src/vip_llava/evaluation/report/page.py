"""One HTML page for one or several runs: scores with intervals, charts, comparison, galleries.

The page is a single file (images as data URLs, no scripts, nothing fetched), so that it can be
mailed or archived. It is made from run directories alone, without the data or the models.
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
from vip_llava.evaluation.intervals import Interval
from vip_llava.evaluation.report.charts import COLORS, bar_chart
from vip_llava.evaluation.report.compare import differences
from vip_llava.evaluation.report.gallery import gallery
from vip_llava.evaluation.report.markup import STYLE, table
from vip_llava.evaluation.results import ResultRow, Score
from vip_llava.evaluation.run_directory import RunDirectory
from vip_llava.evaluation.tables import score_tables

__all__ = ["LoadedRun", "load_run", "render_page"]

_CHARTS_PER_AXIS = 2
_MAX_FAILED_SHOWN = 20
#: Keys of a run's config that say which questions it asks, and how.
_QUESTION_KEYS = (
    "data", "groups", "limit", "seed", "alpha", "question", "all_photos", "sampling",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A finished run, read from its directory."""

    name: str
    path: Path
    info: dict[str, Any]
    rows: tuple[ResultRow, ...]
    scores: tuple[Score, ...]

    @property
    def config(self) -> dict[str, Any]:
        """The benchmark, data, model and settings."""
        config: dict[str, Any] = self.info["config"]
        return config


def load_run(path: Path) -> LoadedRun:
    """A finished run. Raises DataError if there is none, or if it is not finished.

    The scores of a judge replace those without one.
    """
    directory = RunDirectory.open(path)
    info, rows = directory.info, directory.rows()
    try:
        scores = json.loads((path / "scores.json").read_text("utf-8"))
        if (path / "judged.json").is_file():
            judged = json.loads((path / "judged.json").read_text("utf-8"))
            scores, means = judged["scores"], judged["rows"]
            rows = [replace(row, score=float(means.get(row.id, 0.0))) for row in rows]
        found = tuple(Score(**each) for each in scores)
    except FileNotFoundError:
        raise DataError(f"{path}: the run is not finished; the same command resumes it") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: its scores can't be read: {error}") from None
    return LoadedRun(str(info["config"]["model"]), path, info, tuple(rows), found)


def render_page(paths: Sequence[Path], title: str = "vip-llava evaluation") -> str:
    """The HTML of runs of one or several models and benchmarks. Raises DataError."""
    runs = _with_unique_names([load_run(path) for path in paths])
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        '<meta name="viewport" content="width=device-width">',
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>",
    ]
    for benchmark in dict.fromkeys(run.config["benchmark"] for run in runs):
        several = [run for run in runs if run.config["benchmark"] == benchmark]
        parts += _benchmark_section(str(benchmark), several)
    parts += ["<h2>How this was made</h2>", *(_provenance(run) for run in runs)]
    return "\n".join([*parts, "</body></html>", ""])


def _with_unique_names(runs: Sequence[LoadedRun]) -> list[LoadedRun]:
    """Append the directory's name where two runs of a benchmark have models of the same name."""
    names = [(run.config["benchmark"], run.name) for run in runs]
    return [
        run if names.count(name) == 1 else replace(run, name=f"{run.name} ({run.path.name})")
        for run, name in zip(runs, names, strict=True)
    ]


def _benchmark_section(name: str, runs: Sequence[LoadedRun]) -> list[str]:
    parts = [f"<section><h2>{escape(name)}</h2>"]
    if len(runs) > 1:
        keys = (
            f'<li><span style="background:{COLORS[number % len(COLORS)]}"></span>'
            f"{escape(run.name)}</li>"
            for number, run in enumerate(runs)
        )
        parts.append(f'<ul class="key">{"".join(keys)}</ul>{_warning_if_different(runs)}')
    parts += _charts(runs)
    for run in runs:
        parts.append(f"<h3>{escape(run.name)}</h3>{_failed_list(run)}")
        parts += [table(head, lines) for head, lines in score_tables(run.scores)]
        methods = dict.fromkeys(f"{s.name}: {s.method}" for s in run.scores if s.method)
        parts.append("".join(f'<p class="note">{escape(text)}</p>' for text in methods))
    parts += differences([(run.name, run.rows) for run in runs])
    for run in runs:
        parts += gallery(run.path, run.name, run.rows)
    return [*parts, "</section>"]


def _warning_if_different(runs: Sequence[LoadedRun]) -> str:
    """A warning if the runs did not ask the same questions in the same way."""
    first = runs[0].config
    different = [
        key
        for key in _QUESTION_KEYS
        if any(run.config.get(key) != first.get(key) for run in runs[1:])
    ]
    if not different:
        return ""
    return (
        f'<p class="failed">These runs differ in {escape(", ".join(different))}, so their scores '
        "are of different questions. The differences below are on the shared questions.</p>"
    )


def _charts(runs: Sequence[LoadedRun]) -> list[str]:
    """Charts of the first scores of each axis; the tables have the other scores."""
    every = dict.fromkeys((s.axis, s.name) for run in runs for s in run.scores)
    charts = []
    for axis in dict.fromkeys(axis for axis, _ in every):
        names = [name for each, name in every if each == axis]
        for name in names[:_CHARTS_PER_AXIS]:
            found = [
                {s.group: s for s in run.scores if (s.axis, s.name) == (axis, name)} for run in runs
            ]
            groups = list(dict.fromkeys(group for scores in found for group in scores))
            if len(groups) < 2 and len(runs) < 2:
                continue
            series = [
                (run.name, [_interval(scores.get(group)) for group in groups])
                for run, scores in zip(runs, found, strict=True)
            ]
            title = f"{name} by {axis}" if axis else name
            charts.append(bar_chart(title, [group or "all" for group in groups], series))
    return charts


def _interval(score: Score | None) -> Interval:
    return (None, None, None) if score is None else (score.value, score.low, score.high)


def _failed_list(run: LoadedRun) -> str:
    failed = [row for row in run.rows if row.failed is not None]
    if not failed:
        return ""
    listed = "".join(
        f"<li><code>{escape(row.id)}</code>: {escape(row.failed or '')}</li>"
        for row in failed[:_MAX_FAILED_SHOWN]
    )
    hidden = len(failed) - _MAX_FAILED_SHOWN
    more = f"<li>and {hidden} more</li>" if hidden > 0 else ""
    return (
        f'<p class="failed">{len(failed)} of {len(run.rows)} questions could not be asked and '
        f"count as wrong:</p><ul>{listed}{more}</ul>"
    )


def _provenance(run: LoadedRun) -> str:
    """What is needed to get the same numbers: command, versions, hardware, data."""
    info, config = run.info, run.config
    seconds, count = float(info.get("seconds", 0)), len(run.rows)
    rate = f", {count / seconds:.1f} per second" if seconds else ""
    hardware = info.get("hardware", {})
    machine = [
        *hardware.get("devices", []),
        f"{hardware.get('processor', '')}, {hardware.get('cores', '?')} cores",
        str(hardware.get("system", "")),
    ]
    data = (f"{name} sha256 {digest}" for name, digest in config.get("data", {}).items())
    parts = ("architecture", "parameters", "dtype", "template")
    model = [str(config.get("model")), *(f"{key} {config[key]}" for key in parts if key in config)]
    chosen = ("groups", "limit", "seed", "alpha", "sampling")
    lines = [
        ["command", shlex.join(map(str, info.get("command", [])))],
        ["begun", str(info.get("begun", ""))],
        ["time", f"{count} questions in {seconds:.0f} s{rate}"],
        ["model", ", ".join(model)],
        ["data", "; ".join(data)],
        ["settings", ", ".join(f"{key} {config[key]}" for key in chosen if key in config)],
        ["versions", ", ".join(f"{k} {v}" for k, v in info.get("versions", {}).items())],
        ["hardware", ", ".join(machine)],
    ]
    heading = escape(f"{config['benchmark']}, {run.name}")
    return f"<h3>{heading}</h3>{table([], lines)}"
