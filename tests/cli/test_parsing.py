"""Numbers, points and polygons parsed from option text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vip_llava.cli.parsing import (
    is_number_text,
    parse_numbers,
    parse_pairs,
    parse_polygons,
    polygons_from,
)
from vip_llava.errors import RegionError


@pytest.mark.parametrize(
    "text",
    ["1,2,3,4", "1 2 3 4", " 1, 2 ,3,  4 ", "[1, 2, 3, 4]", "1,2,3,4,", "+1,2.0,3e0,4."],
)
def test_numbers_in_every_spelling(text: str) -> None:
    assert parse_numbers(text, "--box", "x1,y1,x2,y2") == [1, 2, 3, 4]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_numbers_survive_being_written(numbers: list[float]) -> None:
    assert parse_numbers(",".join(map(repr, numbers)), "--box", "numbers") == numbers


@pytest.mark.parametrize(
    "text", ["", "a,b", "1,,2", "1;2", "[1, true]", "[1,", "0x10", "nan", "[[1]]"]
)
def test_other_text_is_refused_with_the_option(text: str) -> None:
    with pytest.raises(RegionError, match=r"--box .*x1,y1,x2,y2"):
        parse_numbers(text, "--box", "x1,y1,x2,y2")


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for parse in (
        lambda: parse_numbers(text, "--box", "x"),
        lambda: parse_pairs(text, "--scribble", "x,y"),
        lambda: parse_polygons(text, "--mask"),
    ):
        try:
            parse()
        except RegionError as error:
            assert "--" in str(error)


def test_pairs_need_an_even_number() -> None:
    assert parse_pairs("1,2,3,4", "--scribble", "x,y,...") == [(1, 2), (3, 4)]
    with pytest.raises(RegionError, match="3 numbers do not form x,y pairs"):
        parse_pairs("1,2,3", "--scribble", "x,y,...")


@pytest.mark.parametrize(
    "text",
    [
        "0,0,9,0,9,9",
        "[0,0,9,0,9,9]",
        "[[0,0,9,0,9,9]]",
        "[[0,0],[9,0],[9,9]]",
        "[[[0,0],[9,0],[9,9]]]",
    ],
)
def test_one_polygon_in_every_spelling(text: str) -> None:
    assert parse_polygons(text, "--mask") == [[0, 0, 9, 0, 9, 9]]


def test_several_polygons() -> None:
    two = [[0, 0, 9, 0, 9, 9], [1, 1, 2, 1, 2, 2]]
    assert parse_polygons("0,0,9,0,9,9;1,1,2,1,2,2", "--mask") == two
    assert polygons_from(two, "here") == two


@pytest.mark.parametrize("found", [None, 3, "1,2", [], {}, [[]], [[1, "a"]], [None], [True, False]])
def test_json_without_polygons_is_refused(found: object) -> None:
    with pytest.raises(RegionError, match="here: expected polygons"):
        polygons_from(found, "here")


def test_a_number_too_large_for_a_float_is_refused() -> None:
    with pytest.raises(RegionError, match="too large"):
        parse_numbers(f"[{10**400}]", "--box", "x1,y1,x2,y2")


@pytest.mark.parametrize(
    ("text", "number"),
    [("1,2,3", True), ("[1]", True), ("1e3,-2", True), ("mask.png", False), ("./1,2", False),
     ("", False), ("-", False), ("e", False)],
)  # fmt: skip
def test_file_names_and_coordinates_are_distinguished(text: str, number: bool) -> None:
    assert is_number_text(text) is number
