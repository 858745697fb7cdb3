"""`vip-llava draw` on a real photo."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vip_llava.images import open_image
from vip_llava.regions import Arrow, Box, Ellipse, Point, draw

Program = Callable[..., Any]


def test_the_drawing_equals_that_of_the_library(
    program: Program, photo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.png"
    ran = program(
        "draw", photo, "--point", "60,40,3", "--box", "5,5,40,30", "--arrow", "70,5,50,20",
        "--ellipse", "3,33,30,58", "--save", out,
    )  # fmt: skip
    assert (ran.code, ran.out) == (0, "")
    assert "out.png" in ran.err
    wanted = draw(
        open_image(photo),
        [
            Point(60, 40, radius=3),
            Box(5, 5, 40, 30),
            Arrow(tail=(70, 5), tip=(50, 20)),
            Ellipse(3, 33, 30, 58),
        ],
    )
    assert np.array_equal(np.asarray(open_image(out)), np.asarray(wanted))


def test_ids_follow_typed_order_across_options(program: Program, photo: Path) -> None:
    argv = ["--point", "60,40", "--box", "5,5,40,30", "--point=20,20", "--box", "6,6,9,9"]
    ran = program("draw", *argv, photo, "--json")
    regions = json.loads(ran.out)["regions"]
    assert [(each["id"], each["shape"]) for each in regions] == [
        ("1", "point"), ("2", "box"), ("3", "point"), ("4", "box"),
    ]  # fmt: skip
    assert regions[2]["point"] == [20, 20]


def test_styles_apply_to_all_regions_or_to_one(program: Program, photo: Path) -> None:
    ran = program(
        "draw", photo, "--json", "--color", "aqua", "--width", "2", "--box", "5,5,40,30",
        "--box", "6,6,50,50", "--color", "gold", "--alpha", "90",
    )  # fmt: skip
    first, second = json.loads(ran.out)["regions"]
    assert (first["color"], first["width"], first["alpha"]) == ("aqua", 2, 255)
    assert (second["color"], second["width"], second["alpha"]) == ("gold", 2, 90)


def test_unit_coordinates_are_fractions_of_the_photo(program: Program, photo: Path) -> None:
    ran = program("draw", photo, "--unit", "--box", "0,0,0.5,0.5", "--json")
    content = json.loads(ran.out)
    assert content["regions"][0]["box"] == [0, 0, 40, 30]
    assert content["size"] == [80, 60]


def test_clipping_is_noted_on_stderr_and_in_json(program: Program, photo: Path) -> None:
    ran = program("draw", photo, "--box", "5,5,400,30", "--json")
    assert "cut off" in ran.err
    assert "cut off" in json.loads(ran.out)["notes"][0]


def test_flags_of_the_original_draw_the_same_region(
    program: Program, photo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.png"
    ran = program(
        "draw", "--image-file", photo, "--bbox", "10,10,60,50", "--shape", "rectangle",
        "--rgb", "0,0,255", "--alpha", "255", "--width", "10", "--save", out,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    wanted = draw(open_image(photo), [Box(10, 10, 60, 50, color="blue", alpha=255, width=2)])
    assert np.array_equal(np.asarray(open_image(out)), np.asarray(wanted))


def test_a_mask_file_is_drawn(program: Program, photo: Path, tmp_path: Path) -> None:
    mask = np.zeros((60, 80), dtype=np.uint8)
    mask[10:20, 30:50] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    out = tmp_path / "out.png"
    ran = program(
        "draw",
        photo,
        "--mask",
        tmp_path / "mask.png",
        "--color",
        "#ff0000",
        "--alpha",
        255,
        "--save",
        out,
    )
    assert ran.code == 0, ran.err
    red = (np.asarray(open_image(out)) == (255, 0, 0)).all(axis=2)
    assert np.array_equal(red, mask > 0)


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".webp", ".bmp", ".tiff"])
def test_the_format_follows_the_name(
    program: Program, photo: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"out{suffix}"
    assert program("draw", photo, "--box", "5,5,40,30", "--save", out).code == 0
    with Image.open(out) as drawn:
        assert drawn.size == (80, 60)


def test_the_photo_may_come_from_stdin_and_the_image_go_to_stdout(
    vip_llava: Callable[..., Any], photo: Path
) -> None:
    done = vip_llava("draw", "-", "--box", "5,5,40,30", "--save", "-", stdin=photo.read_bytes())
    assert done.returncode == 0, done.stderr
    wanted = draw(open_image(photo), [Box(5, 5, 40, 30)])
    assert open_image(done.stdout).tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--box", "5,5,40,30"], "no output"),
        (["--save", "o.png"], "nothing to draw"),
        (["--box", "5,5,40,30", "--save", "o.gif"], "--save o.gif: the name must end in"),
        (["--box", "5,5,40,30", "--save", "no/o.png"], "--save no/o.png: there is no folder"),
        (["--box", "5,5,40,30", "--save", "{folder}.png"], ".png: this is a folder"),
        (["--box", "5,5,40,30", "--save", "{folder}/../photo.png"], "this is the photo itself"),
        (["--box", "5,5,40,30", "--save", "-", "--json"], "both write to stdout"),
        (["--unit", "--box", "5,5,40,30", "--json"], "coordinates inside the image are 0 to 1"),
        (["--box", "5,5,40,30", "--color", "mauve", "--json"], "--color 'mauve'"),
        (["--box", "500,500,900,900", "--json"], "region '1' (box)"),
        (["--shape", "arrow", "--json"], "need --bbox"),
        (["--box", "40,30,5,5", "--json"], "--box '40,30,5,5': box: the corners are reversed"),
        (["--boxx", "1"], "No such option"),
        (["--box"], "requires an argument"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    program: Program, photo: Path, tmp_path: Path, argv: list[str], message: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder").mkdir()
    ran = program("draw", photo, *(each.format(folder=tmp_path / "folder") for each in argv))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("vip-llava: error: ") and message in ran.err
    assert len(ran.err.splitlines()) <= 2 and "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.png", None, "none.png: no such photo"),
        ("text.png", b"hello", "text.png"),
        ("", None, "a folder, not a photo"),
    ],
)
def test_an_unreadable_photo_is_named(
    program: Program, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    ran = program("draw", path, "--box", "1,1,9,9", "--json")
    assert ran.code == 2 and message in ran.err


def test_an_empty_photo_on_stdin_is_reported(vip_llava: Callable[..., Any]) -> None:
    done = vip_llava("draw", "-", "--box", "1,1,9,9", "--json", stdin=b"")
    assert done.returncode == 2 and b"the photo from stdin (-): the image is empty" in done.stderr


def test_a_full_disk_names_the_file(
    program: Program, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")  # as a write fails: without the file's name

    monkeypatch.setattr(Image.Image, "save", full)
    ran = program("draw", photo, "--box", "1,1,9,9", "--save", tmp_path / "o.png")
    assert ran.code == 1
    assert f"--save {tmp_path / 'o.png'}: can't be written: No space left on device" in ran.err


def test_a_web_address_is_refused(program: Program) -> None:
    ran = program("draw", "https://example.com/photo.jpg", "--box", "1,1,9,9", "--json")
    assert ran.code == 2 and "not fetched" in ran.err
