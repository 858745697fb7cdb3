"""Asking through the engine: what is shared between requests, turns and threads, and what is not."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vip_llava.assistant import Answer, Assistant, load
from vip_llava.backends.native import NativeBackend
from vip_llava.engine import EngineConfig
from vip_llava.engine.model_runner import ModelRunner
from vip_llava.errors import RequestError
from vip_llava.regions import Box

BOX = Box(10, 10, 40, 30)


@pytest.fixture
def assistant(tiny_model_folder: Path) -> Assistant:
    return load(tiny_model_folder, device="cpu")


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)) for _ in range(3)]


def questions(photos: list[Image.Image], count: int) -> list[dict[str, Any]]:
    return [
        {"image": photos[i % 3], "question": f"What is it, number {i}? " * (1 + i % 4)}
        for i in range(count)
    ]


def fill(assistant: Assistant) -> int:
    return assistant.backend.engine.stats().kv_cache_tokens_used


def test_a_second_turn_of_a_chat_reads_only_what_is_new(
    assistant: Assistant, photos: list[Image.Image]
) -> None:
    chat = assistant.chat(photos[0], [BOX])
    chat.ask("What is <region:1>?", max_new_tokens=8)
    before = assistant.backend.engine.stats()
    second = chat.ask("And beside it?", max_new_tokens=8)
    after = assistant.backend.engine.stats()
    assert before.encoder_cache_misses == after.encoder_cache_misses == 1
    shared = after.cached_tokens - before.cached_tokens
    assert second.usage.prompt_tokens * 0.6 < shared < second.usage.prompt_tokens
    fresh = Assistant(NativeBackend(assistant.backend.model, assistant.backend.processor))
    alone = fresh.ask(photos[0], "And beside it?", BOX, history=chat.turns[:2], max_new_tokens=8)
    assert alone.text == second.text


def test_another_mark_is_another_image(assistant: Assistant, photos: list[Image.Image]) -> None:
    answers = [
        assistant.ask(photos[0], "What is <region:1>?", Box(*box, color="red"), max_new_tokens=9)
        for box in ((10, 10, 40, 30), (30, 20, 70, 50))
    ]
    assert assistant.backend.engine.stats().encoder_cache_misses == 2
    assert answers[0].prompt == answers[1].prompt
    assert answers[0].text != answers[1].text


def test_the_next_begins_as_one_ends(
    assistant: Assistant, photos: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 0
    execute = ModelRunner.execute

    def run(self: ModelRunner, batch: Any) -> Any:
        nonlocal most
        most = max(most, len(batch))
        return execute(self, batch)

    monkeypatch.setattr(ModelRunner, "execute", run)
    asked = questions(photos, 7)
    for index, one in enumerate(asked):
        one["max_new_tokens"] = 3 + 4 * index
    told: list[int] = []
    answers = assistant.ask_many(asked, batch_size=3, on_answer=lambda i, _: told.append(i))
    assert most == 3
    assert sorted(told) == list(range(7))
    assert [answer.usage.completion_tokens for answer in answers] == [3 + 4 * i for i in range(7)]
    # In batches of three it would be the sum of each batch's longest.
    assert assistant.backend.engine.stats().steps < 7 + sum(
        sorted(3 + 4 * i for i in range(7))[-3:]
    )


def test_more_than_the_memory_holds_waits(
    tiny_model_folder: Path, photos: list[Image.Image]
) -> None:
    whole = load(tiny_model_folder, device="cpu")
    backend, config = whole.backend, EngineConfig(kv_cache_tokens=256, max_num_seqs=4)
    small = Assistant(NativeBackend(backend.model, backend.processor, config=config))
    asked = questions(photos, 6)
    texts = [answer.text for answer in small.ask_many(asked, max_new_tokens=40)]
    assert texts == [whole.ask(**one, max_new_tokens=40).text for one in asked]
    assert small.backend.engine.stats().kv_cache_tokens == 256
    cut = small.ask(None, "Hello " + "dog " * 60, max_new_tokens=400)
    assert cut.usage.total == 256
    assert "no more room" in cut.notes[0]
    with pytest.raises(RequestError, match=r"request 1: .*KV cache holds 256"):
        small.ask_many([asked[0], {"question": "word " * 200}])


def test_a_stream_may_rest_while_others_ask(
    assistant: Assistant, photos: list[Image.Image]
) -> None:
    whole = assistant.ask(photos[0], "What is it?", max_new_tokens=30)
    with assistant.stream(photos[0], "What is it?", max_new_tokens=30) as stream:
        first = next(stream)
        other = assistant.ask(photos[1], "What is it?", max_new_tokens=30)
        rest = list(stream)
    assert first + "".join(rest) == whole.text != other.text


def test_nothing_is_left_behind(assistant: Assistant, photos: list[Image.Image]) -> None:
    with assistant.stream(photos[0], "What is it?", max_new_tokens=50) as stream:
        next(stream)
        assert fill(assistant) > 0
    assert fill(assistant) == 0

    def leave(_index: int, _answer: Answer) -> None:
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        assistant.ask_many(questions(photos, 6), max_new_tokens=4, on_answer=leave)
    assert fill(assistant) == 0
    assert not assistant.backend.engine.step()


def test_several_threads_may_ask(assistant: Assistant, photos: list[Image.Image]) -> None:
    asked = questions(photos, 8)
    expected = [assistant.ask(**one, max_new_tokens=10).text for one in asked]
    found: dict[int, str] = {}

    def work(index: int) -> None:
        found[index] = assistant.ask(**asked[index], max_new_tokens=10).text

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == dict(enumerate(expected))


@pytest.mark.slow
@pytest.mark.default_model
def test_the_default_model_answers_together_as_transformers_does_alone() -> None:
    """With close views of regions, questions of several lengths, and images in common."""
    import torch

    assistant = load()
    photo = Path(__file__).parents[1] / "examples" / "photos" / "cat.jpg"
    asked: list[dict[str, Any]] = [
        {"image": photo, "question": "What is <region:1>?", "regions": [Box(100, 40, 330, 250)]},
        {"image": photo, "question": "Describe the image."},
        {"image": None, "question": "What colour is the sky?"},
        {"image": photo, "question": "What is <region:1>?", "regions": [Box(10, 10, 90, 90)]},
    ]
    answers = assistant.ask_many(asked, batch_size=3, max_new_tokens=12)
    stops = sorted(assistant.backend.processor.stop_ids)
    for one, answer in zip(asked, answers, strict=True):
        inputs = assistant.backend.processor([assistant.stream(**one).prepared.turns])
        model: Any = assistant.backend.model
        with torch.inference_mode():
            found = model.generate(
                **inputs,
                max_new_tokens=12,
                do_sample=False,
                eos_token_id=stops,
                suppress_tokens=[assistant.backend.processor.image_token_id],
            )
        theirs = found[0, inputs["input_ids"].shape[1] :]
        assert answer.text == assistant.backend.processor.decode(theirs)
