"""Grades to scores and to the published files: totals, capabilities, their combinations, spread over runs."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from vip_llava.evaluation.benchmarks.vip_bench import VipBench, capability_scores, full_name
from vip_llava.evaluation.items import Row, Score
from vip_llava.evaluation.judge.grading import Grades, by_row
from vip_llava.evaluation.run_directory import RunFolder, slug

__all__ = ["judged_scores", "write_judged"]


def judged_scores(rows: Sequence[Row], grades: Grades) -> list[Score]:
    """The scores of the published tables, each the mean over the judge's runs, and the spread.

    The spread is the standard deviation of the total over the runs, in points of 100.
    """
    unread = sum(grade.score is None for grade in grades.grades)
    method = f"judge {grades.judge}, mean of {grades.times} runs, prompt {grades.prompt}"
    if unread:
        method += f"; {unread} of {len(grades.grades)} grades held no number and count as 0"
    found = capability_scores(rows, by_row(grades.grades), method)
    for split in VipBench.groups:
        several = [row for row in rows if row.group == split]
        if several:
            totals = _totals(several, grades)
            spread = statistics.pstdev(totals)
            name = f"spread over runs, {split}"
            found.append(Score(name, "", spread, len(several), kind="points", method=method))
    return found


def write_judged(folder: Path, rows: Sequence[Row], grades: Grades) -> list[Score]:
    """Write `judged.json` and the published files of a run's folder; the scores."""
    run = RunFolder.open(folder)
    scores = judged_scores(rows, grades)
    means = {name: statistics.fmean(several) for name, several in by_row(grades.grades).items()}
    listed = [score.to_json() for score in scores]
    run.write_json("judged.json", {"judge": grades.judge, "scores": listed, "rows": means})
    model = slug(str(run.about["asked"]["model"]))
    for split in VipBench.groups:
        several = [row for row in rows if row.group == split]
        if several:
            stem = f"results/{model}-{split}_{slug(grades.judge)}"
            run.write(f"{stem}-grade-{grades.times}runs.json", _grade_file(several, grades))
            for kind, names in (("cap-score", _each), ("cap-int-score", _together)):
                text = _csv(model, several, grades, names)
                run.write(f"{stem}-{kind}-{grades.times}runs.csv", text)
    return scores


def _totals(rows: Sequence[Row], grades: Grades) -> list[float]:
    """The mean score of each run, 0..100."""
    scores = by_row(grades.grades)
    return [
        100 * sum(scores.get(row.id, [0.0] * grades.times)[run] for row in rows) / len(rows)
        for run in range(grades.times)
    ]


def _each(row: Row) -> list[str]:
    return list(row.facts["capability"])


def _together(row: Row) -> list[str]:
    return ["_".join(row.facts["capability"])]


def _csv(model: str, rows: Sequence[Row], grades: Grades, names: Callable[[Row], list[str]]) -> str:
    """One line for the model: the most common column first, then total, std and runs."""
    scores = by_row(grades.grades)
    counts = Counter(name for row in rows for name in names(row))
    columns = [name for name, _ in counts.most_common()]
    line = [model]
    for name in columns:
        several = [scores.get(row.id, [0.0]) for row in rows if name in names(row)]
        mean = 100 * statistics.fmean(statistics.fmean(each) for each in several)
        line.append(f"{mean:.1f}")
    totals = _totals(rows, grades)
    line += [f"{statistics.fmean(totals):.1f}", f"{statistics.pstdev(totals):.1f}"]
    line.append(str([round(total, 1) for total in totals]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([["", *columns, "total", "std", "runs"], line])
    return text.getvalue()


def _grade_file(rows: Sequence[Row], grades: Grades) -> str:
    """{"v1_0": {"model": [...], "content": [...], "score": [...]}, ...}, one value a run."""
    found = {}
    for row in rows:
        several = grades.of(row.id)
        found[full_name(row.facts["question_id"])] = {
            "model": [grade.model for grade in several],
            "content": [grade.content for grade in several],
            "score": [grade.score or 0.0 for grade in several] or [0.0] * grades.times,
        }
    return json.dumps(found, indent=4) + "\n"
