from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vip_llava.data.converters import CONVERTERS, RawFiles
from vip_llava.data.converters.base import (
    SkipEntry,
    box_of_corner_and_size,
    image_name,
    read_json,
    read_lines,
)
from vip_llava.data.records import KINDS
from vip_llava.errors import DataError


def test_every_converter_gives_a_known_kind() -> None:
    assert {source.kind for source in CONVERTERS.values()} <= set(KINDS)
    assert all(source.name == name for name, source in CONVERTERS.items())


@pytest.mark.parametrize(
    ("given", "box"),
    [
        ((10, 20, 30, 40), [10, 20, 40, 60]),
        ((1.5, 2, 3.257, 4), [1.5, 2, 4.76, 6]),
        ((-1, -3, 10, 10), [0, 0, 9, 7]),
        (("1", "2", "3", "4"), [1, 2, 4, 6]),
    ],
)
def test_corner_and_size_become_two_corners(given: Any, box: list[float]) -> None:
    assert box_of_corner_and_size(given) == box


@pytest.mark.parametrize("given", [(1, 2, 0, 4), (1, 2, 3, -4), (-9, 0, 5, 5)])
def test_a_box_without_area_is_skipped(given: Any) -> None:
    with pytest.raises(SkipEntry):
        box_of_corner_and_size(given)


@pytest.mark.parametrize(
    "given", [(1, 2, 3), (1, 2, 3, float("nan")), (1, 2, None, 4), (True, 1, 2, 3)]
)
def test_an_invalid_box_is_an_error(given: Any) -> None:
    with pytest.raises(ValueError):
        box_of_corner_and_size(given)


def test_names_get_the_prefix_and_stay_in_their_folder() -> None:
    raw = RawFiles(files=(), prefix="coco/train2014")
    assert image_name("a.jpg", raw) == "coco/train2014/a.jpg"
    assert image_name("a.jpg", RawFiles(files=())) == "a.jpg"
    for name in ("/etc/a.jpg", "../a.jpg", "", None, 3):
        with pytest.raises(ValueError):
            image_name(name, raw)


def test_pickles_are_refused_with_instructions(tmp_path: Path) -> None:
    named = tmp_path / "refs(unc).p"
    named.write_bytes(b"(lp0\n.")
    hidden = tmp_path / "refs.json"
    hidden.write_bytes(b"\x80\x02]q\x00.")
    for path in (named, hidden):
        for read in (read_json, lambda path: list(read_lines(path))):
            with pytest.raises(DataError, match=r"a pickle.*json\.dump\(pickle\.load") as told:
                read(path)
            assert f"'{path.name}'" in str(told.value)


def test_invalid_json_is_located(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"images": [],\n "boxes": }')
    with pytest.raises(DataError, match=r"a\.json, line 2: not JSON"):
        read_json(path)
    path.write_text('{"photos": []}')
    with pytest.raises(DataError, match=r"'images' is missing; the file has photos"):
        read_json(path, "images")
    path.write_text("[]")
    with pytest.raises(DataError, match="a JSON object with images"):
        read_json(path, "images")
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(DataError, match="not UTF-8"):
        read_json(path)
    with pytest.raises(DataError, match="a folder"):
        read_json(tmp_path)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_lines_and_lists_read_the_same(write: Callable[..., Path], name: str) -> None:
    entries = [{"a": 1}, {"b": [2]}]
    found = list(read_lines(write(name, entries)))
    assert [entry for _, entry in found] == entries
    assert found[1][0].startswith(name)
    assert found[1][0].endswith("2")


def test_a_broken_line_is_named(write: Callable[..., Path]) -> None:
    path = write("a.jsonl", '{"a": 1}\n\n{"a": \n')
    with pytest.raises(DataError, match=r"a\.jsonl: row 2"):
        list(read_lines(path))


def test_converters_name_the_files_they_need(converter: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"refcocog: 0 files given; it takes .*instances\.json"):
        converter("refcocog")
    with pytest.raises(DataError, match=r"nowhere\.json: no such file; coco needs here"):
        converter("coco", tmp_path / "nowhere.json")
    here = tmp_path / "a.json"
    here.write_text(json.dumps({"images": [], "boxes": []}))
    with pytest.raises(DataError, match=r"no split 'dev'; there are train, val, test"):
        converter("visual7w", here, split="dev")
    with pytest.raises(DataError, match="its files hold one split each"):
        converter("coco", here, split="train")
