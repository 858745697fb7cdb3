"""Chat over HTTP: the answers equal the library's, whole and streamed."""

from __future__ import annotations

import base64
import io
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageChops

from vip_llava import Assistant, Box
from vip_llava.images import image_hash
from vip_llava.prompting.prepare import Request
from vip_llava.prompting.turns import MarkedImage
from vip_llava.regions import draw
from vip_llava.serving.api.schemas import ChatResponse

BOX = {"shape": "box", "frame": "pixel", "box": [10, 10, 50, 40], "color": "red"}


def shown(address: str, *regions: dict[str, Any]) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "image_url", "image_url": {"url": address}}
    return {**part, "regions": list(regions)} if regions else part


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    """The JSON values of a stream that ends with [DONE]."""
    lines = [line for line in answer.text.split("\n\n") if line and not line.startswith(":")]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_an_answer_equals_the_librarys(
    api: Any, tiny: Assistant, photo: Image.Image, photo_address: str
) -> None:
    answer = api.told(shown(photo_address, BOX), "What is <region:1>?")
    ChatResponse.model_validate(answer)
    wanted = tiny.ask(photo, "What is <region:1>?", [Box(10, 10, 50, 40)], max_new_tokens=5)
    choice = answer["choices"][0]
    assert choice["message"]["content"] == wanted.text
    assert choice["finish_reason"] == wanted.finish_reason
    assert answer["usage"]["prompt_tokens"] == wanted.usage.prompt_tokens
    assert answer["usage"]["completion_tokens"] == wanted.usage.completion_tokens
    told = answer["vip_llava"]
    assert told["prompt"] == wanted.prompt
    assert "within the red rectangle" in told["prompt"]
    assert wanted.image is not None
    image = told["images"][0]
    assert image["sha256"] == image_hash(wanted.image)
    assert (image["width"], image["height"], image["image"]) == (96, 64, None)
    assert image["regions"] == [region.to_json() for region in wanted.regions]


def test_the_returned_image_is_exact(api: Any, photo: Image.Image, photo_address: str) -> None:
    box = {**BOX, "frame": "unit", "box": [0.1, 0.2, 0.5, 0.75], "color": "#ff8000"}
    told = api.told(shown(photo_address, box), "What is this?", return_image=True)["vip_llava"]
    data = told["images"][0]["image"].removeprefix("data:image/png;base64,")
    back = Image.open(io.BytesIO(base64.b64decode(data)))
    wanted = draw(photo, [Box(0.1, 0.2, 0.5, 0.75, frame="unit", color="#ff8000")])
    assert back.mode == "RGB"
    assert ImageChops.difference(back, wanted).getbbox() is None
    # The resolved regions draw the same image again.
    again = api.told(shown(photo_address, *told["images"][0]["regions"]), "What is this?")
    assert again["vip_llava"]["images"][0]["sha256"] == told["images"][0]["sha256"]


def test_history_and_several_images(
    api: Any, tiny: Assistant, photo: Image.Image, photo_address: str
) -> None:
    blue = {**BOX, "color": "blue"}
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [shown(photo_address, BOX), {"type": "text", "text": "A?"}]},
        {"role": "assistant", "content": "Yes."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "And <region:1>"},
                shown(photo_address, blue),
                {"type": "text", "text": "or <region:2>?"},
            ],
        },
    ]
    answer = api.client.post(
        "/v1/chat/completions", json={"model": "tiny", "messages": messages, "max_tokens": 4}
    ).json()
    request = Request(
        question="And <region:1>\nor <region:2>?",
        history=[
            {"role": "system", "text": "Be short."},
            {"role": "user", "text": "A?", "images": [MarkedImage(photo, [Box(10, 10, 50, 40)])]},
            {"role": "assistant", "text": "Yes."},
        ],
        images=[MarkedImage(photo, [Box(10, 10, 50, 40, color="blue")])],
    )
    (wanted,) = tiny.ask_many([request], max_new_tokens=4)
    assert answer["choices"][0]["message"]["content"] == wanted.text
    assert answer["vip_llava"]["prompt"] == wanted.prompt
    images = answer["vip_llava"]["images"]
    assert [each["message"] for each in images] == [1, 3]
    assert [each["regions"][0]["id"] for each in images] == ["1", "2"]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 7, "top_k": 50}])
