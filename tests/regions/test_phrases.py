"""Phrases of regions in a question: trained words, grammar, ambiguity, and the inverse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vip_llava.errors import PhraseError
from vip_llava.regions.colors import PALETTE
from vip_llava.regions.phrases import collapse, expand, phrase, placeholders, wording
from vip_llava.regions.shapes import (
    Arrow,
    Box,
    Contour,
    Ellipse,
    Mask,
    Point,
    Region,
    Scribble,
    Triangle,
)

OUTLINE = [[10, 10, 30, 12, 20, 40]]


def box(
    id: str, color: str | tuple[int, int, int] | None = "red", x: float = 0, y: float = 0
) -> Box:
    return Box(x, y, x + 10, y + 10, color=color, id=id)


def one_of_each(color: str | None) -> dict[str, Region]:
    return {
        "within the{} rectangle": Box(0, 0, 9, 9, color=color),
        "within the{} ellipse": Ellipse(0, 0, 9, 9, color=color),
        "with the{} triangle": Triangle([(0, 0), (9, 0), (0, 9)], color=color),
        "at the{} point": Point(5, 5, color=color),
        "with the{} scribble": Scribble([(0, 0), (9, 9)], color=color),
        "with the{} mask contour": Contour(polygons=OUTLINE, color=color),
        "with the{} mask": Mask(polygons=OUTLINE, color=color),
        "pointed to by the{} arrow": Arrow(tail=(0, 0), tip=(9, 9), color=color),
    }


@pytest.mark.parametrize("color", [*PALETTE, None])
def test_every_shape_has_the_trained_phrase(color: str | None) -> None:
    for expected, region in one_of_each(color).items():
        assert phrase(region) == expected.format("" if color is None else f" {color}")


def test_a_colour_without_a_name_has_no_word_and_rgb_of_a_named_one_has() -> None:
    assert phrase(Box(0, 0, 9, 9, color="#123456")) == "within the rectangle"
    assert phrase(Box(0, 0, 9, 9, color=(255, 165, 0))) == "within the orange rectangle"
    assert phrase(Box(0, 0, 9, 9, color="#ffd700")) == "within the gold rectangle"


def test_wording_without_article() -> None:
    assert wording("arrow", "lime", article=False) == "pointed to by lime arrow"
    assert wording("contour") == "with the mask contour"
    with pytest.raises(PhraseError, match="rectangle"):
        wording("rectangle")


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is <region:1>?", "What is the object within the red rectangle?"),
        (
            "Is <region:1> bigger than <region:2>?",
            "Is the object within the red rectangle bigger than the object pointed to by the lime arrow?",
        ),
        (
            "<region:1> and <region:2>",
            "The object within the red rectangle and the object pointed to by the lime arrow",
        ),
        (
            "What is the person <region:1> doing?",
            "What is the person within the red rectangle doing?",
        ),
        (
            "Why is the young man <region:2> smiling?",
            "Why is the young man pointed to by the lime arrow smiling?",
        ),
        ("What is in the <region:1>?", "What is in the object within the red rectangle?"),
        ("Describe <region:1>.", "Describe the object within the red rectangle."),
        ("Look. <region:1> is what?", "Look. The object within the red rectangle is what?"),
        ("Choose.\nA. <region:1>", "Choose.\nA. The object within the red rectangle"),
        ("Does the dog like <region:1>?", "Does the dog like the object within the red rectangle?"),
        ("Does this match <region:1>?", "Does this match the object within the red rectangle?"),
        ("left of <region:1>, is it?", "left of the object within the red rectangle, is it?"),
        ("<image>\n<region:1>?", "<image>\nThe object within the red rectangle?"),
        ('Is it ("<region:1>")?', 'Is it ("the object within the red rectangle")?'),
        ("<region:1><region:1>", "The object within the red rectanglewithin the red rectangle"),
        ("no placeholder", "no placeholder"),
        ("", ""),
        ("the region <b>", "the region <b>"),
        ("<regional>", "<regional>"),
    ],
)
def test_questions_read_naturally(question: str, expected: str) -> None:
    regions = [box("1"), Arrow(tail=(0, 0), tip=(20, 20), color="lime", id="2")]
    assert expand(question, regions) == expected
    assert collapse(expected, regions) == collapse(question, regions)


def test_unknown_id_names_the_known_ones() -> None:
    with pytest.raises(PhraseError, match=r"<region:3>.*'1', 'cat'"):
        expand("What is <region:3>?", [box("1"), box("cat", "lime")])
    with pytest.raises(PhraseError, match="none"):
        expand("What is <region:1>?", [])


@pytest.mark.parametrize(
    "bad",
    [
        "<region:>",
        "<region: 1>",
        "<region 1>",
        "<region>",
        "<region:1",
        "< region:1>",
        "<Region:1>",
    ],
)
def test_malformed_placeholders_are_errors_that_show_the_right_form(bad: str) -> None:
    with pytest.raises(PhraseError, match=r"malformed.*character 8.*<region:1>"):
        expand(f"What is {bad}?", [box("1")])


def test_placeholders_lists_ids_in_order() -> None:
    assert placeholders("<region:b> or <region:a> or <region:b>") == ("b", "a", "b")


def test_regions_without_ids_count_from_one() -> None:
    regions = [Box(0, 0, 9, 9, color="red"), Box(0, 0, 9, 9, color="lime")]
    assert expand("Is <region:2> big?", regions) == "Is the object within the lime rectangle big?"


def test_two_equal_ids_are_an_error() -> None:
    with pytest.raises(PhraseError, match="'1'"):
        expand("What is <region:1>?", [box("1"), box("1", "lime")])


def test_two_equal_marks_are_distinguished_by_position() -> None:
    beside = [box("1", x=50, y=3), box("2", x=0), box("3", "lime", x=20)]
    assert phrase(beside[0], beside) == "within the right red rectangle"
    assert phrase(beside[1], beside) == "within the left red rectangle"
    assert phrase(beside[2], beside) == "within the lime rectangle"
    stacked = [box("1", y=80, x=3), box("2")]
    assert phrase(stacked[0], stacked) == "within the lower red rectangle"
    assert phrase(stacked[1], stacked) == "within the upper red rectangle"


def test_three_equal_marks_are_numbered() -> None:
    row = [box("1", x=100), box("2", x=0), box("3", x=50)]
    assert phrase(row[2], row) == "within the second red rectangle from the left"
    column = [box("1", y=100), box("2", y=0), box("3", y=50)]
    assert phrase(column[0], column) == "within the third red rectangle from the top"


def test_an_unnamed_colour_is_distinguished_from_all_of_its_shape() -> None:
    regions = [box("1", "red", x=50), box("2", "#102030", x=0)]
    assert phrase(regions[0], regions) == "within the red rectangle"
    assert phrase(regions[1], regions) == "within the left rectangle"


def test_an_arrow_is_placed_by_its_tip() -> None:
    regions = [
        Arrow(tail=(100, 0), tip=(10, 0), color="red", id="1"),
        Arrow(tail=(0, 0), tip=(60, 0), color="red", id="2"),
    ]
    assert phrase(regions[0], regions) == "pointed to by the left red arrow"


def test_same_place_same_looks_is_an_error_only_when_mentioned() -> None:
    regions = [box("1"), box("2"), box("3", "lime")]
    assert expand("What is <region:3>?", regions) == "What is the object within the lime rectangle?"
    with pytest.raises(PhraseError, match="'1', '2'"):
        expand("What is <region:1>?", regions)


def test_unit_frame_is_refused_where_places_are_compared() -> None:
    regions = [Box(0, 0, 0.5, 0.5, frame="unit", id="1"), Box(0.5, 0, 1, 1, frame="unit", id="2")]
    with pytest.raises(PhraseError, match="unit"):
        expand("What is <region:1>?", regions)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The object within red rectangle", "<region:1>"),
        (
            "What is the person within the red rectangle doing?",
            "What is the person <region:1> doing?",
        ),
        ("the dog with the mask", "the dog with the mask"),  # blue and aqua masks: which one?
        ("the dog with blue mask contour", "the dog <region:3>"),
        ("the dog with blue mask", "the dog <region:4>"),
        ("within the rectangle", "<region:1>"),  # the only one
        ("the object <region:1> and the <region:3>", "<region:1> and <region:3>"),
        ("within the lime rectangle", "within the lime rectangle"),
    ],
)
def test_collapse_knows_the_trained_variants(text: str, expected: str) -> None:
    regions = [
        box("1"),
        Contour(polygons=OUTLINE, color="red", id="2"),
        Contour(polygons=OUTLINE, color="blue", id="3"),
        Mask(polygons=OUTLINE, color="blue", id="4"),
        Mask(polygons=OUTLINE, color="aqua", id="5"),
    ]
    assert collapse(text, regions) == expected


COLORS = st.sampled_from([*PALETTE, "#123456", "#abcdef"])
IDS = st.lists(
    st.from_regex(r"[A-Za-z0-9_.-]{1,6}", fullmatch=True), min_size=1, max_size=5, unique=True
)


@st.composite
def region_lists(draw: st.DrawFn) -> list[Region]:
    """Regions side by side, of any shape and colour, distinguished by phrase or position."""
    regions: list[Region] = []
    for index, name in enumerate(draw(IDS)):
        x, color = 20.0 * index, draw(COLORS)
        shape = draw(st.sampled_from(list(one_of_each(None).values())))
        if isinstance(shape, (Box, Ellipse)):
            regions.append(type(shape)(x, 0, x + 9, 9, color=color, id=name))
        elif isinstance(shape, Point):
            regions.append(Point(x, 5, color=color, id=name))
        elif isinstance(shape, Arrow):
            regions.append(Arrow(tail=(0, 50), tip=(x, 0), color=color, id=name))
        elif isinstance(shape, (Contour, Mask)):
            regions.append(type(shape)(polygons=[[x, 0, x + 9, 0, x, 9]], color=color, id=name))
        else:
            regions.append(type(shape)([(x, 0), (x + 9, 0), (x, 9)], color=color, id=name))
    return regions


TEXT = "What is the The person object dog of than and ? . \n 'quoted' ( within bathe with A. THE"
WORDS = st.sampled_from(TEXT.split(" "))


@given(data=st.data(), regions=region_lists())
def test_expand_then_collapse_returns_the_text(data: st.DataObject, regions: list[Region]) -> None:
    names = st.sampled_from([f"<region:{region.id}>" for region in regions])
    pieces = st.one_of(WORDS, names, st.text(max_size=4).filter(lambda text: "<" not in text))
    gap = st.sampled_from([" ", " ", " ", ""])
    text = "".join(data.draw(st.lists(st.tuples(pieces, gap).map("".join), max_size=12)))
    # The one-to-one texts are those without wording of their own: "the object <region:1>" and
    # "<region:1>" expand alike, and `collapse` gives the shorter.
    text = collapse(text, regions)
    if collapse(text, regions) != text:
        return
    worded = expand(text, regions)
    assert "<region:" not in worded
    assert collapse(worded, regions) == text


@given(regions=region_lists())
def test_every_region_has_its_own_phrase(regions: list[Region]) -> None:
    phrases = [phrase(region, regions) for region in regions]
    assert len(set(phrases)) == len(phrases)
