"""`vip-llava data`: exit codes, files, notes, and what goes to which stream."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vip_llava.cli import data as verbs
from vip_llava.data.converters import CONVERTERS
from vip_llava.data.records import parse_row

Program = Callable[..., Any]


def row(name: str, image: str = "a.png") -> dict[str, Any]:
    return {
        "id": name,
        "image": image,
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": "A red cup."},
        ],
    }


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    Image.new("RGB", (40, 30), "white").save(tmp_path / "a.png")

    def write(*rows: Any, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(f"{json.dumps(each)}\n" for each in rows))
        return path

    return write


@pytest.fixture
def references(tmp_path: Path) -> tuple[Path, Path]:
    sentences = [{"sent_id": 1, "sent": "the cup"}, {"sent_id": 2, "sent": "red one"}]
    refs = [
        {"ref_id": n, "ann_id": 9, "image_id": 5, "split": split, "sentences": sentences}
        for n, split in enumerate(["train", "val"])
    ]
    instances = {
        "images": [{"id": 5, "file_name": "a.png"}],
        "annotations": [{"id": 9, "image_id": 5, "bbox": [5, 5, 20, 10], "segmentation": []}],
    }
    found = tmp_path / "refs.json", tmp_path / "instances.json"
    for path, content in zip(found, (refs, instances), strict=True):
        path.write_text(json.dumps(content))
    return found


class TestCheck:
    def test_a_good_file_ends_with_zero(self, program: Program, file: Callable[..., Path]) -> None:
        ran = program("data", "check", file(row("1"), row("2")))
        assert ran.code == 0 and ran.err == ""
        assert "conversation" in ran.out and "is ready for training." in ran.out

    @pytest.mark.parametrize("bad", [row("x", "no.png"), {"id": "x", "conversations": []}])
    def test_a_bad_row_or_a_missing_image_ends_with_two(
        self, program: Program, file: Callable[..., Path], bad: Any
    ) -> None:
        ran = program("data", "check", file(row("1"), bad))
        assert ran.code == 2
        assert "needs fixes before training" in ran.out
        assert "no.png" in ran.out or "field conversations" in ran.out

    def test_texts_of_a_file_are_shown_as_they_are(
        self, program: Program, file: Callable[..., Path]
    ) -> None:
        ran = program("data", "check", file(row("[bold]x[/] \x1b[31mred", "[red]no.png")))
        assert "[red]no.png" in ran.out and "\x1b" not in ran.out

    def test_the_report_as_json(self, program: Program, file: Callable[..., Path]) -> None:
        ran = program("data", "check", file(row("1"), row("1")), "--json")
        told = json.loads(ran.out)
        assert told["repeated_ids"] == [[1, 2]] and told["usable"]
        assert ran.code == 0

    def test_lengths_in_tokens_of_a_model(
        self, program: Program, file: Callable[..., Path], tiny_model_folder: Path
    ) -> None:
        path = file(row("1"))
        told = json.loads(
            program("data", "check", path, "--model", tiny_model_folder, "--json").out
        )
        assert told["length"]["unit"] == "tokens" and told["length"]["longest"] > 16
        cut = program(
            "data", "check", path, "--model", tiny_model_folder, "--max-length", 20, "--json"
        )
        assert cut.code == 2 and "max_length 20" in json.loads(cut.out)["problems"][0]["reason"]

    def test_images_may_lie_elsewhere(
        self, program: Program, file: Callable[..., Path], tmp_path: Path
    ) -> None:
        path = file(row("1"))
        (tmp_path / "photos").mkdir()
        (tmp_path / "a.png").rename(tmp_path / "photos" / "a.png")
        assert program("data", "check", path).code == 2
        assert program("data", "check", path, "--images", tmp_path / "photos").code == 0
        assert program("data", "check", path, "--images", tmp_path / "photo").code == 2

    def test_no_such_file(self, program: Program, tmp_path: Path) -> None:
        ran = program("data", "check", tmp_path / "no.jsonl")
        assert ran.code == 2 and "no such file" in ran.err and ran.out == ""


class TestView:
    def test_a_page_is_written(
        self, program: Program, file: Callable[..., Path], tmp_path: Path
    ) -> None:
        out = tmp_path / "page.html"
        ran = program("data", "view", file(row("1"), row("2", "no.png")), "-o", out)
        assert ran.code == 0 and ran.out == "" and f"written: {out}" in ran.err
        text = out.read_text()
        assert text.count("<article>") == 2 and "data:image/jpeg" in text
        assert "no.png" in text and "2 of 2 rows" in text

    def test_rows_are_chosen(
        self, program: Program, file: Callable[..., Path], tmp_path: Path
    ) -> None:
        path, out = file(*(row(str(n)) for n in range(1, 30))), tmp_path / "page.html"
        program("data", "view", path, "--rows", "2, 27-29", "-o", out)
        assert [f"row {n}<" in out.read_text() for n in (1, 2, 27, 28, 29)] == [False] + [True] * 4
        program("data", "view", path, "--most", 3, "-o", out)
        assert out.read_text().count("<article>") == 3

    @pytest.mark.parametrize("rows", ["0", "3", "2-1", "one", "1,", "1-2-3"])
    def test_invalid_row_numbers(
        self, program: Program, file: Callable[..., Path], tmp_path: Path, rows: str
    ) -> None:
        out = tmp_path / "page.html"
        ran = program("data", "view", file(row("1"), row("2")), "--rows", rows, "-o", out)
        assert ran.code == 2 and "--rows" in ran.err and not out.exists()

    def test_with_a_model_each_token_is_shown(
        self,
        program: Program,
        file: Callable[..., Path],
        tmp_path: Path,
        tiny_model_folder: Path,
    ) -> None:
        out = tmp_path / "page.html"
        program("data", "view", file(row("1")), "--model", tiny_model_folder, "-o", out)
        text = out.read_text()
        assert "&lt;image&gt; x 16" in text and 'class="text tokens"' in text

    def test_the_name_must_be_that_of_a_page(
        self, program: Program, file: Callable[..., Path], tmp_path: Path
    ) -> None:
        path = file(row("1"))
        before = path.read_bytes()
        ran = program("data", "view", path, "-o", path)
        assert ran.code == 2 and "end in .html" in ran.err and path.read_bytes() == before


class TestConvert:
    def test_rows_are_written_and_accounted_for(
        self, program: Program, references: tuple[Path, Path], tmp_path: Path
    ) -> None:
        out = tmp_path / "rows.jsonl"
        ran = program("data", "convert", "refcocog", *references, "--prefix", "coco", "-o", out)
        assert ran.code == 0 and ran.out == ""
        assert "split train" in ran.err and "written: 2 refcocog rows of train" in ran.err
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert [parse_row(each).kind for each in rows] == ["refcocog"] * 2
        assert rows[0]["image"] == "coco/a.png"

    def test_a_list_holds_the_same_rows(
        self, program: Program, references: tuple[Path, Path], tmp_path: Path
    ) -> None:
        for name in ("rows.jsonl", "rows.json"):
            program(
                "data", "convert", "refcoco", *references, "--split", "all", "-o", tmp_path / name
            )
        lines = (tmp_path / "rows.jsonl").read_text().splitlines()
        rows = json.loads((tmp_path / "rows.json").read_text())
        assert rows == [json.loads(line) for line in lines]
        assert len(rows) == 4

    @pytest.mark.parametrize(("name", "text"), [("ids.txt", "4\n5.jpg\n"), ("ids.json", "[5, 6]")])
    def test_images_are_chosen_by_id(
        self,
        program: Program,
        references: tuple[Path, Path],
        tmp_path: Path,
        name: str,
        text: str,
    ) -> None:
        ids = tmp_path / name
        ids.write_text(text)
        out = tmp_path / "rows.jsonl"
        words = ("data", "convert", "refcocog", *references, "-o", out)
        assert program(*words, "--ids", ids).code == 0
        out.unlink()
        ids.write_text("[6]" if name.endswith("json") else "6")
        ran = program(*words, "--ids", ids)
        assert ran.code == 2 and "no entry gives a row" in ran.err and not out.exists()

    def test_a_failure_leaves_what_was_there(
        self, program: Program, references: tuple[Path, Path], tmp_path: Path
    ) -> None:
        out = tmp_path / "rows.jsonl"
        out.write_text("before")
        refs = json.loads(references[0].read_text())
        refs[0]["sentences"].append({"sent_id": 3})
        references[0].write_text(json.dumps(refs))
        words = ("data", "convert", "refcocog", *references, "-o", out)
        ran = program(*words)
        assert ran.code == 2 and "'raw' is missing" in ran.err
        assert out.read_text() == "before"
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
            path.name for path in (*references, out)
        )
        ran = program(*words, "--max-failures", 1)
        assert ran.code == 0 and "broken: " in ran.err and "'raw' is missing" in ran.err

    def test_a_pickle_is_refused(
        self, program: Program, references: tuple[Path, Path], tmp_path: Path
    ) -> None:
        path = tmp_path / "refs(umd).p"
        path.write_bytes(b"\x80\x02]q\x00.")
        ran = program(
            "data", "convert", "refcocog", path, references[1], "-o", tmp_path / "rows.jsonl"
        )
        assert ran.code == 2 and "a pickle" in ran.err and "json.dump(pickle.load" in ran.err

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (("imagenet", "-o", "rows.jsonl"), "known: coco, refcoco, "),
            (("coco", "-o", "rows.csv"), "end in .jsonl or .json"),
            (("coco", "-o", "rows.jsonl"), "0 files given; it takes instances"),
            (("coco", "x.json", "--ids", "no.txt", "-o", "rows.jsonl"), "--ids no.txt: no such"),
        ],
    )
    def test_invalid_options_are_reported(
        self,
        program: Program,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        words: tuple[str, ...],
        told: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        ran = program("data", "convert", *words)
        assert ran.code == 2 and told in ran.err
        assert list(tmp_path.iterdir()) == []

    def test_the_help_names_every_source(self) -> None:
        text = verbs.convert.__doc__ or ""
        assert [name for name in CONVERTERS if name not in text] == []


def test_without_a_verb_the_verbs_are_shown(program: Program) -> None:
    ran = program("data")
    assert ran.code == 2 and all(name in ran.out for name in ("check", "view", "convert"))