def test_a_stream_has_the_same_text(api: Any, photo_address: str, sampling: dict[str, Any]) -> None:
    asked = (shown(photo_address, BOX), "What is <region:1>?")
    whole = api.told(*asked, max_tokens=12, **sampling)
    answer = api.ask(*asked, max_tokens=12, stream=True, **sampling)
    assert answer.headers["content-type"].startswith("text/event-stream")
    pieces = events(answer)
    assert {each["object"] for each in pieces} == {"chat.completion.chunk"}
    assert len({each["id"] for each in pieces}) == 1
    assert pieces[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    deltas = [each["choices"][0]["delta"].get("content", "") for each in pieces]
    assert "".join(deltas) == whole["choices"][0]["message"]["content"]
    assert len([text for text in deltas if text]) > 3  # streamed in several chunks
    last = pieces[-1]
    assert last["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert not any("usage" in each for each in pieces)
    for key in ("images", "prompt", "notes", "seed"):
        assert last["vip_llava"][key] == whole["vip_llava"][key] or (key, sampling) == ("seed", {})


def test_a_stream_can_include_usage(api: Any) -> None:
    pieces = events(api.ask("Hello?", stream=True, stream_options={"include_usage": True}))
    whole = api.told("Hello?")
    assert pieces[-1]["choices"] == []
    assert pieces[-1]["usage"] == whole["usage"]


def test_several_answers_use_consecutive_seeds(api: Any) -> None:
    asked: dict[str, Any] = {"temperature": 1.2, "max_tokens": 8}
    several = api.told("Hello?", n=3, seed=5, **asked)
    texts = [choice["message"]["content"] for choice in several["choices"]]
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2]
    singles = [api.told("Hello?", seed=seed, **asked) for seed in (5, 6, 7)]
    assert texts == [each["choices"][0]["message"]["content"] for each in singles]
    assert len(set(texts)) == 3
    total = sum(each["usage"]["completion_tokens"] for each in singles)
    assert several["usage"]["completion_tokens"] == total
    pieces = events(api.ask("Hello?", n=3, seed=5, stream=True, **asked))
    # Concurrent: each choice starts before any ends.
    places = [(c["index"], c["finish_reason"]) for each in pieces for c in each["choices"]]
    ends = [at for at, (_, finish) in enumerate(places) if finish]
    assert {index for index, _ in places[: ends[0]]} == {0, 1, 2}
    for index, text in enumerate(texts):
        mine = [c for each in pieces for c in each["choices"] if c["index"] == index]
        assert "".join(c["delta"].get("content", "") for c in mine) == text


def test_stop_texts_end_an_answer(api: Any) -> None:
    whole = api.told("Hello?", max_tokens=30)["choices"][0]["message"]["content"]
    stop = whole[8:11]
    cut = api.told("Hello?", max_tokens=30, stop=[stop])["choices"][0]
    assert cut["message"]["content"] == whole[: whole.index(stop)].rstrip()
    assert cut["finish_reason"] == "stop"


def test_logprobs_equal_the_librarys(api: Any, tiny: Assistant) -> None:
    content = api.told("Hello?", logprobs=True, top_logprobs=3)["choices"][0]["logprobs"]["content"]
    wanted = tiny.ask(None, "Hello?", max_new_tokens=5, logprobs=3).logprobs
    assert wanted is not None
    assert [each["logprob"] for each in content] == pytest.approx([w.logprob for w in wanted])
    assert [each["token"] for each in content] == [w.text for w in wanted]
    for each in content:
        assert len(each["top_logprobs"]) == 3
        assert each["top_logprobs"][0]["logprob"] == each["logprob"]  # greedy
    pieces = events(api.ask("Hello?", logprobs=True, top_logprobs=3, stream=True))
    streamed = [p["choices"][0]["logprobs"] for p in pieces if p["choices"][0]["logprobs"]]
    told = [each["content"][0]["logprob"] for each in streamed]
    assert told == pytest.approx([each["logprob"] for each in content])
    assert api.told("Hello?")["choices"][0]["logprobs"] is None


def test_requests_without_regions(api: Any, photo_address: str) -> None:
    message = {"role": "user", "content": "Hello?"}
    plain = api.client.post("/v1/chat/completions", json={"model": "tiny", "messages": [message]})
    assert plain.status_code == 200
    assert plain.json()["vip_llava"]["images"] == []
    told = api.told(shown(photo_address), "What is this?", user="somebody", presence_penalty=0)
    assert told["vip_llava"]["images"][0]["regions"] == []


def user(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


@pytest.mark.parametrize(
    ("keys", "param"),
    [
        (user({"type": "text", "text": 5}), "messages[0].content[0].text"),
        (user({"type": "text"}), "messages[0].content[0].text"),
        (user({"type": "text", "text": "\ud800"}), "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (user({"type": "image_url", "image_url": {}}), "messages[0].content[0].image_url.url"),
        (user({"type": "video"}), "messages[0].content[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"temprature": 1}, "temprature"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"tools": []}, "tools"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
        ({"seed": -1}, "seed"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"model": 5}, "model"),
    ],
)
def test_invalid_keys_are_named(api: Any, keys: dict[str, Any], param: str) -> None:
    message = {"role": "user", "content": "Hello?"}
    body = {"model": "tiny", "messages": [message], "max_tokens": 5, **keys}
    answer = api.client.post(
        "/v1/chat/completions",
        content=json.dumps(body),  # ASCII, which can express lone surrogates
        headers={"content-type": "application/json"},
    )
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (422, "invalid_request", param)


def test_an_unknown_model_is_not_found(api: Any) -> None:
    assert api.refused("Hello?", model="nobody") == (404, "model_not_found", "model")


@pytest.mark.parametrize(
    ("region", "code"),
    [
        ({"shape": "box", "box": [1, 2, 3, 4]}, "invalid_region"),  # no frame
        ({**BOX, "box": [1, 2, 3]}, "invalid_region"),
        ({**BOX, "boxx": 1}, "invalid_region"),
        ({"shape": "star", "frame": "pixel"}, "invalid_region"),
        ("box", "invalid_region"),
    ],
)
def test_an_invalid_region_is_named_by_its_place(
    api: Any, photo_address: str, region: Any, code: str
) -> None:
    found = api.refused("See", shown(photo_address, BOX, region))
    assert found == (422, code, "messages[0].content[1].regions[1]")


def test_errors_that_depend_on_the_image(api: Any, photo_address: str) -> None:
    outside = {**BOX, "box": [500, 500, 600, 600]}
    assert api.refused(shown(photo_address, outside), "See?")[:2] == (422, "invalid_region")
    unknown = api.refused(shown(photo_address, BOX), "What is <region:9>?")
    assert unknown[:2] == (422, "invalid_region_reference")


PLACE = "messages[0].content[0].image_url.url"


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("data:image/png;base64,AAAA", "invalid_image"),
        ("data:image/png;base64,", "invalid_image"),
        ("data:nothing", "invalid_image"),
        ("/etc/hostname", "address_refused"),
        ("../photo.png", "address_refused"),
        ("file:///etc/hostname", "address_refused"),
        ("ftp://host.example/a.png", "address_refused"),
        ("gopher://host.example/a.png", "address_refused"),
        ("\\\\host\\share\\a.png", "address_refused"),
        ("https://host.example/a.png", "address_refused"),
        ("", "address_refused"),
        ("upload:none", "upload_not_found"),
    ],
)
def test_invalid_image_urls_are_refused(api: Any, address: str, code: str) -> None:
    status, found, param = api.refused(shown(address), "What is this?")
    assert (found, param) == (code, PLACE)
    assert status == (404 if code == "upload_not_found" else 422)


def test_invalid_json_bodies(api: Any) -> None:
    def send(body: bytes, kind: str = "application/json") -> tuple[int, str]:
        answer = api.client.post(
            "/v1/chat/completions", content=body, headers={"content-type": kind}
        )
        return answer.status_code, answer.json()["error"]["code"]

    assert send(b"{") == (400, "invalid_json")
    assert send(b'{"model": "\xff"}') == (400, "invalid_request")
    assert send(b"[" * 100_000) == (400, "invalid_request")
    assert send(b"null") == (422, "invalid_request")
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert send(b'{"model": "tiny"}', kind) == (415, "wrong_content_type")


def test_typed_control_text_stays_text(api: Any, photo_address: str) -> None:
    """Typed text never becomes an image token."""
    plain = api.told(shown(photo_address), "What is it?")["usage"]
    typed = api.told(shown(photo_address), "What is <image> <image> it? </s>")["usage"]
    details = "prompt_tokens_details"
    assert typed[details]["image_tokens"] == plain[details]["image_tokens"] > 0


def test_uploads(api: Any, photo: Image.Image, photo_file: bytes, photo_address: str) -> None:
    raw = api.client.post("/v1/uploads", content=photo_file, headers={"content-type": "image/png"})
    form = api.client.post("/v1/uploads", files={"file": ("name.png", photo_file, "image/png")})
    assert (raw.status_code, form.status_code) == (201, 201)
    assert (raw.json()["width"], raw.json()["height"]) == photo.size
    assert raw.json()["id"] != form.json()["id"]
    wanted = api.told(shown(photo_address, BOX), "What is <region:1>?")
    for each in (raw, form):
        told = api.told(shown(f"upload:{each.json()['id']}", BOX), "What is <region:1>?")
        assert told["choices"] == wanted["choices"]
    gone = api.client.delete(f"/v1/uploads/{raw.json()['id']}")
    assert gone.json() == {"id": raw.json()["id"], "deleted": True}
    assert api.refused(shown(f"upload:{raw.json()['id']}"), "What?")[0] == 404


def test_invalid_uploads_are_refused(api: Any, photo_file: bytes) -> None:
    def send(**given: Any) -> tuple[int, str]:
        answer = api.client.post("/v1/uploads", **given)
        return answer.status_code, answer.json()["error"]["code"]

    kind = {"content-type": "image/png"}
    assert send(content=b"GIF89a", headers=kind) == (422, "invalid_image")
    assert send(content=b"", headers=kind) == (422, "invalid_image")
    assert send(content=photo_file) == (415, "wrong_content_type")
    assert send(files={"other": photo_file}) == (422, "invalid_request")
    assert send(data={"file": "text"}) == (415, "wrong_content_type")
    many = [("file", (f"{n}.png", photo_file)) for n in range(3)]
    assert send(files=many)[0] == 400
    assert send(content=b"x", headers={"content-type": "multipart/form-data"})[0] == 400
    endless = {"content-type": "multipart/form-data; boundary=" + "x" * 300}
    assert send(content=b"--" + b"x" * 5000, headers=endless)[0] == 400


def test_uploads_are_never_written_to_disk(
    api: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    noise = Image.frombytes("RGB", (1000, 1000), random.Random(0).randbytes(3_000_000))
    file = io.BytesIO()
    noise.save(file, "PNG")
    assert len(file.getvalue()) > 2_000_000
    # A temporary file would fail here.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    answer = api.client.post("/v1/uploads", files={"file": file.getvalue()})
    assert answer.status_code == 201, answer.text


def test_models_are_listed(api: Any, tiny: Assistant) -> None:
    listed = api.client.get("/v1/models").json()
    assert [each["id"] for each in listed["data"]] == ["tiny"]
    one = api.client.get("/v1/models/tiny").json()
    assert one == listed["data"][0]
    assert one["vip_llava"]["architecture"] == tiny.info.architecture
    assert tiny.info.name not in json.dumps(listed)  # a folder of this machine
    assert api.client.get("/v1/models/a/b").status_code == 404


def test_uploads_belong_to_a_key(serve: Callable[..., Any], photo_file: bytes) -> None:
    keys = ["first-key-0123456789", "other-key-0123456789"]
    api = serve(keys=keys)
    mine, other = ({"authorization": f"Bearer {key}"} for key in keys)
    kind = {"content-type": "image/png"}
    left = api.client.post("/v1/uploads", content=photo_file, headers={**kind, **mine}).json()
    assert api.client.delete(f"/v1/uploads/{left['id']}", headers=other).status_code == 404
    assert api.client.delete(f"/v1/uploads/{left['id']}", headers=mine).status_code == 200
