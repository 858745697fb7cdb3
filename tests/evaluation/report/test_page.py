"""The page: a single file, without requests, with all text escaped, and with all scores."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vip_llava.errors import DataError
from vip_llava.evaluation.report.charts import bar_chart
from vip_llava.evaluation.report.page import render_page
from vip_llava.evaluation.results import ResultRow, Score
from vip_llava.evaluation.run_directory import RunDirectory
from vip_llava.evaluation.tables import score_tables

NASTY = '<script>alert("x")</script>&'


class Reader(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def sources(self) -> list[str]:
        return [str(attributes["src"]) for _, attributes in self.tags if "src" in attributes]


def config(model: str, benchmark: str = "shapes") -> dict[str, Any]:
    return {
        "benchmark": benchmark,
        "data": {"d/regions.jsonl": "ab12"},
        "groups": ["box"],
        "limit": None,
        "seed": 0,
        "alpha": 128,
        "sampling": {"max_new_tokens": 8},
        "model": model,
        "architecture": "Vip",
        "parameters": 1234567,
        "dtype": "float32",
    }


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`make_run(name, model, hits)`: a finished run of four shapes with ten questions each."""

    def make(name: str, model: str, hits: dict[str, int], more: str = "", failed: int = 0) -> Path:
        provenance = {
            "command": ["vip-llava", "eval", "shapes", more],
            "begun": "2026-01-02T03:04:05Z",
            "versions": {"torch": "9.9"},
            "hardware": {"devices": ["H200"], "processor": "EPYC", "cores": 2, "system": "Linux"},
        }
        folder = RunDirectory.create_or_resume(tmp_path / name, config(model), provenance)
        image = Image.new("RGB", (640, 320), (200, 30, 30))
        rows, scores = [], []
        for group, right in hits.items():
            for number in range(10):
                shown = folder.save_image(image, f"{group}{number}") if number in (0, 9) else ""
                rows.append(
                    ResultRow(
                        f"{group}/{number}{more}",
                        group,
                        f"cat{more}",
                        question=f"What is it?{more}",
                        answer=f"dog{more}",
                        right=number < right,
                        score=float(number < right),
                        shown=shown,
                        failed=f"gone{more}" if number >= 10 - failed else None,
                    )
                )
            value = right / 10
            scores.append(Score("right", group, value, 10, value - 0.1, value + 0.1, axis="shape", method=f"exact{more}"))  # fmt: skip
        for row in rows:
            folder.append(row)
        folder.add_seconds(8.0)
        folder.finish(rows, scores, {})
        return folder.path

    return make


def test_one_run(make_run: Callable[..., Path]) -> None:
    text = render_page([make_run("a", "tiny", {"box": 6, "arrow": 5, "mask": 7, "control": 1})])
    read = Reader(text)
    for words in (
        "60.0 [50.0, 70.0]",
        "vip-llava eval shapes",
        "H200",
        "EPYC, 2 cores",
        "torch 9.9",
    ):
        assert words in read.words
    assert (
        "40 questions in 8 s, 5.0 per second" in read.words and "parameters 1234567" in read.words
    )
    assert [tag for tag, _ in read.tags].count("figcaption") == 1 + 8  # a chart, and the images
    assert text.count('class="right"') == 4 and text.count('class="wrong"') == 4
    assert "should be" in text


def test_nothing_is_fetched_and_images_are_small(make_run: Callable[..., Path]) -> None:
    text = render_page([make_run("a", "tiny", {"box": 6})])
    read = Reader(text)
    tags = {tag for tag, _ in read.tags}
    assert tags.isdisjoint({"script", "link", "iframe", "object"}) and "url(" not in text
    assert not any("href" in attributes for _, attributes in read.tags)
    for source in read.sources():
        assert source.startswith("data:image/jpeg;base64,")
        shown = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert shown.size == (320, 160)


