"""Editing marks: selecting, moving, resizing, styles, undo, keyboard and touch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from page_board import Board


@pytest.fixture(scope="module")
def page(browser: Any, alone: str, photos: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 900, "height": 1000}, has_touch=True)
    page = context.new_page()
    page.goto(alone)
    Board(page).open(photos(600, 400))
    page.evaluate("window.canvas.zoomTo(1)")
    yield page
    context.close()


@pytest.fixture
def board(page: Any) -> Iterator[Board]:
    yield Board(page)
    page.evaluate(
        """() => { const { canvas } = window; canvas.gestures.cancel(); canvas.gestures.cursor = null;
        canvas.model.clear([600, 400]); canvas.setTool('box'); canvas.zoomTo(1); canvas.changed(); }"""
    )


def boxes(board: Board) -> list[Any]:
    return [each["box"] for each in board.regions()]


def two_boxes(board: Board) -> None:
    board.tool("box")
    board.drag((50, 50), (350, 350))
    board.drag((100, 100), (200, 200))


def test_default_colours_and_ids_are_unique(board: Board) -> None:
    two_boxes(board)
    assert [(each["id"], each["color"]) for each in board.regions()] == [
        ("1", "red"),
        ("2", "lime"),
    ]
    board.page.keyboard.press("Delete")  # the last drawn mark is selected
    board.drag((220, 220), (300, 300))
    assert [(each["id"], each["color"]) for each in board.regions()] == [
        ("1", "red"),
        ("3", "lime"),
    ]


def test_undo_and_redo(board: Board) -> None:
    two_boxes(board)
    states = [boxes(board)]
    board.tool("select")
    board.drag((100, 150), (130, 160))
    states.append(boxes(board))
    board.page.locator('[data-color="aqua"]').click()
    board.page.locator(".vl-surface").focus()
    board.page.keyboard.press("Delete")
    assert len(board.regions()) == 1
    for _ in range(2):
        board.page.keyboard.press("Control+z")
    assert boxes(board) == states[1]
    assert board.regions()[1]["color"] == "lime"
    board.page.keyboard.press("Control+z")
    assert boxes(board) == states[0]
    for _ in range(3):
        board.page.keyboard.press("Control+z")
    assert boxes(board) == []
    for _ in range(10):
        board.page.keyboard.press("Control+Shift+z")
    assert boxes(board) == [states[0][0]]


def selected(board: Board) -> Any:
    return board.page.evaluate("window.canvas.model.current.selected")


def test_clicks_cycle_through_overlapping_marks_smallest_first(board: Board) -> None:
    board.tool("box")
    board.drag((100, 100), (200, 200))
    board.drag((50, 50), (350, 350))  # later and larger
    board.tool("select")
    board.click(500, 380)
    assert selected(board) is None
    found = []
    for _ in range(3):
        board.click(150, 150)
        found.append(selected(board))
    assert found == ["1", "2", "1"]
    board.click(50, 300)  # on its line
    assert selected(board) == "2"


def test_moved_marks_stay_within_the_image(board: Board) -> None:
    two_boxes(board)
    board.tool("select")
    board.drag((150, 150), (170, 140))
    assert boxes(board)[1] == [120, 90, 220, 190]
    board.drag((150, 150), (-300, 900))
    assert boxes(board)[1] == [0, 300, 100, 400]


def test_handles_resize_and_mirror(board: Board) -> None:
    two_boxes(board)
    board.tool("select")
    board.drag((200, 200), (260, 240))
    assert boxes(board)[1] == [100, 100, 260, 240]
    board.drag((180, 100), (180, 120))  # the upper edge
    assert boxes(board)[1] == [100, 120, 260, 240]
    board.drag((100, 120), (300, 300))  # over the other corner
    assert boxes(board)[1] == [260, 240, 300, 300]


@pytest.mark.parametrize(
    ("tool", "drawn", "pulled", "key", "value"),
    [
        ("arrow", [(300, 40), (120, 200)], [(120, 200), (140, 260)], "tip", [140, 260]),
        ("triangle", [(40, 40), (200, 140)], [(120, 40), (60, 60)], "points",
         [[60, 60], [200, 140], [40, 140]]),
        ("point", [(100, 90)], [(114, 90), (130, 90)], "radius", 30),
        ("ellipse", [(40, 40), (200, 140)], [(200, 140), (240, 200)], "box", [40, 40, 240, 200]),
        ("mask", [(100, 100), (200, 110), (190, 200), (100, 190)], [(200, 200), (300, 300)],
         "polygons", [[100, 100, 300, 120, 280, 300, 100, 280]]),
    ],
)  # fmt: skip
def test_each_shape_has_handles(
    board: Board, tool: str, drawn: Any, pulled: Any, key: str, value: Any
) -> None:
    board.tool(tool)
    board.drag(*drawn)
    board.tool("select")
    board.drag(*pulled)
    assert board.regions()[0][key] == value


def test_styles_apply_to_the_selected_and_the_next_mark(board: Board) -> None:
    two_boxes(board)
    page = board.page
    page.locator('[data-color="purple"]').click()
    page.locator('[data-look="width"]').evaluate(
        "each => { each.value = 9; each.dispatchEvent(new Event('change')); }"
    )
    page.locator('[data-look="alpha"]').evaluate(
        "each => { each.value = 100; each.dispatchEvent(new Event('change')); }"
    )
    page.locator(".vl-custom").evaluate(
        "each => { each.value = '#123456'; each.dispatchEvent(new Event('change')); }"
    )
    wanted = {"color": "#123456", "width": 9, "alpha": 100}
    assert wanted.items() <= board.regions()[1].items()
    assert board.regions()[0]["color"] == "red"
    board.drag((400, 50), (500, 100))
    assert wanted.items() <= board.regions()[2].items()


def test_chips_insert_select_and_delete(board: Board) -> None:
    two_boxes(board)
    board.page.locator('[data-chip="1"]').click()
    assert board.page.locator("#question").input_value() == "<region:1>"
    assert selected(board) == "1"
    board.page.get_by_role("button", name="Delete region 2").click()
    assert [each["id"] for each in board.regions()] == ["1"]


def test_drawing_and_editing_with_the_keyboard(board: Board) -> None:
    page = board.page
    page.locator(".vl-surface").focus()
    press = page.keyboard.press
    press("b")
    press("Shift+ArrowLeft")  # the pointer begins in the middle: 300, 200
    press("Space")
    for _ in range(5):
        press("Shift+ArrowRight")
        press("Shift+ArrowDown")
    press("Space")
    assert boxes(board) == [[290, 200, 340, 250]]
    press("v")
    press("ArrowLeft")
    press("Shift+ArrowUp")
    assert boxes(board) == [[289, 190, 339, 240]]
    press("Alt+Shift+ArrowRight")
    assert boxes(board) == [[289, 190, 349, 240]]
    press("c")  # an outline of clicks
    for keys in (["Space", "Space"], ["Shift+ArrowRight"] * 3, ["Space", "Space"],
                 ["Shift+ArrowDown"] * 3, ["Space", "Space"]):  # fmt: skip
        for key in keys:
            press(key)
    page.keyboard.press("Escape")
    assert len(board.regions()) == 1
    press("[")
    assert selected(board) == "1"
    press("Backspace")
    assert board.regions() == []
    press("Tab")  # no keyboard trap
    assert page.evaluate("document.activeElement.className") != "vl-surface"


@pytest.fixture
def touch(page: Any) -> Iterator[Any]:
    """`touch(kind, point, ...)`: dispatches touch events."""
    session = page.context.new_cdp_session(page)

    def act(kind: str, *places: tuple[float, float]) -> None:
        points = [{"x": x, "y": y, "id": index} for index, (x, y) in enumerate(places)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    yield act
    session.detach()


def test_one_touch_draws_and_two_zoom_and_pan(board: Board, touch: Any) -> None:
    board.tool("box")
    (x1, y1), (x2, y2) = board.all_at([(100, 100), (200, 180)])
    touch("touchStart", (x1, y1))
    touch("touchMove", ((x1 + x2) / 2, y2))
    touch("touchMove", (x2, y2))
    touch("touchEnd")
    assert boxes(board)[0] == pytest.approx([100, 100, 200, 180], abs=1)
    before = board.view()["scale"]
    (ax, ay), (bx, by) = board.all_at([(200, 200), (300, 200)])
    touch("touchStart", (ax, ay))
    touch("touchStart", (ax, ay), (bx, by))
    for far in (20, 40, 50):
        touch("touchMove", (ax - far, ay), (bx + far, by))
    touch("touchEnd")
    board.page.wait_for_timeout(50)
    assert board.view()["scale"] == pytest.approx(2 * before, rel=0.05)
    middle = board.at(250, 200)
    assert middle == pytest.approx(((ax + bx) / 2, ay), abs=3)
    assert len(board.regions()) == 1  # two touches draw nothing
