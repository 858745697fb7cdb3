"""A server on loopback and Chromium, for the canvas alone and for the whole page."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))  # page_board, which the tests share

for _name in ("fastapi", "uvicorn", "gradio", "cv2"):
    pytest.importorskip(_name, reason="the page needs the extras serve and web")
sync_api = pytest.importorskip("playwright.sync_api", reason="browser tests need Playwright")

from fastapi.responses import HTMLResponse  # noqa: E402
from page_board import Board  # noqa: E402
from page_server import serving  # noqa: E402

from vip_llava.assistant import Assistant, load  # noqa: E402
from vip_llava.serving.middleware.app_factory import create_base_app  # noqa: E402
from vip_llava.serving.settings import Limits, ServerSettings  # noqa: E402
from vip_llava.serving.web.app import create_page  # noqa: E402
from vip_llava.serving.web.asking import LocalClient  # noqa: E402
from vip_llava.serving.web.image_store import ImageStore  # noqa: E402
from vip_llava.serving.web.routes import page_routes  # noqa: E402
from vip_llava.serving.web.suggest import GrabCut  # noqa: E402

CHROMIUM = next(
    (
        path
        for path in map(Path, ("/usr/bin/chromium", "/usr/bin/chromium-browser"))
        if path.exists()
    ),
    None,
)

# Gradio uses deprecated features of pandas.
_OF_PANDAS = ("'future.no_silent_downcasting' is deprecated", "The copy keyword is deprecated")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            for words in _OF_PANDAS:
                item.add_marker(pytest.mark.filterwarnings(f"ignore:{words}"))


# A page with only the canvas, mounted as in Gradio's component.
ALONE = """<!doctype html><meta charset="utf-8"><title>canvas</title>
<link rel="stylesheet" href="page/static/canvas.css">
<style>body { margin: 13px 8px; font-family: sans-serif }</style>
<div id="place"></div><textarea id="question"></textarea>
<script type="module">
import { mount } from "./page/static/canvas.js";
import { send } from "./page/static/send.js";
window.canvas = mount(document.getElementById("place"), {
  onchange: (value) => { window.value = value; },
  insert: (text) => { document.getElementById("question").value += text; },
  send, examples: [],
});
</script>"""


@pytest.fixture(scope="session")
def images() -> ImageStore:
    return ImageStore()


@pytest.fixture(scope="session")
def alone(images: ImageStore) -> Iterator[str]:
    """The URL of a server with only the canvas."""
    limits = Limits(rate=0)
    app = create_base_app(ServerSettings(limits=limits), title="canvas")
    app.include_router(page_routes(images, GrabCut(), limits))
    app.add_api_route("/", lambda: HTMLResponse(ALONE))
    with serving(app) as address:
        yield address


# Module scope: while Playwright runs, no other event loop can run in this thread.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium; on Debian: apt install chromium")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def tiny(tiny_model_folder: Path) -> Assistant:
    """A tiny model with random weights."""
    return load(tiny_model_folder)


@pytest.fixture(scope="session")
def tiny_page(tiny: Assistant, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The whole page with two tiny models, suggestions, and votes to a file."""
    votes = tmp_path_factory.mktemp("votes") / "votes.jsonl"
    settings = ServerSettings(limits=Limits(rate=0, tokens=64))
    client = LocalClient({"tiny": tiny, "tiny too": tiny}, settings.limits)
    app = create_page(client, settings, suggester=GrabCut(), votes=votes)
    with serving(app) as address:
        yield Site(address, votes)


@dataclass(frozen=True)
class Site:
    """A served page, and the file of its votes."""

    address: str
    votes: Path


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Board]]:
    """`open_page(address, width=..., height=..., **context)`: the page in a new browser context.

    `board.requested` has all requested URLs; script errors fail the test.
    """
    contexts, wrong = [], []

    def make(address: str, width: int = 1280, height: int = 900, **given: Any) -> Board:
        context = browser.new_context(viewport={"width": width, "height": height}, **given)
        contexts.append(context)
        page = context.new_page()
        board = Board(page)
        page.on("request", lambda request: board.requested.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address, wait_until="domcontentloaded")
        page.wait_for_selector(".vl-log")
        page.wait_for_selector(".vl-stage")
        return board

    yield make
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`photos(width, height)`: a generated photo of that size, as a file."""
    folder = tmp_path_factory.mktemp("photos")

    def make(width: int, height: int) -> Path:
        path = folder / f"{width}x{height}.png"
        if not path.exists():
            down, across = np.mgrid[0:height, 0:width]
            pixels = np.stack([across % 256, down % 256, (across + down) % 256], -1)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
        return path

    return make
