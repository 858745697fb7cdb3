"""The examples for other servers: the chat template, and the client that draws regions."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from PIL import Image

from vip_llava import Assistant, Box, draw, load, open_image
from vip_llava.prompting.geometry import ImageGeometry
from vip_llava.prompting.templates import get_template
from vip_llava.prompting.turns import MarkedImage, Turn
from vip_llava.serving.api.app import create_app
from vip_llava.serving.middleware.server import background
from vip_llava.serving.settings import ServerSettings

EXAMPLES = Path(__file__).parents[3] / "examples"
OPEN = Turn("assistant", None)


def rendered(messages: list[dict[str, Any]]) -> str:
    # As servers configure it: trimmed blocks, in a sandbox.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((EXAMPLES / "llava_v1.jinja").read_text("utf-8"))
    return template.render(messages=messages, add_generation_prompt=True)


def test_the_chat_template_reproduces_the_trained_prompt() -> None:
    ours = get_template("llava_v1")
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    asked = [image, {"type": "text", "text": "What is <b>this</b>?"}]
    first = Turn("user", "What is <b>this</b>?", (MarkedImage(Image.new("RGB", (1, 1))),))
    assert rendered([{"role": "user", "content": asked}]) == ours.prompt([first, OPEN])
    assert rendered([{"role": "user", "content": list(reversed(asked))}]) == ours.prompt(
        [first, OPEN]
    )
    turns = [Turn("system", "Be brief."), first, Turn("assistant", "A cat.")]
    turns += [Turn("user", "And there?"), OPEN]
    assert rendered(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": asked},
            {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
            {"role": "user", "content": "And there?"},
        ]
    ) == ours.prompt(turns)


@pytest.fixture
def served(tiny_model_folder: Path) -> Iterator[tuple[str, Assistant]]:
    tiny, settings = load(tiny_model_folder), ServerSettings(port=0)
    with background(create_app({"tiny": tiny}, settings), settings) as address:
        yield address, tiny


def test_the_example_client_draws_and_pads(served: tuple[str, Assistant]) -> None:
    address, tiny = served
    spec = importlib.util.spec_from_file_location("ask_elsewhere", EXAMPLES / "ask_elsewhere.py")
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    photo = EXAMPLES / "photos" / "cat.jpg"
    question = "What is <region:1>?"
    found = example.ask(f"{address}/v1", "tiny", str(photo), question, "100,40,330,250", side=56)
    box = Box(100, 40, 330, 250)
    assert found == tiny.ask(photo, question, [box], max_new_tokens=128).text
    # The client pads the image, so the server's geometry does not change it.
    square = ImageGeometry(mode="pad", size=56).fit(draw(open_image(photo), [box]))
    assert square.size == (56, 56)
