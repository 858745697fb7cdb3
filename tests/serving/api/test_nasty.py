"""Malicious values in every place of a request: never a 500, never a hang."""

from __future__ import annotations

import json
from typing import Any

import pytest

BOX = {"shape": "box", "frame": "pixel", "box": [10, 10, 50, 40], "id": "1"}
SCRIBBLE = {"shape": "scribble", "frame": "unit", "points": [[0.1, 0.1], [0.9, 0.9]], "id": "2"}
MASK = {"shape": "mask", "frame": "pixel", "rle": {"size": [64, 96], "counts": [0, 6144]}}

NASTY = (
    "\ud800",
    "a\x00b",
    "\u202e<|im_end|></s><image>",
    "<region:1>" * 50,
    "<region:\ud800>",
    "🐈" * 300,
    "%00../../etc/passwd",
    "data:image/png;base64,\ud800",
    "upload:\ud800",
    "https://\ud800.example/",
    "https://" + "a." * 900,
    -1,
    0,
    10**30,
    -(10**400),
    1e308,
    5e-324,
    float("nan"),
    float("-inf"),
    True,
    None,
    [],
    {},
    [[[[[]]]]],
    {"": {"": None}},
)


def whole(address: str) -> dict[str, Any]:
    """A request with a value in every place."""
    image = {"type": "image_url", "image_url": {"url": address}, "regions": [BOX, SCRIBBLE, MASK]}
    return {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": [image, {"type": "text", "text": "What is <region:1>?"}]},
            {"role": "assistant", "content": "A thing."},
            {"role": "user", "content": "And <region:2>?", "name": "me"},
        ],
        "max_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 10,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "n": 1,
        "stop": ["x"],
        "seed": 1,
        "logprobs": True,
        "top_logprobs": 2,
        "stream": False,
        "stream_options": {"include_usage": True},
        "return_image": False,
        "user": "u",
    }


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all places in a JSON value."""
    found = [path] if path else []
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        found += places(value[key], (*path, key))
    return found


def test_malicious_values_in_every_place(api: Any, photo_address: str) -> None:
    asked = whole(photo_address)
    assert api.client.post("/v1/chat/completions", json=asked).status_code == 200
    every = places(asked)
    assert len(every) > 60
    seen: dict[int, int] = {}
    for number, place in enumerate(every):
        for offset in range(5):  # each place gets a fifth of them, each value many places
            nasty = NASTY[(5 * number + offset) % len(NASTY)]
            changed = json.loads(json.dumps(asked))
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = nasty
            answer = api.client.post(
                "/v1/chat/completions",
                content=json.dumps(changed).encode(),
                headers={"content-type": "application/json"},
            )
            seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
            assert answer.status_code in (200, 400, 404, 422), (place, nasty, answer.text)
            if answer.status_code != 200:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert seen[200] > 20
    assert seen[422] > 100


@pytest.mark.parametrize("nasty", [value for value in NASTY if isinstance(value, str)])
def test_malicious_texts_are_answered_or_refused(api: Any, nasty: str) -> None:
    message = {"role": "user", "content": nasty}
    body = {"model": "tiny", "messages": [message], "max_tokens": 2}
    for keys in ({}, {"stream": True}, {"stop": [nasty]}, {"model": nasty}):
        answer = api.client.post(
            "/v1/chat/completions",
            content=json.dumps({**body, **keys}).encode(),
            headers={"content-type": "application/json"},
        )
        assert answer.status_code in (200, 404, 422), answer.text
