from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vip_llava.errors import DataError

Converter = Callable[..., Any]
Write = Callable[[str, Any], Path]

SENTENCES = """\
[/EN#1/people Two young guys] with [/EN#2/bodyparts shaggy hair] look at [/EN#0/notvisual each other] .
[/EN#1/people Two men] near [/EN#9/scene a yard] and [/EN#1/people they] wave .
[/EN#9/scene A yard] without anyone .
"""
ANNOTATIONS = """\
<?xml version="1.0" encoding="UTF-8"?>
<annotation>
  <filename>1000092795.jpg</filename>
  <size><width>333</width><height>500</height><depth>3</depth></size>
  <object><name>1</name>
    <bndbox><xmin>160</xmin><ymin>126</ymin><xmax>220</xmax><ymax>336</ymax></bndbox></object>
  <object><name>1</name><name>2</name>
    <bndbox><xmin>1</xmin><ymin>111</ymin><xmax>262</xmax><ymax>374</ymax></bndbox></object>
  <object><name>9</name><scene>1</scene><nobndbox>1</nobndbox></object>
</annotation>
"""


@pytest.fixture
def folders(write: Write, tmp_path: Path) -> tuple[Path, Path]:
    write("Sentences/1000092795.txt", SENTENCES)
    write("Annotations/1000092795.xml", ANNOTATIONS)
    return tmp_path / "Sentences", tmp_path / "Annotations"


def test_phrases_with_boxes_get_placeholders(
    converter: Converter, folders: tuple[Path, Path]
) -> None:
    found = converter("flickr30k", *folders, prefix="flickr30k-images")
    people = [[159, 125, 219, 335], [0, 110, 261, 373]]
    assert found.rows[0] == {
        "id": "flickr30k-1000092795-0",
        "image": "flickr30k-images/1000092795.jpg",
        "bbox": [people, [[0, 110, 261, 373]]],
        "grounding": "Two young guys <bbox0> with shaggy hair <bbox1> look at each other .",
    }


def test_one_thing_named_twice_is_one_number(
    converter: Converter, folders: tuple[Path, Path]
) -> None:
    row = converter("flickr30k", *folders).rows[1]
    assert row["grounding"] == "Two men <bbox0> near a yard and they <bbox0> wave ."
    assert len(row["bbox"]) == 1


def test_captions_without_boxes_are_left_out(
    converter: Converter, folders: tuple[Path, Path]
) -> None:
    found = converter("flickr30k", *folders)
    assert len(found.rows) == 2
    assert found.report.skipped["a caption without a box"] == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "refused"),
        ("<annotation><object>", "invalid XML"),
        ("<annotation>" + " " * 4_000_001 + "</annotation>", "larger than"),
        (None, "no such file"),
    ],
)
def test_annotations_that_are_none_are_failures(
    converter: Converter, folders: tuple[Path, Path], content: str | None, told: str
) -> None:
    path = folders[1] / "1000092795.xml"
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    with pytest.raises(DataError, match=told):
        converter("flickr30k", *folders)
    assert converter("flickr30k", *folders, failures=1).rows == []


def test_entities_hidden_by_another_encoding_are_refused(
    converter: Converter, folders: tuple[Path, Path]
) -> None:
    text = '<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE a [<!ENTITY b "c">]><annotation/>'
    (folders[1] / "1000092795.xml").write_bytes(text.encode("utf-16"))
    with pytest.raises(DataError, match="invalid XML"):
        converter("flickr30k", *folders)


def test_folders_are_wanted(
    converter: Converter, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"must be a folder with a \.xml file"):
        converter("flickr30k", folders[0], folders[1] / "1000092795.xml")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.txt files"):
        converter("flickr30k", tmp_path / "empty", folders[1])


def test_only_wanted_images_are_read(converter: Converter, folders: tuple[Path, Path]) -> None:
    (folders[0] / "2.txt").write_text("[/EN#1/people a man] runs .")
    found = converter("flickr30k", *folders, keep=frozenset({"1000092795"}))
    assert len(found.rows) == 2  # 2.xml is missing, but its image is not selected