def test_all_text_is_escaped(make_run: Callable[..., Path]) -> None:
    text = render_page(
        [make_run("a", f"m{NASTY}", {f"box{NASTY}": 6}, NASTY, failed=2)], title=f"t{NASTY}"
    )
    assert NASTY not in text
    read = Reader(text)
    for words in ("What is it?", "dog", "cat", "exact", "gone", "t", "m"):
        assert f"{words}{NASTY}" in read.words


def test_failures_are_named(make_run: Callable[..., Path]) -> None:
    read = Reader(render_page([make_run("a", "tiny", {"box": 6}, failed=3)]))
    assert "3 of 10 questions could not be asked and count as wrong" in read.words
    assert "box/9: gone" in read.words


def test_models_side_by_side(make_run: Callable[..., Path]) -> None:
    small = make_run("a", "small", {"box": 2, "arrow": 5})
    large = make_run("b", "large", {"box": 9, "arrow": 5})
    read = Reader(render_page([small, large]))
    assert "large - small" in read.words
    [line] = re.findall(r"large - smallbox10(.*?)large - small", read.words)
    assert line.startswith("+70.0 [+") and line.endswith("yes")
    assert "large - smallarrow10+0.0 [+0.0, +0.0]" in read.words
    assert "These runs differ in" not in read.words
    about = json.loads((large / "run.json").read_text())
    about["config"] |= {"seed": 5, "data": {"d/regions.jsonl": "ff"}}
    (large / "run.json").write_text(json.dumps(about))
    assert "These runs differ in data, seed" in Reader(render_page([small, large])).words
    same = Reader(render_page([small, make_run("c", "small", {"box": 3, "arrow": 5})]))
    assert (
        "small (a)" in same.words and "small (c)" in same.words
    )  # the names of their directories tell them apart


def test_unfinished_and_invalid_runs(make_run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a run of an evaluation"):
        render_page([tmp_path])
    path = make_run("a", "tiny", {"box": 2})
    (path / "scores.json").write_text('[{"what": 1}]')
    with pytest.raises(DataError, match="scores can't be read"):
        render_page([path])
    (path / "scores.json").unlink()
    with pytest.raises(DataError, match="is not finished; the same command resumes it"):
        render_page([path])


@pytest.mark.parametrize("name", ["../secret.jpg", "images/../../secret.jpg", "/etc/hostname", "x.jpg", "images/gone.jpg"])  # fmt: skip
def test_a_row_can_name_no_file_outside_the_run(make_run: Callable[..., Path], name: str) -> None:
    path = make_run("a", "tiny", {"box": 2})
    Image.new("RGB", (8, 8)).save(path.parent / "secret.jpg")
    lines = (path / "rows.jsonl").read_text().splitlines()
    rows = [{**json.loads(line), "shown": name} for line in lines]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert Reader(render_page([path])).sources() == []


def test_charts_show_values_and_intervals() -> None:
    none = (None, None, None)
    series = [("a", [(0.5, 0.4, 0.6), none]), ("b", [(0.25, None, None), (0.8, None, 1.0)])]
    html = bar_chart("right & wrong", ["one", "two"], series)
    assert re.findall(r'<b style="width:([\d.]+)%', html) == ["50.00", "25.00", "80.00"]
    assert re.findall(r'<i style="left:([\d.]+)%;width:([\d.]+)%', html) == [("40.00", "20.00")]
    assert html.count("not measured") == 1 and "right &amp; wrong" in html
    lone = bar_chart("t", ["one"], [("a", [(0.05, None, None)])])
    assert "width:100.00%" in lone  # the longest bar takes the whole width


def test_tables_have_a_line_for_each_group() -> None:
    scores = [
        Score("right", "box", 0.5, 4, 0.1, 0.9, axis="shape"),
        Score("by label", "box", 0.25, 4, axis="shape"),
        Score("right", "control", None, 0, axis="shape"),
        Score("right", "", 1.5, 4, kind="points", failed=1),
    ]
    assert score_tables(scores) == [
        (
            ["shape", "questions", "right", "by label"],
            [["box", "4", "50.0 [10.0, 90.0]", "25.0"], ["control", "0", "", ""]],
        ),
        (["all", "questions", "failed", "right"], [["all", "4", "1", "1.50"]]),
    ]
