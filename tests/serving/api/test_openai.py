"""The official `openai` client with a running server."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from vip_llava import Assistant, Box, load

KEY = "a-key-of-enough-characters"
BOX = {"shape": "box", "frame": "pixel", "box": [10, 10, 50, 40]}


@pytest.fixture
def client(serve: Callable[..., Any]) -> Iterator[OpenAI]:
    """A client of a server that requires a key and limits answers to 50 tokens."""
    api = serve(keys=[KEY], limits={"tokens": 50})
    with OpenAI(base_url=f"{api.address}/v1", api_key=KEY, max_retries=0, timeout=30) as made:
        yield made


def messages(address: str, *regions: Any) -> list[Any]:
    image: dict[str, Any] = {"type": "image_url", "image_url": {"url": address, "detail": "high"}}
    if regions:
        image["regions"] = list(regions)
    return [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "What is <region:1>?"}, image]},
    ]


def test_a_plain_completion(
    client: OpenAI, tiny: Assistant, photo: Any, photo_address: str
) -> None:
    completion = client.chat.completions.create(
        model="tiny", messages=messages(photo_address, BOX), max_completion_tokens=8, temperature=0
    )
    wanted = tiny.ask(
        photo,
        "What is <region:1>?",
        [Box(10, 10, 50, 40)],
        history=[{"role": "system", "text": "Be short."}],
        max_new_tokens=8,
    )
    assert completion.choices[0].message.content == wanted.text
    assert completion.choices[0].finish_reason == wanted.finish_reason
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == wanted.usage.prompt_tokens
    assert completion.usage.total_tokens == wanted.usage.total
    extension: Any = completion.model_extra
    assert extension["vip_llava"]["images"][0]["regions"][0]["color"] == "red"


def test_a_streamed_completion(client: OpenAI, photo_address: str) -> None:
    asked: Any = {"model": "tiny", "messages": messages(photo_address, BOX), "max_tokens": 12}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"


def test_leaving_a_stream_early(client: OpenAI, tiny: Assistant) -> None:
    asked: Any = {"model": "tiny", "messages": [{"role": "user", "content": "Hello?"}]}
    with client.chat.completions.create(**asked, max_tokens=50, stream=True) as stream:
        next(stream)
    assert client.chat.completions.create(**asked, max_tokens=3).choices


def test_stop_seed_logprobs_and_n(client: OpenAI) -> None:
    asked: Any = {"model": "tiny", "messages": [{"role": "user", "content": "Hello?"}]}
    whole = client.chat.completions.create(**asked, max_tokens=20).choices[0].message.content
    assert whole
    cut = client.chat.completions.create(**asked, max_tokens=20, stop=whole[5:8])
    assert cut.choices[0].finish_reason == "stop"
    assert cut.choices[0].message.content == whole[: whole.index(whole[5:8])].rstrip()
    sampled: Any = {"max_tokens": 8, "temperature": 1.0, "seed": 3, "n": 2}
    first = client.chat.completions.create(**asked, **sampled)
    again = client.chat.completions.create(**asked, **sampled)
    assert [c.message for c in first.choices] == [c.message for c in again.choices]
    assert len({c.message.content for c in first.choices}) == 2
    told = client.chat.completions.create(**asked, max_tokens=4, logprobs=True, top_logprobs=2)
    content = told.choices[0].logprobs
    assert content is not None
    assert content.content is not None
    assert len(content.content) == 4
    assert all(len(each.top_logprobs) == 2 and each.logprob <= 0 for each in content.content)


def test_additional_parameters_go_in_the_extra_body(client: OpenAI, photo_address: str) -> None:
    completion = client.chat.completions.create(
        model="tiny",
        messages=messages(photo_address, BOX),
        max_tokens=3,
        extra_body={"return_image": True, "top_k": 5, "repetition_penalty": 1.1},
    )
    extension: Any = completion.model_extra
    assert extension["vip_llava"]["images"][0]["image"].startswith("data:image/png;base64,")


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "vip-llava"


def test_errors_map_to_the_clients_exceptions(client: OpenAI) -> None:
    asked: Any = {"messages": [{"role": "user", "content": "Hello?"}]}
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="none", **asked)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    assert missing.value.type == "not_found_error"
    with pytest.raises(openai.UnprocessableEntityError) as wrong:
        client.chat.completions.create(model="tiny", max_tokens=51, **asked)
    assert "limit is 50" in wrong.value.message
    assert wrong.value.request_id
    with pytest.raises(openai.UnprocessableEntityError, match="tools"):
        client.chat.completions.create(model="tiny", tools=[], **asked)
    stranger = client.with_options(api_key="another-key-of-some-length")
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_the_client_honours_retry_after(serve: Callable[..., Any]) -> None:
    """The client waits for Retry-After, and the retry is answered."""
    api = serve(limits={"rate": 60, "burst": 1})
    with OpenAI(base_url=f"{api.address}/v1", api_key="none", max_retries=0) as impatient:
        impatient.models.list()
        with pytest.raises(openai.RateLimitError):
            impatient.models.list()
        assert impatient.with_options(max_retries=2).models.list().data


def test_the_asynchronous_client(serve: Callable[..., Any]) -> None:
    api = serve()
    asked: Any = {"model": "tiny", "messages": [{"role": "user", "content": "Hello?"}]}

    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{api.address}/v1", api_key="none") as client:
            create = client.chat.completions.create
            several = await asyncio.gather(*[create(**asked, max_tokens=6) for _ in range(6)])
            return [each.choices[0].message.content for each in several]

    found = asyncio.run(ask())
    assert len(set(found)) == 1
    assert found[0]


@pytest.mark.slow
@pytest.mark.default_model
def test_the_default_model_names_a_marked_cat(serve: Callable[..., Any]) -> None:
    api = serve(assistants={"default": load()})
    photo = Path(__file__).parents[3] / "examples" / "photos" / "cat.jpg"
    address = "data:image/jpeg;base64," + b64encode(photo.read_bytes()).decode()
    cat = {"shape": "box", "frame": "pixel", "box": [100, 40, 330, 250]}
    with OpenAI(base_url=f"{api.address}/v1", api_key="none", timeout=120) as client:
        completion = client.chat.completions.create(
            model="default", messages=messages(address, cat)[1:], max_tokens=10
        )
    assert "cat" in str(completion.choices[0].message.content)
