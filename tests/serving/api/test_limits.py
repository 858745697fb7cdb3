"""Every limit is enforced, and an error names it and when to retry."""

from __future__ import annotations

import base64
import contextlib
import io
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image

from vip_llava.serving.api.uploads import UploadStore
from vip_llava.serving.middleware.errors import ApiError
from vip_llava.serving.settings import Limits

BOX = {"shape": "box", "frame": "pixel", "box": [10, 10, 50, 40]}
LIMITS = {
    "body_bytes": 300_000,
    "messages": 3,
    "text_chars": 100,
    "images": 2,
    "image_bytes": 50_000,
    "image_pixels": 10_000,
    "request_pixels": 15_000,
    "regions": 2,
    "tokens": 20,
    "choices": 2,
}


def shown(address: str, *regions: dict[str, Any]) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "image_url", "image_url": {"url": address}}
    return {**part, "regions": list(regions)} if regions else part


def blank(width: int, height: int) -> str:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def small(serve: Callable[..., Any]) -> Any:
    """A server with small limits."""
    return serve(limits=dict(LIMITS))


def test_requests_within_the_limits_are_answered(small: Any) -> None:
    image = shown(blank(100, 70), BOX, BOX)
    small.told(image, image, "a" * 100, max_tokens=20, n=2)


def test_each_limit_is_named(small: Any) -> None:
    image = shown(blank(10, 10))
    turn = {"role": "user", "content": "x"}
    over = (422, "over_limit")
    assert small.refused("x", messages=[turn] * 4) == (*over, "messages")
    assert small.refused("a" * 60, "b" * 41) == (*over, "messages")
    assert small.refused(image, image, image, "x") == (*over, "messages")
    regions = small.refused("x", shown(blank(96, 64), BOX, BOX, BOX))
    assert regions == (*over, "messages[0].content[1].regions")
    assert small.refused("x", max_tokens=21) == (*over, "max_tokens")
    assert small.refused("x", max_completion_tokens=21, max_tokens=None) == (*over, "max_tokens")
    assert small.refused("x", n=3) == (*over, "n")
    text = small.ask("x", max_tokens=21).json()["error"]["message"]
    assert "limit is 20" in text
    assert "(tokens)" in text


def test_images_are_limited_individually_and_in_total(small: Any) -> None:
    bad = (422, "invalid_image", "messages[0].content[0].image_url.url")
    assert small.refused(shown(blank(101, 100)), "x") == bad
    small.told(shown(blank(100, 100)), "x")
    second = small.refused(shown(blank(100, 100)), shown(blank(100, 51)), "x")
    assert second == (422, "invalid_image", "messages[0].content[1].image_url.url")
    heavy = "data:image/png;base64," + "A" * 70_000
    assert small.refused(shown(heavy), "x") == bad


def test_a_large_body_is_refused_before_it_is_read(small: Any) -> None:
    assert small.refused("a" * 400_000)[:2] == (413, "body_too_large")


def test_the_token_limit_applies_without_max_tokens(small: Any) -> None:
    answer = small.told("x", max_tokens=None)
    assert answer["usage"]["completion_tokens"] <= 20


@contextlib.contextmanager
def slow_steps(assistant: Any, seconds: float) -> Iterator[None]:
    """Every step of the model takes at least so long."""
    decoder = assistant.backend.model.get_decoder()
    hook = decoder.register_forward_pre_hook(lambda *_: time.sleep(seconds))
    assistant.backend.engine.invalidate()
    try:
        yield
    finally:
        hook.remove()
        assistant.backend.engine.invalidate()


def test_a_full_queue_has_retry_after(serve: Callable[..., Any], tiny: Any) -> None:
    api = serve(limits={"queue": 2})
    threads = [
        threading.Thread(target=api.told, args=("Hello?",), kwargs={"max_tokens": 60})
        for _ in range(2)
    ]
    with slow_steps(tiny, 0.05):
        for thread in threads:
            thread.start()
        for _ in range(200):
            if "vip_llava_answers_open 2.0" in api.client.get("/metrics").text:
                break
            time.sleep(0.01)
        refused = api.ask("Hello?")
        more = api.ask("Hello?", n=3)
        for thread in threads:
            thread.join()
    for answer in (refused, more):
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "busy")
        assert int(answer.headers["retry-after"]) >= 1
    api.told("Hello?", n=2)
    assert "vip_llava_answers_open 0.0" in api.client.get("/metrics").text


def test_a_slow_answer_times_out(serve: Callable[..., Any], tiny: Any) -> None:
    api = serve(limits={"answer_seconds": 0.3})
    with slow_steps(tiny, 0.05):
        answer = api.ask("Hello?", max_tokens=1000)
        streamed = api.ask("Hello?", max_tokens=1000, stream=True)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "answer_too_slow")
    assert streamed.status_code == 200
    assert '"code":"answer_too_slow"' in streamed.text.split("\n\n")[-2]
    assert "[DONE]" not in streamed.text
    assert tiny.backend.engine.stats().running == 0


def test_uploads_are_limited_and_expire() -> None:
    now = [1000.0]
    limits = Limits(uploads=2, uploads_bytes=100, image_bytes=60, upload_seconds=50)
    store = UploadStore(limits, clock=lambda: now[0])
    first = store.add("a", b"x" * 60)
    with pytest.raises(ApiError) as large:
        store.add("a", b"x" * 61)
    assert large.value.status == 413
    with pytest.raises(ApiError) as full:
        store.add("a", b"x" * 41)
    assert (full.value.status, full.value.retry_after) == (503, 50)
    now[0] += 10
    store.add("b", b"x" * 40)
    with pytest.raises(ApiError) as many:
        store.add("b", b"")
    assert many.value.status == 503
    now[0] += 40  # the first has expired, the second has not
    with pytest.raises(ApiError) as gone:
        store.get("a", first.id)
    assert gone.value.status == 404
    assert store.bytes == 40
    store.add("a", b"x" * 60)
    assert store.bytes == 100


def test_upload_ids_are_random() -> None:
    store = UploadStore(Limits())
    ids = {store.add("a", b"x").id for _ in range(50)}
    assert len(ids) == 50
    assert min(map(len, ids)) >= 24
