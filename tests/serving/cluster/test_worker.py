"""A worker with a tiny model, standalone and behind a controller: the original's format and the API."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from vip_llava import Assistant, Box, load
from vip_llava.prompting.templates import get_template
from vip_llava.prompting.turns import Turn
from vip_llava.serving.cluster.controller import create_controller
from vip_llava.serving.cluster.signing import Secret
from vip_llava.serving.cluster.worker import create_worker
from vip_llava.serving.middleware.server import background, listen
from vip_llava.serving.settings import ServerSettings

BOX = Box(10, 10, 50, 40)
QUESTION = "What is <region:1>?"
SETTINGS = ServerSettings(port=0)


@pytest.fixture(scope="module")
def tiny(tiny_model_folder: Path) -> Assistant:
    return load(tiny_model_folder)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    image = Image.new("RGB", (96, 64), (120, 140, 160))
    image.paste((200, 60, 40), (10, 10, 50, 40))
    return image


@pytest.fixture(scope="module")
def encoded(photo: Image.Image) -> str:
    file = io.BytesIO()
    photo.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def alone(tiny: Assistant) -> Iterator[httpx.Client]:
    """A worker without a controller."""
    with (
        background(create_worker({"tiny": tiny}, SETTINGS), SETTINGS) as address,
        httpx.Client(base_url=address, timeout=30, trust_env=False) as client,
    ):
        yield client


def prompt_of(*texts: str, template: str = "llava_v1") -> str:
    """A prompt as the original's page writes it, with an open last answer."""
    roles = ("user", "assistant")
    turns = [Turn(roles[i % 2], text) for i, text in enumerate(texts)]  # type: ignore[arg-type]
    return get_template(template).prompt([*turns, Turn("assistant", None)])


def stream(client: httpx.Client, **body: Any) -> list[tuple[str, int]]:
    body = {"model": "tiny", "temperature": 0, "max_new_tokens": 6, **body}
    answer = client.post("/worker_generate_stream", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.content.endswith(b"\0")
    found = [json.loads(part) for part in answer.content.split(b"\0")[:-1]]
    return [(one["text"], one["error_code"]) for one in found]


def test_a_legacy_request_is_answered(
    alone: httpx.Client, tiny: Assistant, photo: Image.Image, encoded: str
) -> None:
    prompt = prompt_of("What is this?\n<image>")
    found = stream(alone, prompt=prompt, images=[encoded], stop="</s>")
    right = tiny.ask(photo, "What is this?", max_new_tokens=6, stop=())
    assert found[-1] == (prompt + right.text, 0)
    assert right.text and len(found) >= 2
    for (before, _), (after, _) in itertools.pairwise(found):
        assert after.startswith(before)


def test_a_legacy_request_with_regions_and_history(
    alone: httpx.Client, tiny: Assistant, photo: Image.Image, encoded: str
) -> None:
    prompt = prompt_of(f"<image>\n{QUESTION}", "A cat.", "Is <region:1> large?")
    found = stream(alone, prompt=prompt, images=[encoded], regions=[[BOX.to_json()]])
    history = [
        {"role": "user", "text": QUESTION},
        {"role": "assistant", "text": "A cat."},
    ]
    right = tiny.ask(photo, "Is <region:1> large?", [BOX], history=history, max_new_tokens=6)
    assert found[-1] == (prompt + right.text, 0)


def test_a_prompt_of_another_template_is_rendered_in_the_models(
    alone: httpx.Client, tiny: Assistant
) -> None:
    right = tiny.ask(None, "What is this?", max_new_tokens=6).text
    for template in ("llava_llama_3", "llava_llama_2", "mpt", "llava_v0"):
        prompt = prompt_of("What is this?", template=template)
        assert stream(alone, prompt=prompt)[-1] == (prompt + right, 0)
    assert stream(alone, prompt="What is this?")[-1] == ("What is this?" + right, 0)


def test_legacy_sampling_is_applied(alone: httpx.Client) -> None:
    once = stream(alone, prompt="Hello", temperature=0.9, seed=5)
    assert stream(alone, prompt="Hello", temperature=0.9, seed=5) == once
    assert len(stream(alone, prompt="Hello", max_new_tokens=2)) <= 3


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"images": ["%%%"], "prompt": "<image> x"}, "image_url"),
        ({"images": ["aGVsbG8="], "prompt": "<image> x"}, "image"),
        ({"images": [], "prompt": "<image> x"}, "1 <image> markers"),
        ({"model": "other"}, "unknown model"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"prompt": "What is <region:7>?"}, "region"),
        ({"prompt": " "}, "nothing is asked"),
        ({"regions": [[]]}, "more lists than images"),
        ({"temperature": 3}, "temperature"),
        ({"prompt": "word " * 5000}, "tokens"),
    ],
)
def test_errors_are_reported_in_the_legacy_stream(
    alone: httpx.Client, wrong: dict[str, Any], said: str
) -> None:
    ((text, code),) = stream(alone, **{"prompt": "x", **wrong})
    assert code == 1 and said in text


