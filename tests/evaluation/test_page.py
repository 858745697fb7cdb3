"""The page for people: one file, nothing fetched, nothing from outside read as markup."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from vip_llava.evaluation.page import Card, page, thumbnail, write_page

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


def card(right: bool = False) -> Card:
    picture = Image.new("RGB", (640, 320), (200, 30, 30))
    return Card(f"7{NASTY}", picture, f"What is {NASTY}?", f"cat{NASTY}", f"dog{NASTY}", right)


def test_nothing_given_becomes_markup() -> None:
    text = page(f"T{NASTY}", [{"variant": NASTY, "items": None}], {NASTY: [card()]})
    read = Reader(text)
    assert {tag for tag, _ in read.tags}.isdisjoint({"script", "iframe", "link", "object"})
    for part in (f"What is {NASTY}?", f"cat{NASTY}", f"dog{NASTY}", f"7{NASTY}", f"T{NASTY}"):
        assert part in read.words
    assert NASTY not in text


def test_pictures_are_inside_and_small() -> None:
    read = Reader(page("t", [], {"box": [card(), card(True)]}))
    sources = [attributes["src"] for tag, attributes in read.tags if tag == "img"]
    assert len(sources) == 2
    for source in sources:
        assert source is not None and source.startswith("data:image/jpeg;base64,")
        shown = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert shown.size == (320, 160)
    assert not any("href" in attributes for _, attributes in read.tags)


def test_right_and_wrong_differ() -> None:
    right, wrong = page("t", [], {"box": [card(True)]}), page("t", [], {"box": [card()]})
    assert 'class="right"' in right and "should be" not in right
    assert 'class="wrong"' in wrong and "should be" in wrong


def test_scores_are_a_table(tmp_path: Path) -> None:
    scores = [{"variant": "box", "overall": 0.5}, {"variant": "four", "overall": None}]
    write_page(tmp_path / "page.html", "t", scores, {})
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "<th>overall</th>" in text and "<td>0.5</td>" in text and "<td></td>" in text


def test_a_thumbnail_is_a_copy() -> None:
    picture = Image.new("RGB", (640, 320))
    assert thumbnail(picture).size == (320, 160) and picture.size == (640, 320)
