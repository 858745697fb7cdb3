"""Row files: every format gives the same rows, by number, without reading the others."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vip_llava.data import json_index
from vip_llava.data.reading import RowFile
from vip_llava.errors import DataError, MissingExtraError


def talk(number: int, text: str = "What?") -> dict[str, Any]:
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": f"Answer {number}"}]
    return {"id": f"row-{number}", "conversations": turns}


#: Whatever could fool a search for the ends of rows.
TRICKY = [
    talk(0),
    talk(1, 'a "quoted" }{][ text, with \\ and \\" and \n'),
    talk(2, "日本語 é 🙂 ❤️"),
    {
        **talk(3),
        "image": "a.jpg",
        "bboxes": [[1, 2, 3, 4]],
        "segmentations": [[[1, 1, 2, 2, 3, 1]]],
    },
    talk(4, "x" * 5000),
    talk(5, ""),
]

Writer = Callable[[Path, list[dict[str, Any]]], Path]


def compact(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.json"
    path.write_text(json.dumps(rows, separators=(",", ":"), ensure_ascii=False), "utf-8")
    return path


def indented(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.json"
    path.write_text(f" \n{json.dumps(rows, indent=3)}\n\n", "utf-8")
    return path


def marked_utf8(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.txt"  # the content decides, not the name
    path.write_text(json.dumps(rows, ensure_ascii=False), "utf-8-sig")
    return path


def lines(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in rows), "utf-8")
    return path


def windows_lines(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.jsonl"
    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\r\n" for row in rows)
    path.write_bytes(text.encode("utf-8-sig"))
    return path


def parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    arrow = pytest.importorskip("pyarrow")
    table = pytest.importorskip("pyarrow.parquet")
    table.write_table(arrow.Table.from_pylist(rows), folder / "rows.parquet", row_group_size=4)
    return folder / "rows.parquet"


def hub_folder(folder: Path, rows: list[dict[str, Any]]) -> Path:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(rows).save_to_disk(str(folder / "saved"))
    return folder / "saved"


WRITERS = [compact, indented, marked_utf8, lines, windows_lines, parquet, hub_folder]


@pytest.fixture(params=WRITERS, ids=lambda writer: writer.__name__)
def writer(request: pytest.FixtureRequest) -> Writer:
    made: Writer = request.param
    return made


def test_every_format_has_the_same_rows(writer: Writer, tmp_path: Path) -> None:
    keys = ("image", "bboxes", "segmentations")  # a table has every key in every row
    rows = [dict.fromkeys(keys) | row for row in TRICKY]
    file = RowFile.open(writer(tmp_path, rows))
    assert len(file) == len(TRICKY)
    for place, row in enumerate(TRICKY):
        found = {key: part for key, part in file.raw(place).items() if part is not None}
        assert found == row
    assert [row.id for row in file] == [row["id"] for row in TRICKY]
    assert file[-1].id == "row-5"
    assert [row.id for row in file[1:3]] == ["row-1", "row-2"]
    assert file[1].turns[0].text == TRICKY[1]["conversations"][0]["value"]


def test_rows_are_named_by_file_number_and_id(writer: Writer, tmp_path: Path) -> None:
    rows = [*TRICKY[:2], {"id": "bad-one", "conversations": []}]
    path = writer(tmp_path, rows)
    file = RowFile.open(path)
    assert file.name == str(path)
    assert file.where(2) == f"{path}: row 3"
    assert file[1].id == "row-1"
    with pytest.raises(DataError) as caught:
        file[2]
    assert str(caught.value).startswith(f"{path}: row 3: id 'bad-one': field conversations: ")
    for place in (3, -4):
        with pytest.raises(IndexError, match="3 rows"):
            file[place]


def test_a_copy_in_another_process_reads_the_same(writer: Writer, tmp_path: Path) -> None:
    file = RowFile.open(writer(tmp_path, TRICKY))
    assert file[0].id == "row-0"  # what is open must not travel
    copied = pickle.loads(pickle.dumps(file))
    assert [row.id for row in copied] == [row["id"] for row in TRICKY]


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_forked_workers_read_and_leave_the_file_to_the_parent(tmp_path: Path) -> None:
    for make in (compact, parquet):
        file = RowFile.open(make(tmp_path, TRICKY))
        assert file[0].id == "row-0"
        reader, sender = os.pipe()
        child = multiprocessing.get_context("fork").Process(target=_read_all, args=(file, sender))
        child.start()
        child.join(30)
        assert child.exitcode == 0
        assert os.read(reader, 100) == b"row-0 row-1 row-2 row-3 row-4 row-5"
        os.close(reader)
        os.close(sender)
        assert file[3].id == "row-3"


def _read_all(file: RowFile, sender: int) -> None:
    os.write(sender, " ".join(row.id for row in file).encode())


def test_the_temporary_files_of_a_parquet_table_are_removed_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    file = RowFile.open(parquet(tmp_path, TRICKY))
    assert len(list(place.iterdir())) == 1
    del file
    assert list(place.iterdir()) == []


def test_many_parquet_batches(tmp_path: Path) -> None:
    file = RowFile.open(parquet(tmp_path, [talk(number) for number in range(1300)]))
    for place in (0, 511, 512, 1023, 1024, 1299):
        assert file[place].id == f"row-{place}"


def test_a_dataset_and_a_list_are_files_too() -> None:
    datasets = pytest.importorskip("datasets")
    file = RowFile.open(datasets.Dataset.from_list(TRICKY[:3]).with_format("numpy"))
    assert [row.id for row in file] == ["row-0", "row-1", "row-2"]
    assert file.where(1) == "Dataset: row 2"
    assert RowFile.open(TRICKY)[4].id == "row-4"


def test_sources_without_numbered_rows_are_refused(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list(TRICKY[:3])
    parts = datasets.DatasetDict({"train": whole, "test": whole})
    with pytest.raises(DataError, match="has several splits; pass one of them: train, test"):
        RowFile.open(parts)
    parts.save_to_disk(str(tmp_path / "parts"))
    with pytest.raises(DataError, match="name one of them: test, train"):
        RowFile.open(tmp_path / "parts")
    assert len(RowFile.open(tmp_path / "parts" / "train")) == 3
    with pytest.raises(DataError, match="by number"):
        RowFile.open(whole.to_iterable_dataset())


@pytest.mark.parametrize(
    ("name", "module", "make"),
    [("rows.parquet", "datasets", parquet), ("saved", "datasets", hub_folder)],
)
def test_a_missing_library_is_named(
    name: str, module: str, make: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path, TRICKY)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        MissingExtraError, match=rf"needs {module}: pip install 'vip-llava\[train\]'"
    ):
        RowFile.open(path)


@pytest.mark.parametrize("window", [1, 2, 3, 7, 64, 4096])
def test_the_window_may_cut_anywhere(
    window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_index, "WINDOW", window)
    for make in (compact, indented, marked_utf8):
        assert [row.id for row in RowFile.open(make(tmp_path, TRICKY))] == [
            row["id"] for row in TRICKY
        ]


def test_only_a_window_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_index, "WINDOW", 4096)
    longest = 0
    decode = json_index._DECODE

    def measured(text: str, place: int) -> tuple[Any, int]:
        nonlocal longest
        longest = max(longest, len(text))
        return decode(text, place)

    monkeypatch.setattr(json_index, "_DECODE", measured)
    path = compact(tmp_path, [talk(number, "y" * 300) for number in range(1000)])
    assert len(RowFile.open(path)) == 1000
    assert path.stat().st_size > 300_000
    assert longest < 10_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: expected a JSON array, JSON Lines or Parquet file"),
        ("  \n ", "is empty: "),
        ("id,image\n1,2", "begins with b'id,image"),
        ('[{"id": 1}', r'row 2: expected "," or "\]" after a row, at byte 10'),
        ('[{"id": 1} {"id": 2}]', r'row 2: expected ","'),
        ('[{"id": 1}, ]', "row 2: a row must be an object"),
        ("[[1]]", "row 1: a row must be an object"),
        ('[{"id": 1}, 7]', "row 2: a row must be an object {...}, at byte 12"),
        ('[{"id": 1}] []', "row 2: text after the end of the list, at byte 12"),
        ('[{"id": 1}, {"id": ]', "row 2: Expecting value, at byte 19"),
        ('[{"id": 1}, {"id": "never', "row 2: Unterminated string"),
        ('[{"id": "\t"}]', "row 1: Invalid control character"),
        ('[{"a":' + "[" * 200_000 + "]", "row 1: nested too deeply"),
    ],
)
def test_a_broken_file_is_located(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text, "utf-8")
    with pytest.raises(DataError, match=message) as caught:
        RowFile.open(path)
    assert str(path) in str(caught.value)


def test_an_error_early_in_a_long_file_is_found_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_index, "WINDOW", 64)
    path = tmp_path / "rows.json"
    path.write_text('[{"id": oops}' + " " * 100_000, "utf-8")
    reads = []
    more = json_index._Scan._read_on
    monkeypatch.setattr(json_index._Scan, "_read_on", lambda scan: (reads.append(1), more(scan))[1])
    with pytest.raises(DataError, match="row 1: Expecting value, at byte 8"):
        RowFile.open(path)
    assert len(reads) == 1


def test_a_row_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_index, "WINDOW", 64)
    monkeypatch.setattr(json_index, "LARGEST_ROW", 1000)
    path = compact(tmp_path, [talk(0, "x" * 5000)])
    with pytest.raises(DataError, match="row 1: a row is larger than"):
        RowFile.open(path)


def test_a_broken_line_is_one_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps(talk(0)).encode()
    path.write_bytes(b"\n".join([good, b'{"id": 1', b'{"id": "\xff"}', b"[1, 2]", good]))
    file = RowFile.open(path)
    assert len(file) == 5
    assert file[0].id == file[4].id == "row-0"
    for place, message in (
        (1, "broken JSON at byte"),
        (2, "broken JSON"),
        (3, "must be a JSON object, not list"),
    ):
        with pytest.raises(DataError, match=rf"rows\.jsonl: row {place + 1}: .*{message}"):
            file[place]


def test_a_file_that_changes_after_opening_is_detected(tmp_path: Path) -> None:
    path = compact(tmp_path, TRICKY)
    file = RowFile.open(path)
    compact(tmp_path, TRICKY[:2])
    with pytest.raises(DataError, match="row 1: the file has changed since it was opened"):
        file[0]


def test_a_missing_file_and_a_plain_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.json can't be read: No such file"):
        RowFile.open(tmp_path / "nothing.json")
    with pytest.raises(DataError, match="without a Hugging Face dataset"):
        RowFile.open(tmp_path)


def test_an_empty_list_has_no_rows(tmp_path: Path) -> None:
    file = RowFile.open(compact(tmp_path, []))
    assert len(file) == 0
    assert list(file) == []
    assert repr(file).endswith("0 rows)")