def test_malformed_requests_are_refused(alone: httpx.Client) -> None:
    for body, status in (({"prompt": 1}, 422), ({"prompt": "x", "echo": True}, 422), ({}, 422)):
        answer = alone.post("/worker_generate_stream", json=body)
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert alone.post("/worker_generate_stream", content=b"{").status_code == 400


def test_the_status_has_the_originals_fields(alone: httpx.Client) -> None:
    found = alone.post("/worker_get_status").json()
    assert found == {"model_names": ["tiny"], "speed": 1.0, "queue_length": 0}


@pytest.fixture
def worker(tiny: Assistant) -> Iterator[Callable[..., Any]]:
    """`worker(controller, name="tiny", secret=...)` starts a worker; returns its URL and application."""
    with contextlib.ExitStack() as stack:

        def start(controller: Any, name: str = "tiny", **given: Any) -> tuple[str, Any]:
            secret = given.pop("secret", controller.controller.secret)
            listener = stack.enter_context(contextlib.closing(listen(SETTINGS)))
            port = listener.getsockname()[1]
            listener.close()  # a free port, reused at once
            settings = ServerSettings(port=port)
            address = f"http://127.0.0.1:{port}"
            app = create_worker(
                given.pop("assistants", {name: tiny}),
                settings,
                secret=secret,
                controller=controller.address,
                address=address,
                heartbeat_seconds=0.5,
                **given,
            )
            stack.enter_context(background(app, settings))
            return address, app

        yield start


