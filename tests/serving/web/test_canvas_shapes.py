"""Drawing each shape in a browser: its JSON, and the preview compared with the server's drawing."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_board import Board
from PIL import Image, ImageFilter

from vip_llava.images import open_image
from vip_llava.regions import draw, region_from_json, resolve

PHOTO = Path(__file__).parents[3] / "examples" / "photos" / "coffee.jpg"

# Tool -> the points of a drag, and the expected geometry.
DRAWN: dict[str, tuple[list[tuple[float, float]], dict[str, Any]]] = {
    "box": ([(160, 150), (40, 30)], {"box": [40, 30, 160, 150]}),
    "ellipse": ([(40, 30), (200, 150)], {"box": [40, 30, 200, 150]}),
    "triangle": ([(40, 30), (200, 150)], {"points": [[120, 30], [200, 150], [40, 150]]}),
    "point": ([(100, 90), (120, 80)], {"point": [120, 80], "radius": 14}),
    "scribble": (
        [(30, 30), (90, 90), (150, 30), (210, 90)],
        {"points": [[30, 30], [90, 90], [150, 30], [210, 90]]},
    ),
    "arrow": ([(300, 40), (120, 200)], {"tail": [300, 40], "tip": [120, 200]}),
    "contour": (
        [(140, 180), (260, 190), (250, 300), (150, 290)],
        {"polygons": [[140, 180, 260, 190, 250, 300, 150, 290]]},
    ),
    "mask": (
        [(140, 180), (260, 190), (250, 300), (150, 290)],
        {"polygons": [[140, 180, 260, 190, 250, 300, 150, 290]]},
    ),
}


@pytest.fixture(scope="module")
def page(browser: Any, alone: str) -> Iterator[Any]:
    """One page for all shapes, with the photo at exactly 100 %."""
    context = browser.new_context(viewport={"width": 900, "height": 1000})
    page = context.new_page()
    page.goto(alone)
    board = Board(page)
    board.open(PHOTO)
    page.evaluate("window.canvas.zoomTo(1)")
    yield page
    context.close()


@pytest.fixture
def board(page: Any) -> Iterator[Board]:
    yield Board(page)
    page.evaluate("() => { window.canvas.model.clear([600, 400]); window.canvas.changed(); }")


@pytest.mark.parametrize("shape", DRAWN)
def test_a_drag_gives_the_exact_region(board: Board, shape: str) -> None:
    places, geometry = DRAWN[shape]
    board.tool(shape)
    board.drag(*places)
    (found,) = board.regions()
    wanted = {"id": "1", "shape": shape, "frame": "pixel", "color": "red", **geometry}
    assert wanted.items() <= found.items()
    # The canvas's regions are complete: the server adds only an arrow's head.
    region = region_from_json(found)
    (resolved,) = resolve([region], (600, 400)).regions
    assert {**resolved.to_json(), "head": None} == {**region.to_json(), "head": None}


@pytest.mark.parametrize("shape", DRAWN)
@pytest.mark.parametrize("alpha", [255, 120])
def test_the_preview_resembles_the_servers_drawing(board: Board, shape: str, alpha: int) -> None:
    places, _ = DRAWN[shape]
    bare = shown(board)
    photo = np.array(open_image(PHOTO)).astype(int)
    assert np.abs(bare - photo).max() <= 1  # at 100 % the canvas shows the exact pixels
    board.page.evaluate("alpha => window.canvas.model.setStyle('alpha', alpha)", alpha)
    board.tool(shape)
    board.drag(*places)
    preview = shown(board)
    drawn = np.array(draw(open_image(PHOTO), [region_from_json(board.regions()[0])])).astype(int)
    mine, real = (np.abs(each - photo).max(-1) > 12 for each in (preview, drawn))
    # Lines are antialiased on the screen only, so neighbouring pixels may differ.
    assert (mine & ~wider(real)).sum() <= 0.01 * mine.sum()
    assert (real & ~wider(mine)).sum() <= 0.01 * real.sum()
    assert abs(int(mine.sum()) - int(real.sum())) <= 0.7 * real.sum()
    both = mine & real
    assert np.median(np.abs(preview - drawn)[both].max(-1)) <= 2


def wider(marks: Any) -> Any:
    """Dilate by the eight neighbours of each pixel."""
    return np.array(Image.fromarray(marks).convert("L").filter(ImageFilter.MaxFilter(3))) > 0


def shown(board: Board) -> Any:
    """The canvas's pixels at the image, [400, 600, 3]."""
    board.page.evaluate("() => window.canvas.draw()")
    url = board.page.evaluate("() => window.canvas.canvas.toDataURL()")
    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
    left, top = (round(part) for part in board.view()["offset"])
    return np.array(image.crop((left, top, left + 600, top + 400))).astype(int)


