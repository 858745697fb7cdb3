"""The canvas reports exact image coordinates at every zoom, device pixel ratio and window size.

What counts is what is on the screen: the made photo tells in its colours which of its pixels is shown
where, so a screenshot says what a pointer points at, without asking the canvas.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from page_board import Board
from PIL import Image


@contextmanager
def board_at(browser: Any, address: str, ratio: float, width: int, height: int) -> Iterator[Board]:
    context = browser.new_context(
        device_scale_factor=ratio, viewport={"width": width, "height": height}
    )
    try:
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector(".vl-stage")
        yield Board(page)
    finally:
        context.close()


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], Path]:
    """A photo that encodes x and y: red and green are triangle waves, blue counts the periods."""
    folder = tmp_path_factory.mktemp("coded")

    def make(width: int, height: int) -> Path:
        down, across = np.mgrid[0:height, 0:width]
        blue = (across // 256) * 60 + (down // 256) * 12
        path = folder / f"{width}x{height}.png"
        pixels = np.stack([wave(across), wave(down), blue], -1).astype(np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return make


def wave(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """A triangle wave from 0 to 255 and back, without jumps that interpolation could blend."""
    return np.where(values // 256 % 2 == 0, values % 256, 255 - values % 256)


def seen(page: Any) -> npt.NDArray[np.uint8]:
    return np.array(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))


def shown_at(
    screen: npt.NDArray[np.uint8], x: float, y: float, ratio: float
) -> tuple[float, float]:
    """The image pixel displayed at a position in CSS pixels."""
    red, green, blue = (int(v) for v in screen[int(y * ratio), int(x * ratio)])
    across, rest = divmod(round(blue / 12), 5)
    unfold = [
        value if part % 2 == 0 else 255 - value for value, part in ((red, across), (green, rest))
    ]
    return across * 256 + unfold[0], rest * 256 + unfold[1]


# Positions relative to the stage; each is clicked at whole CSS pixels.
SPOTS = [(0.5, 0.5), (0.42, 0.4), (0.56, 0.62), (0.47, 0.7)]


def check_spots(board: Board, ratio: float, wanted: int = 3, *, uneven: float = 0) -> None:
    page = board.page
    box = page.locator(".vl-surface").bounding_box()
    screen = seen(page)
    scale = board.view()["scale"]
    checked = 0
    for across, down in SPOTS:
        x, y = round(box["x"] + across * box["width"]), round(box["y"] + down * box["height"])
        column, row = shown_at(screen, x, y, ratio)
        if min(column % 256, row % 256) < 12 or max(column % 256, row % 256) > 243:
            continue  # blue is ambiguous there
        if max(column, row) >= 700:
            continue  # outside the image
        page.mouse.click(x, y)
        found = board.regions()[-1]["point"]
        # The screenshot's pixel spans 1 / (scale * ratio); its colour is rounded and blended by one.
        slack = 1.0 + 1.0 / (scale * ratio) + uneven / scale
        assert abs(found[0] - (column + 0.5)) <= slack, (found, column, row, scale)
        assert abs(found[1] - (row + 0.5)) <= slack, (found, column, row, scale)
        checked += 1
    assert checked >= wanted
    for _ in range(checked):
        page.keyboard.press("Control+z")


@pytest.mark.parametrize(
    ("ratio", "width", "height"),
    [(1, 300, 700), (1.5, 300, 700), (2, 700, 300), (3, 700, 300)],
)
def test_a_click_selects_the_displayed_pixel(
    browser: Any, alone: str, coded: Callable[..., Path], ratio: float, width: int, height: int
) -> None:
    with board_at(browser, alone, ratio, 900, 760) as board:
        board.open(coded(width, height))
        board.tool("point")
        check_spots(board, ratio, wanted=1)  # fitted
        for percent in (50, 100, 200, 400):
            board.page.evaluate("z => window.canvas.zoomTo(z / 100)", percent)
            board.page.wait_for_function(
                "z => document.querySelector('.vl-percent').textContent === `${z} %`", arg=percent
            )
            check_spots(board, ratio, wanted=2)


def test_coordinates_stay_right_after_the_window_is_resized(
    browser: Any, alone: str, coded: Callable[..., Path]
) -> None:
    with board_at(browser, alone, 1, 900, 760) as board:
        board.open(coded(700, 300))
        board.tool("box")
        board.drag((40, 30), (100, 90))
        before = board.regions()
        board.tool("point")
        for width, height in ((500, 700), (1200, 500), (390, 844)):
            board.page.set_viewport_size({"width": width, "height": height})
            board.page.wait_for_timeout(120)
            check_spots(board, 1, wanted=1)
        assert board.regions() == before  # the marks are unchanged


def test_coordinates_stay_right_on_a_scrolled_and_scaled_page(
    browser: Any, alone: str, coded: Callable[..., Path]
) -> None:
    with board_at(browser, alone, 1, 900, 500) as board:
        board.open(coded(700, 300))
        board.page.add_style_tag(content="body { margin-top: 300px; height: 3000px }")
        board.page.evaluate("window.scrollTo(0, 260)")
        board.tool("point")
        board.page.evaluate("window.scrollTo(0, 260)")
        # Browsers snap painting to whole CSS pixels, but not pointer coordinates.
        board.page.add_style_tag(content="body { margin-left: 7.5px }")
        check_spots(board, 1, wanted=1, uneven=0.5)
        board.page.add_style_tag(content="#place { transform: scale(0.8); transform-origin: 0 0 }")
        board.page.evaluate("window.scrollTo(0, 200)")
        check_spots(board, 1, wanted=1, uneven=0.5)


@pytest.mark.parametrize("zoom", [0.5, 1, 2.5, 4])
def test_zooming_keeps_the_image_point_under_the_pointer(
    browser: Any, alone: str, coded: Callable[..., Path], zoom: float
) -> None:
    with board_at(browser, alone, 1, 900, 760) as board:
        board.open(coded(700, 300))
        x, y = (round(part) for part in board.at(430, 120))
        board.page.mouse.move(x, y)
        before = shown_at(seen(board.page), x, y, 1)
        board.page.keyboard.down("Control")
        while board.view()["scale"] < zoom * 0.99:
            board.page.mouse.wheel(0, -60)
        while board.view()["scale"] > zoom * 1.01:
            board.page.mouse.wheel(0, 60)
            if board.view()["scale"] < zoom:
                break
        board.page.keyboard.up("Control")
        board.page.wait_for_timeout(60)
        after = shown_at(seen(board.page), x, y, 1)
        assert np.allclose(before, after, atol=2 + 1 / min(zoom, 1))
        board.tool("pan")
        board.page.mouse.move(x, y)
        board.page.mouse.down()
        board.page.mouse.move(x + 37, y - 21, steps=4)
        board.page.mouse.up()
        board.page.wait_for_timeout(60)
        moved = shown_at(seen(board.page), x + 37, y - 21, 1)
        assert np.allclose(after, moved, atol=2 + 1 / min(zoom, 1))


def test_marks_use_the_frame_of_the_upright_image(browser: Any, alone: str, tmp_path: Path) -> None:
    """A photo with EXIF rotation is displayed and marked upright."""
    pixels = np.zeros((200, 400, 3), np.uint8)
    pixels[:, :100] = 255  # the left quarter, which is the top after the rotation
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    with board_at(browser, alone, 1, 900, 760) as board:
        board.open(path)
        assert board.status().startswith("200 × 400 pixels")
        screen = seen(board.page)
        for spot, light in (((100, 50), True), ((100, 150), False), ((100, 350), False)):
            x, y = board.at(*spot)
            assert bool(screen[int(y), int(x)].mean() > 128) is light
        board.tool("box")
        board.drag((10, 10), (190, 90))
        assert board.regions()[0]["box"] == pytest.approx([10, 10, 190, 90], abs=0.1)
