"""Drives the canvas in a browser with the mouse; coordinates are image pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Board:
    """The canvas of a page."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.requested: list[str] = []  # URLs that the page has requested

    def open(self, photo: Path) -> None:
        """Choose a photo with the file input."""
        self.page.evaluate("() => { document.querySelector('.vl-status').textContent = ''; }")
        self.page.locator(".vl-file").set_input_files(photo)
        self.page.wait_for_function(
            "() => !['', 'Opening the photo ...'].includes("
            "document.querySelector('.vl-status').textContent)"
        )

    def status(self) -> str:
        return str(self.page.locator(".vl-status").text_content())

    def ask(self, question: str) -> None:
        """Type a question and press the button."""
        self.question().fill(question)
        self.page.locator("#vl-ask").click()

    def question(self) -> Any:
        return self.page.locator("#vl-question textarea, #vl-question input").first

    def wait_answers(self, turns: int, columns: int = 1) -> None:
        """Wait until this many exchanges have ended, in any state."""
        self.page.wait_for_function(
            """([turns, columns]) => {
              const all = [...document.querySelectorAll('.vl-answer')];
              return document.querySelectorAll('.vl-exchange').length === turns
                && all.length >= turns * columns
                && all.every((each) => ['done', 'stopped', 'failed'].includes(each.dataset.state));
            }""",
            arg=[turns, columns],
        )
        self.page.locator("#vl-ask").wait_for()

    def answers(self) -> list[str]:
        """The texts of all answers."""
        return [str(text) for text in self.page.locator(".vl-text").all_text_contents()]

    def notice(self) -> str:
        notice = self.page.locator(".vl-notice:not([hidden])")
        notice.wait_for()
        return str(notice.text_content())

    def view(self) -> dict[str, Any]:
        """The position and scale of the image, from the browser's layout and the canvas's view."""
        return dict(
            self.page.evaluate(
                "() => { const box = document.querySelector('.vl-surface').getBoundingClientRect();"
                " const { scale, offset } = (window.canvas ?? window.vlCanvas).view;"
                " return { x: box.x, y: box.y, scale, offset }; }"
            )
        )

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The screen position of an image point."""
        return self.all_at([(x, y)])[0]

    def all_at(self, places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        """As `at`, for several points."""
        view = self.view()
        left, top = view["x"] + view["offset"][0], view["y"] + view["offset"][1]
        return [(left + x * view["scale"], top + y * view["scale"]) for x, y in places]

    def example(self, number: int = 0) -> None:
        """Choose an example photo."""
        self.page.locator(".vl-example").nth(number).click()
        self.page.wait_for_selector('.vl-stage[data-empty="false"]')

    def slide(self, name: str, value: str) -> None:
        """Set a slider with its number input; repeated until the page has attached its listeners."""
        slider = self.page.get_by_label(f"range slider for {name}")
        for _ in range(100):
            self.page.get_by_label(f"number input for {name}").fill(value)
            if slider.input_value() == value:
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"{name} stays at {slider.input_value()}, not {value}")

    def tool(self, name: str) -> None:
        self.page.locator(f'[data-tool="{name}"].vl-tool').click()

    def drag(self, *places: tuple[float, float]) -> None:
        """Press at the first point, move over the others and release at the last."""
        mouse = self.page.mouse
        first, *others = self.all_at(places)
        mouse.move(*first)
        mouse.down()
        for place in others:
            mouse.move(*place, steps=2 if len(others) < 10 else 1)
        mouse.up()

    def click(self, x: float, y: float) -> None:
        self.page.mouse.click(*self.at(x, y))

    def regions(self) -> list[dict[str, Any]]:
        """The canvas's regions."""
        return list(self.page.evaluate("() => (window.canvas ?? window.vlCanvas).model.regions"))
