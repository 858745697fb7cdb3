"""Tiny random models and hand-made prompts for the engine, without a tokenizer or a processor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from vip_llava.engine import Engine, EngineConfig
from vip_llava.engine.graph_pool import Graph, GraphPool
from vip_llava.errors import RequestError
from vip_llava.sampling_params import SamplingParams

IMAGE = 99
VIEW_TOKENS = 4


def _text() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        pad_token_id=0,
    )


def _vision() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=11,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
        projection_dim=32,
    )


def _randomized(model: PreTrainedModel) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Every parameter with random initial values; the class embedding has one dimension.
            if parameter.dim() > 1 or name.endswith("class_embedding"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


@pytest.fixture(scope="session")
def vip_model() -> PreTrainedModel:
    """A five-layer VipLlava: vocabulary 100, `<image>` is 99, a view is 4 tokens, 96 positions."""
    return _randomized(
        VipLlavaForConditionalGeneration(
            VipLlavaConfig(vision_config=_vision(), text_config=_text(), image_token_index=IMAGE)
        )
    )


@pytest.fixture(scope="session")
def llava_model() -> PreTrainedModel:
    """A one-layer Llava of the same sizes."""
    return _randomized(
        LlavaForConditionalGeneration(
            LlavaConfig(vision_config=_vision(), text_config=_text(), image_token_index=IMAGE)
        )
    )


@dataclass(frozen=True)
class Ask:
    """A prompt for the engine: ids with image tokens, and its views."""

    ids: list[int]
    pixels: Tensor | None

    def batch(self) -> dict[str, Tensor]:
        """Arguments for transformers."""
        ids = torch.tensor([self.ids])
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return batch if self.pixels is None else {**batch, "pixel_values": self.pixels}


@pytest.fixture(scope="session")
def make_ask() -> Callable[..., Ask]:
    """`make_ask(length, views, seed)`: one text id, the views, the other text ids."""

    def make(length: int, views: int = 0, seed: int = 0) -> Ask:
        generator = torch.Generator().manual_seed(1000 * length + 10 * views + seed)
        text = torch.randint(1, 90, (length,), generator=generator).tolist()
        ids = [text[0]] + [IMAGE] * (VIEW_TOKENS * views) + text[1:]
        pixels = torch.randn(views, 3, 28, 28, generator=generator)
        return Ask(ids, pixels if views else None)

    return make


@pytest.fixture
def make_engine() -> Callable[..., Engine]:
    """`make_engine(model, kv_cache_tokens=..., decode=...)`: config fields and arguments by name."""

    def make(model: PreTrainedModel, **given: Any) -> Engine:
        names = {field.name for field in fields(EngineConfig)}
        config = {name: given.pop(name) for name in list(given) if name in names}
        # A random model would sample the image token now and then.
        given = {"image_token_id": IMAGE, "suppress_ids": [IMAGE], **given}
        return Engine(model, config=EngineConfig(**config), **given)

    return make


@pytest.fixture(scope="session")
def plain_greedy() -> Callable[..., list[int]]:
    """`plain_greedy(model, ask, count)`: the tokens of transformers' `generate`."""
    known: dict[tuple[int, int, int, tuple[int, ...]], list[int]] = {}
    asked: list[Ask] = []  # kept alive, so that ids are not reused

    def run(model: Any, ask: Ask, count: int) -> list[int]:
        key = (id(model), id(ask), count, tuple(ask.ids))
        if key not in known:
            asked.append(ask)
            with torch.inference_mode():
                found = model.generate(
                    **ask.batch(),
                    max_new_tokens=count,
                    do_sample=False,
                    eos_token_id=None,
                    suppress_tokens=[IMAGE],
                )
            known[key] = found[0, len(ask.ids) :].tolist()
        return known[key]

    return run


@pytest.fixture(scope="module")
def overwritten_results() -> Iterator[None]:
    """As on a GPU: a graph overwrites the result of the graph of its pool that ran before."""
    patch = pytest.MonkeyPatch()
    capture = GraphPool.capture

    def run(self: GraphPool, work: Callable[[], Tensor]) -> Graph:
        graph = capture(self, work)

        def replay() -> Tensor:
            before: Tensor | None = getattr(self, "last", None)
            result = graph()
            if before is not None:
                before.fill_(torch.nan)
            self.last = result  # type: ignore[attr-defined]
            return result

        return replay

    patch.setattr(GraphPool, "capture", run)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def cancel_storm() -> Callable[..., None]:
    """`cancel_storm(engine, asks, expected, data, most)`: eight requests, of which some are cancelled
    at any time, with up to `most` steps before each; the others must return what is expected."""

    def run(
        engine: Engine, asks: list[Ask], expected: list[list[int]], data: st.DataObject, most: int
    ) -> None:
        params = SamplingParams(max_new_tokens=len(expected[0]))
        order = (0, 1, 5, 3, 4, 2, 6, 1)
        given = [(at, engine.submit(asks[at].ids, asks[at].pixels, params)) for at in order]
        numbers = st.integers(0, len(given) - 1)
        cancelled: set[int] = set()
        for number in data.draw(st.lists(numbers, max_size=7), label="cancelled"):
            for _ in range(data.draw(st.integers(0, most), label="steps")):
                engine.step()
            handle = given[number][1]
            if not handle.done:
                cancelled.add(number)
            handle.cancel()
            assert handle.done
            running = engine._core.scheduler.running
            used = engine.stats().kv_cache_tokens_used
            assert used <= 16 * sum(len(seq.block_table) for seq in running)
        for number, (which, handle) in enumerate(given):
            if number in cancelled:
                with pytest.raises(RequestError, match="cancelled"):
                    handle.result()
            else:
                assert list(handle.result().tokens) == expected[which]
        assert engine.stats().kv_cache_tokens_used == 0

    return run
