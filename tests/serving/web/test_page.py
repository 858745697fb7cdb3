"""The whole page with tiny models: questions, history, two models, votes, sharing, phones, themes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from page_board import Board
from PIL import Image

from vip_llava.assistant import Assistant
from vip_llava.images import image_hash, open_image
from vip_llava.regions import draw, regions_from_json
from vip_llava.serving.api.app import create_app
from vip_llava.serving.settings import ServerSettings

PHOTO = Path(__file__).parents[3] / "examples" / "photos" / "cat.jpg"


@pytest.fixture
def board(tiny_page: Any, open_page: Callable[..., Board]) -> Board:
    return open_page(tiny_page.address)


def seen_image(board: Board, address: str, index: int = -1) -> Image.Image:
    """The image shown with an answer."""
    source = board.page.locator(".vl-seen img").nth(index).get_attribute("src")
    with httpx.Client(trust_env=False) as client:
        return Image.open(io.BytesIO(client.get(f"{address}/{source}").content)).convert("RGB")


def test_a_question_about_a_mark_is_answered_with_the_drawn_image(
    board: Board, tiny_page: Any
) -> None:
    board.open(PHOTO)
    board.tool("box")
    board.drag((100, 40), (330, 250))
    board.tool("arrow")
    board.drag((20, 20), (150, 100))
    board.question().fill("What is  and this?")
    board.question().evaluate("box => box.setSelectionRange(8, 8)")
    board.page.locator('[data-chip="1"]').click()
    assert board.question().input_value() == "What is <region:1> and this?"
    board.page.locator("#vl-ask").click()
    board.wait_answers(1)
    assert board.answers()[0] != ""
    # Exactly what the library draws from the same JSON.
    regions = regions_from_json(board.regions())
    drawn = draw(open_image(PHOTO), regions)
    assert image_hash(seen_image(board, tiny_page.address)) == image_hash(drawn)
    assert board.page.locator(".vl-mention").text_content() == "1 box"
    prompt = board.page.locator(".vl-details pre").text_content()
    assert "within the red rectangle" in str(prompt)
    assert board.question().input_value() == ""  # cleared


def test_questions_continue_until_a_new_conversation(board: Board) -> None:
    board.example(0)
    board.ask("Is this the first question?")
    board.wait_answers(1)
    board.tool("point")
    board.click(120, 90)
    board.ask("And <region:1>?")
    board.wait_answers(2)
    prompt = str(board.page.locator(".vl-details pre").last.text_content())
    assert "Is this the first question?" in prompt
    assert "red point" in prompt
    board.page.locator('[data-act="again"]').click()
    board.page.wait_for_timeout(150)
    board.wait_answers(2)
    again = str(board.page.locator(".vl-details pre").last.text_content())
    assert again == prompt  # replaces the last exchange
    board.page.locator("#vl-clear").click()
    board.page.wait_for_selector(".vl-hint")
    board.ask("Third?")
    board.wait_answers(1)
    assert "first question" not in str(board.page.locator(".vl-details pre").text_content())


def test_another_photo_starts_a_new_conversation_with_a_notice(board: Board) -> None:
    board.example(0)
    board.ask("One?")
    board.wait_answers(1)
    board.open(PHOTO)
    board.ask("Two?")
    board.wait_answers(1)
    assert "new conversation" in board.notice()
    assert "One?" not in str(board.page.locator(".vl-details pre").text_content())


def test_two_models_answer_side_by_side(board: Board) -> None:
    board.example(1)
    board.page.locator("#vl-second input").click()
    board.page.get_by_role("option", name="tiny too").click()
    board.ask("What is it?")
    board.wait_answers(1, columns=2)
    first, second = (board.page.locator(".vl-answer").nth(i).bounding_box() for i in (0, 1))
    assert first["y"] == second["y"]
    assert first["x"] + first["width"] <= second["x"]
    assert board.page.locator(".vl-answer h3").all_text_contents() == ["tiny", "tiny too"]
    assert board.answers()[0] == board.answers()[1]  # the same weights


def test_invalid_questions_are_reported(board: Board) -> None:
    board.page.locator("#vl-ask").click()
    assert board.notice() == "Type a question first."
    board.example(0)
    board.ask("What is <region:7>?")
    board.page.wait_for_function(
        "() => document.querySelector('.vl-notice').textContent.includes('7')"
    )
    assert board.notice() == "<region:7> names no region; the given regions have the ids none"
    assert board.question().input_value() == "What is <region:7>?"  # kept for correction


def test_parameters_reach_the_model(board: Board) -> None:
    board.page.get_by_role("button", name="Parameters").click()
    board.slide("Max tokens", "3")
    board.slide("Temperature", "0.7")
    board.page.get_by_label("Seed").fill("11")
    board.page.keyboard.press("Tab")
    board.example(0)
    board.ask("What is it?")
    board.wait_answers(1)
    about = str(board.page.locator(".vl-details summary").text_content())
    assert about.startswith("3 tokens in ")
    assert "token limit reached" in about
    assert about.endswith("seed 11")


def test_votes_are_written_to_the_operators_file(board: Board, tiny_page: Any) -> None:
    board.example(0)
    board.tool("box")
    board.drag((10, 10), (90, 90))
    board.ask("Is <region:1> a cat?")
    board.wait_answers(1)
    board.page.locator('[data-vote="down"]').click()
    board.page.wait_for_selector('[data-vote="down"][aria-pressed="true"]')
    line = json.loads(tiny_page.votes.read_text("utf-8").splitlines()[-1])
    assert line["vote"] == "down"
    assert line["question"] == "Is <region:1> a cat?"
    assert line["answer"] == board.answers()[0]
    assert line["image"] == image_hash(open_image(PHOTO))
    assert line["regions"][0]["box"] == [10, 10, 90, 90]
    assert set(line) == {
        "time",
        "vote",
        "model",
        "question",
        "regions",
        "answer",
        "image",
        "seed",
    }


def test_a_shared_question_gives_the_same_answer_by_api_and_by_python(
    board: Board, tiny: Assistant, tmp_path: Path
) -> None:
    board.open(PHOTO)
    board.tool("ellipse")
    board.drag((100, 40), (330, 250))
    board.ask("Is “<region:1>” a cat? 😀")
    board.wait_answers(1)
    board.page.locator('[data-act="share"]').click()
    texts = {}
    for name in ("JSON", "curl", "Python"):
        board.page.get_by_role("tab", name=name).click()
        texts[name] = str(board.page.locator(".vl-code").text_content())
    with board.page.expect_download() as saved:
        board.page.locator('[data-act="save"]').click()
    request = json.loads(Path(saved.value.path()).read_text("utf-8"))
    image = request["messages"][0]["content"][0]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert image_hash(open_image(image["image_url"]["url"])) == image_hash(open_image(PHOTO))
    assert "-d @request.json" in texts["curl"]
    from fastapi.testclient import TestClient

    app = create_app({"tiny": tiny}, ServerSettings())
    with TestClient(app, base_url="http://127.0.0.1") as client:
        answer = client.post("/v1/chat/completions", json=request)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == board.answers()[0]
    open_image(PHOTO).save(tmp_path / "photo.png")
    told: list[str] = []
    code = texts["Python"].replace("from vip_llava import load\n", "")
    code = code.replace("'photo.png'", repr(str(tmp_path / "photo.png")))
    exec(code, {"load": lambda _name: tiny, "print": told.append})
    assert told == board.answers()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_works_on_a_phone_with_touch(
    tiny_page: Any, open_page: Callable[..., Board], scheme: str
) -> None:
    board = open_page(
        tiny_page.address, 390, 844, has_touch=True, is_mobile=True, device_scale_factor=3,
        color_scheme=scheme,
    )  # fmt: skip
    page = board.page
    page.locator(".vl-example").first.tap()
    page.wait_for_selector('.vl-stage[data-empty="false"]')
    page.locator('[data-tool="point"].vl-tool').tap()
    page.touchscreen.tap(*board.at(200, 150))
    assert board.regions()[0]["point"] == pytest.approx([200, 150], abs=1)
    board.ask("What is <region:1>?")
    board.wait_answers(1)
    # No horizontal overflow, and touch targets are large enough.
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    for button in page.locator(".vl-bars .vl-tool").all():
        box = button.bounding_box()
        assert min(box["width"], box["height"]) >= 40
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = bool(np.mean([int(part) for part in background[4:-1].split(",")]) < 128)
    assert dark is (scheme == "dark")


def test_light_and_dark_can_be_toggled(board: Board) -> None:
    before = board.page.evaluate("document.body.classList.contains('dark')")
    board.page.get_by_role("button", name="Light or dark").click()
    assert board.page.evaluate("document.body.classList.contains('dark')") is not before


def test_every_control_has_an_accessible_name(board: Board) -> None:
    board.example(0)
    board.tool("box")
    board.drag((10, 10), (90, 90))
    board.ask("What is <region:1>?")
    board.wait_answers(1)
    nameless = board.page.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea, select, canvas, img')]
          .filter((each) => each.offsetParent !== null && !(
            each.getAttribute('aria-label') || each.getAttribute('aria-labelledby')
            || each.labels?.length || each.textContent.trim() || each.title || each.hasAttribute('alt')))
          .map((each) => each.outerHTML.slice(0, 200))"""
    )
    assert nameless == []


def test_the_page_requests_nothing_from_other_servers(board: Board, tiny_page: Any) -> None:
    board.example(0)
    board.ask("What is it?")
    board.wait_answers(1)
    elsewhere = [
        url for url in board.requested if not url.startswith((tiny_page.address, "data:", "blob:"))
    ]
    assert elsewhere == []
    assert len(board.requested) > 20