@pytest.mark.parametrize("shape", ["contour", "mask"])
def test_an_outline_of_clicks_closes_at_its_first_corner(board: Board, shape: str) -> None:
    board.tool(shape)
    for place in [(300, 200), (400, 200), (350, 280)]:
        board.click(*place)
        board.page.wait_for_timeout(320)  # avoids a double click
    assert board.regions() == []
    board.click(302, 201)
    assert board.regions()[0]["polygons"] == [[300, 200, 400, 200, 350, 280]]
    board.click(50, 50)
    board.page.keyboard.press("Escape")
    board.click(60, 60)
    board.page.keyboard.press("Enter")
    assert len(board.regions()) == 1  # one corner is not an outline
    assert "at least three corners" in board.status()


def test_a_self_intersecting_loop_becomes_its_enclosed_area(board: Board) -> None:
    board.tool("mask")
    board.drag((100, 100), (300, 300), (300, 100), (100, 300), (100, 102))
    board.page.wait_for_function("() => window.value.regions.length === 1")
    (found,) = board.regions()
    region = region_from_json(found)  # the library refuses self-intersecting polygons
    assert region.bounds((600, 400)) == pytest.approx((100, 100, 300, 300), abs=1)
    assert len(found["polygons"]) == 2  # the two halves of the bow tie


def test_a_simplified_line_keeps_its_shape(board: Board) -> None:
    board.tool("scribble")
    angles = np.linspace(0, 4 * np.pi, 120)
    path = [(300 + 9 * a * np.cos(a), 200 + 9 * a * np.sin(a)) for a in angles]
    board.drag(*path)
    (found,) = board.regions()
    spots = np.array(found["points"])
    assert len(spots) < 240
    for x, y in path:
        ends = spots[1:] - spots[:-1]
        share = (np.array([x, y]) - spots[:-1]) * ends
        share = np.clip(share.sum(1) / (ends**2).sum(1), 0, 1)[:, None]
        assert np.hypot(*(spots[:-1] + share * ends - [x, y]).T).min() < 1.0


def test_drags_beyond_the_image_end_at_its_border(board: Board) -> None:
    board.tool("box")
    board.drag((-20, -10), (700, 500))
    board.tool("point")
    board.click(-15, 200)
    assert board.regions()[0]["box"] == [0, 0, 600, 400]
    assert board.regions()[1]["point"] == [0, 200]
    assert resolve([region_from_json(board.regions()[0])], (600, 400)).notes == ()


def test_a_click_draws_no_box(board: Board) -> None:
    for tool in ("box", "ellipse", "triangle", "arrow", "scribble"):
        board.tool(tool)
        board.click(100, 100)
    assert board.regions() == []


def test_masks_are_suggested_from_a_click_and_a_box(board: Board) -> None:
    board.tool("suggest")
    board.click(300, 200)  # on the coffee
    board.page.wait_for_function("() => window.value.regions.length === 1")
    board.drag((160, 90), (440, 330))
    board.page.wait_for_function("() => window.value.regions.length === 2")
    for found in board.regions():
        region = region_from_json(found)
        x1, y1, x2, y2 = region.bounds((600, 400))
        assert x1 < 300 < x2
        assert y1 < 200 < y2
        assert found["shape"] == "mask"
    assert board.regions()[0]["color"] != board.regions()[1]["color"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"no image", "is no image"), (b"", "empty"), (b"\x89PNG\r\n\x1a\nrest", "damaged")],
)
def test_a_file_that_is_not_an_image_is_refused_with_the_reason(
    board: Board, tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    before: Callable[[], Any] = board.page.evaluate("() => window.canvas.image.id")
    board.open(path)
    with pytest.raises(ValueError, match=r".") as refused:
        open_image(content)
    assert board.status() == str(refused.value)
    assert board.page.evaluate("() => window.canvas.image.id") == before
