from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from PIL import Image

from vip_llava.data.html_page import Card, PromptPart, page
from vip_llava.regions import Arrow, Box, Region


class Reader(HTMLParser):
    """The tags with their attributes, and the text inside some of them, as parsed by a browser."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in self._open:
            self.text[tag] = self.text.get(tag, "") + data


def written(*cards: Card, title: str = "rows", remarks: tuple[str, ...] = ()) -> str:
    return "".join(page(title, remarks, cards))


def read(*cards: Card, **options: Any) -> Reader:
    return Reader(written(*cards, **options))


EVIL = "</mark></div><script>alert(1)</script><img src=x onerror='a'>&amp; \"q\""


def test_every_text_is_escaped() -> None:
    region: Region = Box(1, 2, 30, 40, id="1", color="red")
    card = Card(
        where=EVIL,
        id=EVIL,
        kind=EVIL,
        images=((EVIL, Image.new("RGB", (40, 30))),),
        parts=(PromptPart(EVIL), PromptPart(EVIL, True), PromptPart(EVIL, False, "frame")),
        regions=(region,),
        facts=(EVIL,),
    )
    broken = Card(where="row 2", id="b", problem=EVIL)
    found = read(card, broken, title=EVIL, remarks=(EVIL,))
    tags = [tag for tag, _ in found.tags]
    assert "script" not in tags
    assert tags.count("img") == 1
    assert found.text["title"] == EVIL
    assert found.text["mark"].count(EVIL) == 1
    # heading, remark, id, kind, place, caption, three pieces, fact, problem
    assert found.text["body"].count(EVIL) == 11
    assert not [name for _, given in found.tags for name in given if name.startswith("on")]


def test_the_page_has_no_scripts_or_external_resources() -> None:
    found = read(Card(where="r", id="1", images=(("p", Image.new("RGB", (9, 9))),)))
    policy = [given for tag, given in found.tags if given.get("http-equiv")]
    assert policy[0]["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    sources = [given["src"] for tag, given in found.tags if "src" in given]
    assert all(str(source).startswith("data:image/jpeg;base64,") for source in sources)
    assert not {"link", "script", "iframe", "a"} & {tag for tag, _ in found.tags}
    assert "url(" not in found.text["style"] and "@import" not in found.text["style"]


def test_learned_parts_are_highlighted() -> None:
    card = Card(
        where="row 1",
        id="7",
        parts=(
            PromptPart("USER: ", kind="frame"),
            PromptPart("<image>", kind="image"),
            PromptPart("What?"),
            PromptPart("A cup", True),
            PromptPart("</s>", True, "frame"),
        ),
    )
    text = written(card)
    article = text[text.index("<article>") :]
    assert re.findall(r"<mark>(.*?)</mark>", article) == ["A cup", "&lt;/s&gt;"]
    assert '<span class="image">&lt;image&gt;</span>' in article
    assert '<span class="frame">USER: </span><span class="image">' in article
    assert "<span>What?</span>" in article


def test_hidden_characters_are_spelled_out() -> None:
    card = Card(where="r", id="1", parts=(PromptPart("a\u202ebc\x00\u200b\nd\te é 猫"),))
    assert "a\\u202ebc\\u0000\\u200b\nd\te é 猫" in read(card).text["article"]


def test_images_are_small_copies() -> None:
    big = Image.new("RGB", (2000, 500), (10, 200, 30))
    found = read(Card(where="r", id="1", images=(("big", big),)))
    source = next(str(given["src"]) for tag, given in found.tags if tag == "img")
    shown = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    assert shown.size == (512, 128)
    assert all(abs(a - b) < 12 for a, b in zip(shown.getpixel((9, 9)), (10, 200, 30), strict=True))
    assert big.size == (2000, 500)


def test_regions_have_a_table() -> None:
    regions: tuple[Region, ...] = (
        Box(1, 2.25, 30, 40.04, id="1", color="gold", alpha=128, width=3),
        Arrow(tail=(1, 2), tip=(3, 4), id="b.2", color="#12ab9f"),
    )
    text = written(Card(where="r", id="1", regions=regions))
    assert "background:rgb(255,215,0)" in text and "background:rgb(18,171,159)" in text
    assert "<td>box [1, 2.2, 30, 40.0]</td>" in text
    assert "<td>alpha 128, width 3</td>" in text
    assert "<td>b.2</td><td>arrow</td>" in text


def test_long_geometry_is_cut() -> None:
    from vip_llava.regions import Scribble

    region = Scribble(points=[(n, n + 1) for n in range(200)], id="1")
    assert "..." in written(Card(where="r", id="1", regions=(region,)))
    assert len(written(Card(where="r", id="1", regions=(region,)))) < 6000


@pytest.mark.parametrize("tokens", [True, False])
def test_tokens_get_lines_between_them(tokens: bool) -> None:
    text = written(Card(where="r", id="1", parts=(PromptPart("a"), PromptPart("b")), tokens=tokens))
    assert ('<div class="text tokens"' in text) is tokens


def test_cards_are_written_one_by_one() -> None:
    taken = []

    def cards() -> Any:
        for number in range(3):
            taken.append(number)
            yield Card(where="r", id=str(number))

    parts = page("t", (), cards())
    next(parts)
    assert taken == []
    next(parts)
    assert taken == [0]
