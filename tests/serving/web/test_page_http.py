"""The page as a client of a real API server: equal answers, and its error messages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from page_board import Board
from page_server import serving

from vip_llava.assistant import Assistant, load
from vip_llava.errors import ServingError
from vip_llava.images import open_image
from vip_llava.regions import Box, draw, resolve
from vip_llava.serving.api.app import create_app
from vip_llava.serving.cluster.controller import create_controller
from vip_llava.serving.cluster.signing import Secret
from vip_llava.serving.cluster.worker import create_worker
from vip_llava.serving.middleware.server import background, listen
from vip_llava.serving.settings import Limits, ServerSettings, make_settings
from vip_llava.serving.web.app import create_page
from vip_llava.serving.web.asking import LocalClient, Question, Reply
from vip_llava.serving.web.asking_http import HttpClient

PHOTO = Path(__file__).parents[3] / "examples" / "photos" / "cat.jpg"
KEY = "a-key-for-the-tests"


@pytest.fixture(scope="module", params=["server", "controller"])
def server(request: pytest.FixtureRequest, tiny_model_folder: Path) -> Iterator[str]:
    """The URL of an API server, and of a controller with a worker."""
    limits = {"rate": 0}
    guarded = make_settings(keys=[KEY], limits=limits, port=0)
    models = {"tiny": load(tiny_model_folder)}
    if request.param == "server":
        with background(create_app(models, guarded), guarded) as address:
            yield address
        return
    secret = Secret("the secret of the page's tests")
    with background(create_controller(guarded, secret), guarded) as address:
        found = listen(guarded)
        port = found.getsockname()[1]
        found.close()  # a free port, reused at once
        settings = make_settings(limits=limits, port=port)
        mine = f"http://127.0.0.1:{port}"
        worker = create_worker(
            models,
            settings,
            secret=secret,
            controller=address,
            address=mine,
            heartbeat_seconds=0.5,
        )
        with background(worker, settings):
            fields = {"authorization": f"Bearer {KEY}"}
            until = time.monotonic() + 20
            while "tiny" not in httpx.get(f"{address}/v1/models", headers=fields).text:
                assert time.monotonic() < until, "the worker did not join"
                time.sleep(0.05)
            yield address


async def collect(client: Any, question: Question) -> tuple[str, Reply]:
    await client.start()
    try:
        parts = [part async for part in client.ask(question)]
    finally:
        await client.stop()
    reply = parts.pop()
    assert isinstance(reply, Reply)
    return "".join(map(str, parts)), reply


def run(work: Coroutine[Any, Any, tuple[str, Reply]]) -> tuple[str, Reply]:
    """Run in another thread, because Playwright has an event loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def a_question(**changes: Any) -> Question:
    image = open_image(PHOTO)
    regions = resolve([Box(100, 40, 330, 250)], image.size).regions
    given = {
        "model": "tiny",
        "text": "What is within the red rectangle?",
        "image": image,
        "regions": regions,
        "history": (("user", "Is it a cat?"), ("assistant", "Yes.")),
        "sampling": {"max_new_tokens": 9, "temperature": 0.8, "seed": 3, "top_k": 40},
    }
    return Question(**{**given, **changes})


def test_remote_and_local_answers_are_equal(server: str, tiny: Assistant) -> None:
    there, far = run(collect(HttpClient(server, KEY), a_question()))
    here, near = run(collect(LocalClient({"tiny": tiny}, Limits()), a_question()))
    assert there.strip() == here.strip() == near.text == far.text
    assert far.prompt == near.prompt
    assert far.seed == near.seed == 3
    assert far.finish_reason == near.finish_reason
    assert (far.prompt_tokens, far.completion_tokens) == (
        near.prompt_tokens,
        near.completion_tokens,
    )
    assert far.regions == near.regions
    assert near.image is not None
    assert far.image is not None
    drawn = draw(open_image(PHOTO), a_question().regions)
    assert far.image.tobytes() == near.image.tobytes() == drawn.tobytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "other"}, "available: tiny"),
        ({"sampling": {"max_new_tokens": 100_000}}, "100,000 tokens, but the limit is 1,024"),
        ({"text": ""}, "nothing is asked"),
    ],
)
def test_error_messages_of_the_server_are_shown(
    server: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ServingError, match=words):
        run(collect(HttpClient(server, KEY), a_question(**changes)))


def test_an_unreachable_server_is_reported_without_its_url() -> None:
    with pytest.raises(ServingError, match="can't be reached") as told:
        run(collect(HttpClient("http://127.0.0.1:9"), a_question()))
    assert "127.0.0.1" not in str(told.value)
    with pytest.raises(ServingError, match="must be a URL"):
        HttpClient("localhost:8000")


def test_the_page_uses_a_server(server: str, open_page: Callable[..., Board]) -> None:
    app = create_page(HttpClient(server, KEY), ServerSettings(limits=Limits(rate=0)))
    with serving(app) as address:
        board = open_page(address)
        board.example(0)
        board.tool("box")
        board.drag((100, 40), (330, 250))
        board.ask("What is <region:1>?")
        board.wait_answers(1)
        assert board.answers()[0]
        assert board.page.locator(".vl-answer h3").text_content() == "tiny"
        assert board.page.locator(".vl-seen img").count() == 1
        assert board.page.locator("[data-vote]").count() == 0  # voting is off
        board.page.close()


def test_an_unreachable_server_is_reported_on_the_page(open_page: Callable[..., Board]) -> None:
    app = create_page(HttpClient("http://127.0.0.1:9"), ServerSettings(limits=Limits(rate=0)))
    with serving(app) as address:
        board = open_page(address)
        assert board.notice() == "the model server can't be reached; try again later"
        board.page.close()
