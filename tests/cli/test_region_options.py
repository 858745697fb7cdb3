"""Region options: typed order, styles, frames and files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vip_llava.cli.legacy_options import LegacyOptions
from vip_llava.cli.option_groups import TypedOption
from vip_llava.cli.region_options import SHAPE_OPTIONS, region_from_text, regions_from_typed
from vip_llava.errors import RegionError
from vip_llava.regions import Arrow, Box, Contour, Ellipse, Mask, Point, Scribble, Triangle

SIZE = (336, 200)
TYPED = {
    "box": ("1,2,30,40", Box(1, 2, 30, 40)),
    "ellipse": ("1,2,30,40", Ellipse(1, 2, 30, 40)),
    "triangle": ("1,2,30,40,5,60", Triangle(((1, 2), (30, 40), (5, 60)))),
    "point": ("1,2,3", Point(1, 2, radius=3)),
    "arrow": ("1,2,30,40", Arrow(tail=(1, 2), tip=(30, 40))),
    "scribble": ("1,2,3,4,5,6,7,8", Scribble(((1, 2), (3, 4), (5, 6), (7, 8)))),
    "contour": ("1,2,30,40,5,60", Contour(polygons=((1, 2, 30, 40, 5, 60),))),
    "mask": ("1,2,30,40,5,60", Mask(polygons=((1, 2, 30, 40, 5, 60),))),
}


def typed(*pairs: str) -> list[TypedOption]:
    return [TypedOption(*pair.split("=", 1)) for pair in pairs]


@pytest.mark.parametrize("name", list(SHAPE_OPTIONS))
def test_every_shape_is_parsed(name: str) -> None:
    text, wanted = TYPED[name]
    assert region_from_text(name, text, (SIZE, "pixel")) == wanted


def test_there_is_an_option_for_every_shape() -> None:
    from vip_llava.regions.shapes import SHAPES

    assert set(SHAPE_OPTIONS) == set(SHAPES)


def test_unit_coordinates() -> None:
    found = regions_from_typed(typed("box=0,0,0.5,0.5", "point=0.5,0.5"), SIZE, unit=True)
    assert found == [Box(0, 0, 0.5, 0.5, frame="unit"), Point(0.5, 0.5, frame="unit")]


def test_a_mask_raster_is_in_pixels_even_with_unit(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("L", SIZE, 255).save(tmp_path / "mask.png")
    (found,) = regions_from_typed(typed(f"mask={tmp_path / 'mask.png'}"), SIZE, unit=True)
    assert found.frame == "pixel"


def test_a_style_before_all_regions_is_the_default() -> None:
    found = regions_from_typed(
        typed("color=blue", "width=5", "box=1,1,9,9", "alpha=99", "point=3,3"), SIZE
    )
    assert [(each.color, each.width, each.alpha) for each in found] == [
        ("blue", 5, 99),
        ("blue", 5, None),
    ]


def test_a_style_after_a_region_applies_to_that_region() -> None:
    found = regions_from_typed(
        typed("color=red", "box=1,1,9,9", "box=2,2,9,9", "color=#00ff00", "box=3,3,9,9"), SIZE
    )
    assert [each.color for each in found] == ["red", "#00ff00", "red"]


def test_a_color_may_be_three_numbers() -> None:
    (found,) = regions_from_typed(typed("box=1,1,9,9", "color=1,2,3"), SIZE)
    assert found.color == "#010203"


def test_regions_from_a_file_keep_their_frame_and_style(tmp_path: Path) -> None:
    path = tmp_path / "regions.json"
    own = {"id": "dog", "shape": "box", "frame": "unit", "box": [0, 0, 0.5, 0.5], "color": "aqua"}
    plain = {"shape": "point", "frame": "pixel", "point": [3, 4]}
    path.write_text(json.dumps([own, plain]))
    found = regions_from_typed(
        typed("color=blue", f"regions={path}", "box=1,1,9,9"), SIZE, unit=True
    )
    assert found == [
        Box(0, 0, 0.5, 0.5, frame="unit", color="aqua", id="dog"),
        Point(3, 4, color="blue"),
        Box(1, 1, 9, 9, frame="unit", color="blue"),
    ]


@pytest.mark.parametrize(
    "wrap", [lambda one: one, lambda one: {"regions": [one]}, lambda one: [one]]
)
def test_a_regions_file_holds_a_region_a_list_or_an_object(tmp_path: Path, wrap: object) -> None:
    path = tmp_path / "regions.json"
    one = {"shape": "box", "frame": "pixel", "box": [1, 2, 3, 4]}
    path.write_text(json.dumps(wrap(one)))  # type: ignore[operator]
    assert regions_from_typed(typed(f"regions={path}"), SIZE) == [Box(1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("box=1,2,3", "--box '1,2,3': needs 4 numbers x1,y1,x2,y2, got 3"),
        ("box=9,9,1,1", "--box '9,9,1,1': box: the corners are reversed"),
        ("arrow=1,2,3", "--arrow '1,2,3': needs 4 numbers"),
        ("triangle=1,2,3,4", "--triangle '1,2,3,4': "),
        ("point=1", "--point '1': needs x,y or x,y,radius"),
        ("point=1,2,-3", "--point '1,2,-3': point: radius must be over 0"),
        ("scribble=1,2,3", "--scribble '1,2,3': 3 numbers do not form x,y pairs"),
        ("mask=1,2,3,4", "--mask '1,2,3,4': "),
        ('mask={"size": [1, 1]}', "expected polygons, COCO RLE"),
        ("mask=nowhere.png", "--mask nowhere.png: no such file"),
        ("regions=nowhere.json", "--regions nowhere.json: no such file"),
        ("color=mauve", "--color 'mauve': unknown colour 'mauve'"),
        ("color=300,0,0", "--color '300,0,0': unknown colour"),
        ("alpha=300", "--alpha '300': alpha must be a whole number 0..255"),
        ("width=1e9", "--width '1e9': width is 1e+09, beyond the limit"),
        ("alpha=half", "--alpha 'half': needs a whole number"),
        ("width=0", "--width '0': needs a number of pixels above 0"),
        ("width=nan", "--width 'nan'"),
    ],
)
def test_errors_name_the_option_and_the_rule(option: str, message: str) -> None:
    with pytest.raises(RegionError) as caught:
        regions_from_typed(typed("box=1,1,9,9", option), SIZE)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "content", ["[1]", '{"a": 1}', '[{"shape": "star", "frame": "pixel"}]', "3"]
)
def test_a_wrong_regions_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(RegionError, match=r"--regions .*r\.json: "):
        regions_from_typed(typed(f"regions={tmp_path / 'r.json'}"), SIZE)


def test_an_empty_regions_file_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.json").write_text("[]")
    assert regions_from_typed(typed(f"regions={tmp_path / 'r.json'}"), SIZE) == []
    assert "the list of regions is empty" in capsys.readouterr().err.replace("\n", " ")


def test_flags_of_the_original_take_their_typed_place() -> None:
    legacy = LegacyOptions(bbox=["10,20,30,40"])
    found = regions_from_typed(
        typed("box=1,1,9,9", "bbox=10,20,30,40", "width=6", "point=3,3"), SIZE, legacy=legacy
    )
    assert found == [
        Box(1, 1, 9, 9),
        Box(10, 20, 30, 40, color=(255, 0, 0), alpha=128, width=6),
        Point(3, 3),
    ]