def eventually(true: Callable[[], bool], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


def test_workers_register_serve_and_unregister(cluster: Any, worker: Any, tiny: Assistant) -> None:
    controller = cluster()
    address, app = worker(controller)
    eventually(lambda: controller.addresses() == {address})
    answer = controller.ask("tiny", messages=[{"role": "user", "content": "Hello"}], max_tokens=5)
    right = tiny.ask(None, "Hello", max_new_tokens=5)
    assert answer.json()["choices"][0]["message"]["content"] == right.text
    app.state.context.draining = True  # the first step of a stop
    eventually(lambda: controller.addresses() == set())
    app.state.context.draining = False
    eventually(lambda: controller.addresses() == {address})


def test_a_worker_registers_once_its_models_are_loaded(
    cluster: Any, worker: Any, tiny: Any
) -> None:
    controller = cluster()
    loaded: list[float] = []

    def slow() -> Assistant:
        time.sleep(0.6)
        loaded.append(time.monotonic())
        return tiny  # type: ignore[no-any-return]

    worker(controller, assistants={}, loaders={"late": slow, "later": slow})
    while not controller.addresses():
        assert len(loaded) < 2 or time.monotonic() - loaded[-1] < 5
        time.sleep(0.01)
    assert len(loaded) == 2
    assert controller.client.post("/list_models").json() == {"models": ["late", "later"]}


def test_a_worker_accepts_only_its_controller(cluster: Any, worker: Any) -> None:
    controller = cluster()
    address, _ = worker(controller)
    stranger = Secret("a secret that is not the cluster's").service_key
    for fields in ({}, {"authorization": f"Bearer {stranger}"}):
        for path in ("/worker_get_status", "/worker_generate_stream", "/v1/chat/completions"):
            assert httpx.post(address + path, headers=fields, json={}).status_code == 401
    assert httpx.get(address + "/health").status_code == 200


def test_the_originals_client_works(
    cluster: Any, worker: Any, tiny: Assistant, photo: Image.Image, encoded: str
) -> None:
    """Refresh, list, get an address, stream from it: what the original's page does."""
    controller = cluster()
    worker(controller, "vip-llava-tiny")
    eventually(lambda: bool(controller.addresses()))
    assert controller.client.post("/refresh_all_workers").status_code == 200
    (name,) = controller.client.post("/list_models").json()["models"]
    found = controller.client.post("/get_worker_address", json={"model": name}).json()
    prompt = prompt_of("<image>\nWhat is this?")
    with httpx.Client(base_url=found["address"], timeout=30, trust_env=False) as client:
        lines = stream(client, model=name, prompt=prompt, images=[encoded], top_p=0.7, stop="</s>")
    right = tiny.ask(photo, "What is this?", max_new_tokens=6)
    assert lines[-1] == (prompt + right.text, 0)
    assert lines[-1][0][len(prompt) :].strip() == right.text


def test_the_openai_client_through_a_controller(
    cluster: Any, worker: Any, tiny: Assistant, photo: Image.Image, encoded: str
) -> None:
    controller = cluster()
    worker(controller)
    eventually(lambda: bool(controller.addresses()))
    content = [
        {"type": "text", "text": QUESTION},
        {
            "type": "image_url",
            "image_url": {"url": f"data:image/png;base64,{encoded}"},
            "regions": [BOX.to_json()],
        },
    ]
    right = tiny.ask(photo, QUESTION, [BOX], max_new_tokens=6).text
    with openai.OpenAI(
        base_url=f"{controller.address}/v1", api_key="none-is-needed-here", max_retries=0
    ) as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        ask: dict[str, Any] = {
            "model": "tiny",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 6,
        }
        whole = client.chat.completions.create(**ask)
        assert whole.choices[0].message.content == right
        assert whole.model_extra is not None
        assert whole.model_extra["vip_llava"]["images"][0]["regions"][0]["color"] == "red"
        pieces = list(client.chat.completions.create(**ask, stream=True))
        said = "".join(piece.choices[0].delta.content or "" for piece in pieces)
        assert said == right
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(**{**ask, "model": "other"})
        with pytest.raises(openai.UnprocessableEntityError):
            client.chat.completions.create(**ask, extra_body={"unknown": 1})


def test_uploads_are_inlined_by_the_controller(
    cluster: Any, worker: Any, tiny: Assistant, photo: Image.Image, encoded: str
) -> None:
    controller = cluster()
    worker(controller)
    eventually(lambda: bool(controller.addresses()))
    left = controller.client.post(
        "/v1/uploads",
        content=base64.b64decode(encoded),
        headers={"content-type": "image/png"},
    )
    assert left.status_code == 201
    name = left.json()["id"]

    def ask(address: str) -> httpx.Response:
        part = {
            "type": "image_url",
            "image_url": {"url": address},
            "regions": [BOX.to_json()],
        }
        message = {"role": "user", "content": [{"type": "text", "text": QUESTION}, part]}
        answer: httpx.Response = controller.ask("tiny", messages=[message], max_tokens=6)
        return answer

    right = tiny.ask(photo, QUESTION, [BOX], max_new_tokens=6).text
    for address in (f"upload:{name}", f"UPLOAD:{name}", f"data:image/png;base64,{encoded}"):
        assert ask(address).json()["choices"][0]["message"]["content"] == right
    refused = ask("upload:another")
    assert refused.status_code == 404
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == (
        "upload_not_found",
        "messages[0].content[1].image_url.url",
    )
    assert controller.client.delete(f"/v1/uploads/{name}").status_code == 200
    assert ask(f"upload:{name}").status_code == 404


@pytest.mark.parametrize(
    "messages",
    ["upload:x", [], ["upload:x"], [{"content": "upload:x"}], [{"content": [{"image_url": 1}]}]],
)
def test_malformed_requests_with_uploads_are_forwarded(
    cluster: Any, scripted: Any, messages: Any
) -> None:
    controller, generations = cluster(), scripted("w")
    controller.register(generations)
    assert controller.ask(messages=messages, user="upload:x").json() == {"from": "w"}
    assert json.loads(generations.asks[0]["body"])["messages"] == messages


def test_workers_register_again_at_a_restarted_controller(
    scripted: Any, heartbeat_client: Any
) -> None:
    """The registry is complete again after one heartbeat of each worker."""
    secret = Secret("the secret of the cluster's tests")
    with listen(SETTINGS) as free:
        settings = ServerSettings(port=free.getsockname()[1])
    worker = scripted("w")

    async def lives() -> list[set[str]]:
        member = heartbeat_client(f"http://127.0.0.1:{settings.port}", worker)
        task = asyncio.ensure_future(member.run())
        found = []
        try:
            for _ in range(2):
                app = create_controller(settings, secret)
                with background(app, settings):
                    registry = app.state.controller.registry
                    async with asyncio.timeout(20):
                        while not registry.available:
                            await asyncio.sleep(0.02)
                    found.append({one.address for one in registry.available})
                await asyncio.sleep(0.3)  # the controller is down for a while
        finally:
            task.cancel()
            await member.aclose()
        return found

    assert asyncio.run(lives()) == [{worker.address}, {worker.address}]
