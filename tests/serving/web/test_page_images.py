"""The page with the default model, and the screenshots of the docs.

The variable VIP_LLAVA_SCREENSHOTS names their folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from page_board import Board
from page_server import serving
from PIL import Image

from vip_llava.assistant import load
from vip_llava.serving.settings import Limits, ServerSettings
from vip_llava.serving.web.app import create_page
from vip_llava.serving.web.asking import LocalClient
from vip_llava.serving.web.suggest import GrabCut

pytestmark = [pytest.mark.slow, pytest.mark.default_model]


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    limits = Limits(rate=0)
    assistant = load()
    client = LocalClient({"default": assistant, "default, once more": assistant}, limits)
    with serving(
        create_page(client, ServerSettings(limits=limits), suggester=GrabCut())
    ) as address:
        yield address


def shot(board: Board, name: str, folder: Path) -> None:
    """Save a screenshot as a small JPEG."""
    path = folder / name
    board.page.evaluate("window.scrollTo(0, 0)")
    board.page.screenshot(path=path, type="jpeg", quality=86)
    assert Image.open(path).getcolors(16) is None  # not blank
    assert path.stat().st_size < 150_000
    wanted = os.environ.get("VIP_LLAVA_SCREENSHOTS")
    if wanted:
        shutil.copy(path, Path(wanted) / name)


def test_the_default_model_answers_about_a_marked_cat(
    site: str, open_page: Callable[..., Board], tmp_path: Path
) -> None:
    board = open_page(site, 1240, 860)
    board.example(0)
    board.tool("box")
    board.drag((100, 40), (330, 250))
    board.tool("suggest")
    board.click(318, 145)  # an eye
    board.page.wait_for_function("() => window.vlCanvas.model.regions.length === 2")
    board.ask("What is <region:1>?")
    board.wait_answers(1)
    assert "cat" in board.answers()[0].lower()
    board.page.wait_for_function("() => document.querySelector('.vl-seen img').complete")
    shot(board, "page.jpg", tmp_path)


def test_two_models_in_dark_mode_and_on_a_phone(
    site: str, open_page: Callable[..., Board], tmp_path: Path
) -> None:
    board = open_page(site, 1240, 760, color_scheme="dark")
    board.example(1)
    board.tool("ellipse")
    board.drag((170, 20), (420, 300))
    board.page.locator("#vl-second input").click()
    board.page.get_by_role("option", name="default, once more").click()
    board.ask("What is <region:1>?")
    board.wait_answers(1, columns=2)
    assert board.answers()[0] == board.answers()[1] != ""
    board.page.wait_for_function(
        "() => [...document.querySelectorAll('.vl-seen img')].every((each) => each.complete)"
    )
    shot(board, "page-two.jpg", tmp_path)
    phone: dict[str, Any] = {"has_touch": True, "is_mobile": True}
    small = open_page(site, 390, 844, **phone)
    small.example(0)
    small.tool("arrow")
    small.drag((40, 30), (180, 120))
    shot(small, "page-phone.jpg", tmp_path)
