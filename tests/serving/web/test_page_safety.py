"""Security of the page: scripts, file paths, other sites, limits, votes."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from page_board import Board
from page_server import serving
from PIL import Image

from vip_llava.serving.middleware.server import background
from vip_llava.serving.settings import Limits, ServerSettings
from vip_llava.serving.web.app import create_page
from vip_llava.serving.web.asking import Question, Reply

EVIL = (
    "<script>window.caught = 1</script><img src=x onerror='window.caught = 2'>"
    "[click](javascript:window.caught=3) ![p](data:image/svg+xml,<svg onload=alert(4)>) "
    "</p><iframe src='javascript:parent.caught=5'></iframe> {{value}} ${caught = 6} `x`"
)


class Says:
    """A client that repeats the question, endlessly if it contains "for ever"."""

    def __init__(self) -> None:
        self.ended = 0

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def models(self) -> Sequence[str]:
        return ["<b onclick='window.caught=7'>name</b>"]

    async def ask(self, question: Question) -> AsyncGenerator[str | Reply]:
        text = ""
        try:
            while True:
                text += f"{question.text} "
                yield f"{question.text} "
                await asyncio.sleep(0.02)
                if "for ever" not in question.text:
                    break
            note = ("<img src=x onerror='window.caught=8'>",)
            yield Reply(text, question.image, (), EVIL, note, "stop", 1, 2, 3, 0.1)
        finally:
            self.ended += 1


@pytest.fixture(scope="module")
def says() -> Says:
    return Says()


@pytest.fixture(scope="module")
def site(says: Says) -> Iterator[str]:
    limits = Limits(rate=0, image_bytes=100_000, image_pixels=1_000_000, body_bytes=200_000)
    with serving(create_page(says, ServerSettings(limits=limits))) as address:
        yield address


@pytest.fixture
def client(site: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=site, trust_env=False) as client:
        yield client


def test_texts_are_never_interpreted_as_markup(site: str, open_page: Callable[..., Board]) -> None:
    board = open_page(site)
    board.example(0)
    board.ask(EVIL)
    board.wait_answers(1)
    assert board.answers() == [f"{EVIL} "]
    assert board.page.locator(".vl-question").text_content() == EVIL
    assert str(board.page.locator(".vl-answer h3").text_content()).startswith("<b onclick")
    board.page.locator('[data-act="share"]').click()
    board.page.keyboard.press("Escape")
    board.page.wait_for_timeout(200)
    assert board.page.evaluate("window.caught") is None
    inside = board.page.locator(
        ".vl-log script, .vl-log iframe, .vl-log a, .vl-log b, .vl-log svg image"
    )
    assert inside.count() == 0
    sources = board.page.locator(".vl-log img").evaluate_all("all => all.map((each) => each.src)")
    assert all(re.fullmatch(rf"{re.escape(site)}/page/images/[\w-]+", each) for each in sources)


def test_stop_ends_the_answer_and_keeps_its_text(
    site: str, says: Says, open_page: Callable[..., Board]
) -> None:
    board = open_page(site)
    before = says.ended
    board.ask("for ever")
    board.page.wait_for_function(
        "() => (document.querySelector('.vl-text')?.textContent.match(/ever/g) ?? []).length > 3"
    )
    growing = board.answers()[0]
    assert growing.startswith("for ever for ever")
    board.page.locator("#vl-stop").click()
    board.wait_answers(1)
    assert says.ended == before + 1
    assert len(board.answers()[0]) >= len(growing)
    assert board.page.locator(".vl-answer").get_attribute("data-state") == "stopped"
    board.ask("again")
    board.wait_answers(2)


def test_closing_the_page_cancels_its_answers(
    site: str, says: Says, open_page: Callable[..., Board]
) -> None:
    board = open_page(site)
    before = says.ended
    board.ask("for ever")
    board.page.wait_for_selector('.vl-answer[data-state="answering"]')
    board.page.close()
    until = time.monotonic() + 10
    while says.ended == before and time.monotonic() < until:
        time.sleep(0.05)
    assert says.ended == before + 1


PATHS = [
    "/gradio_api/upload",
    "/gradio_api/file=/etc/passwd",
    "/gradio_api/file=static/../../../../etc/passwd",
    "/file=/etc/passwd",
    "/gradio_api/proxy=http://127.0.0.1/",
    "/gradio_api/component_server",
    "/gradio_api/call/on_ask",
    "/gradio_api/stream/a/b/c/playlist.m3u8",
    "/gradio_api/vibe-edit/",
    "/gradio_api/deep_link",
    "/monitoring",
    "/login_check",
    "/docs",
    "/openapi.json",
    "/page/static/../layout.py",
    "/page/static/..%2flayout.py",
    "/page/static//etc/passwd",
    "/page/images/..%2f..%2fetc%2fpasswd",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_file_upload_and_proxy_routes_are_not_reachable(
    client: httpx.Client, path: str, method: str
) -> None:
    answer = client.request(method, path, files={"files": b"x"} if method == "POST" else None)
    assert answer.status_code in (404, 405)
    assert "root:" not in answer.text


def test_a_path_is_not_an_image_id(client: httpx.Client, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", (20, 20)).save(path)
    for named in (str(path), {"path": str(path)}, f"file://{path}", "http://127.0.0.1/x.png", 7):
        answer = client.post("/page/suggest", json={"image": named, "point": [1, 1]})
        assert answer.status_code in (404, 501)
        assert asked(client, {"image": named, "regions": []}) == (
            "the image has expired; choose it again"
        )


def asked(client: httpx.Client, canvas: object) -> str:
    """The notice of the page for a question with a forged canvas."""
    config = client.get("/config").json()
    # A visit makes the list of models known.
    visit = next(
        each for each in config["dependencies"] if ["load"] in [t[1:] for t in each["targets"]]
    )
    begin = {"data": [], "fn_index": visit["id"], "session_hash": "visitor", "event_data": None}
    client.post("/gradio_api/run/predict", json=begin).raise_for_status()
    target = next(
        each
        for each in config["dependencies"]
        if len(each["inputs"]) > 3 and len(each["targets"]) > 1
    )
    data = [
        canvas,
        "Is it?",
        "<b onclick='window.caught=7'>name</b>",
        "none",
        5,
        0,
        1,
        0,
        1,
        None,
        "",
    ]
    join = {"data": data, "fn_index": target["id"], "session_hash": "visitor", "trigger_id": None}
    client.post("/gradio_api/queue/join", json=join).raise_for_status()
    with client.stream("GET", "/gradio_api/queue/data?session_hash=visitor") as answer:
        for line in answer.iter_lines():
            event = json.loads(line[5:]) if line.startswith("data:") else {}
            if event.get("msg") in ("process_generating", "process_completed"):
                return str(event["output"]["data"][0]["notice"])
    raise AssertionError("no answer")


@pytest.mark.parametrize(
    ("canvas", "words"),
    [
        (None, ""),
        ("text", ""),
        ({"image": None, "regions": [{"shape": "box"}]}, 'the key "frame" is missing'),
        ({"regions": [{"shape": "box", "frame": "pixel", "box": [0, 0, 5, 5]}]}, "no image"),
        ({"image": None, "regions": {"a": 1}}, "at most 100 marks"),
        ({"image": None, "regions": [{}] * 101}, "at most 100 marks"),
    ],
)
def test_a_forged_canvas_is_validated(client: httpx.Client, canvas: object, words: str) -> None:
    assert words in asked(client, canvas)


def test_pages_of_other_sites_are_refused(client: httpx.Client) -> None:
    for path in ("/page/images", "/gradio_api/queue/join", "/gradio_api/run/predict"):
        answer = client.post(path, content=b"{}", headers={"origin": "https://evil.example"})
        assert answer.status_code == 403
        answer = client.post(path, content=b"{}", headers={"sec-fetch-site": "cross-site"})
        assert answer.status_code == 403
    assert client.get("/", headers={"host": "evil.example"}).status_code == 421
    # A link on another site can be followed.
    link = {
        "sec-fetch-site": "cross-site",
        "sec-fetch-mode": "navigate",
        "sec-fetch-dest": "document",
    }
    assert client.get("/", headers=link).status_code == 200


def test_images_over_the_limit_are_refused_with_the_reason(client: httpx.Client) -> None:
    answer = client.post("/page/images", content=b"\x89PNG" + b"x" * 150_000)
    assert answer.status_code == 422
    assert "100,000" in answer.json()["error"]["message"]
    assert client.post("/page/images", content=b"x" * 300_000).status_code == 413


@pytest.mark.parametrize("points", [None, 7, [], [[0, 0], [1, 1]], [[0, 0], [1], [2, 2]],
                                    [[0, 0], ["a", 1], [2, 2]], [[0, 0]] * 6000,
                                    [[0, 0], [1, 1], [2, 2]], [[0, 0], [1e400, 1], [2, 2]]])  # fmt: skip
def test_invalid_outlines_are_refused(client: httpx.Client, points: object) -> None:
    answer = client.post("/page/outline", content=json.dumps({"points": points}))
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "invalid_region"


def test_every_response_has_security_headers(client: httpx.Client) -> None:
    for path in ("/", "/page/static/canvas.js", "/config", "/nothing"):
        fields = client.get(path).headers
        assert "default-src 'self'" in fields["content-security-policy"]
        assert fields["x-frame-options"] == "DENY"
        assert fields["referrer-policy"] == "no-referrer"


def test_a_stop_does_not_wait_for_open_pages(says: Says, open_page: Callable[..., Board]) -> None:
    settings = ServerSettings(limits=Limits(rate=0), port=0)
    with background(create_page(says, settings), settings) as address:
        board = open_page(address)
        board.ask("Is it?")
        board.wait_answers(1)
        began = time.monotonic()
    assert time.monotonic() - began < settings.drain_seconds / 2
