"""Which prompts use prefill graphs, and that they change no answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vip_llava.engine import Engine, EngineConfig
from vip_llava.engine import prefill_graphs as module
from vip_llava.engine.prefill_graphs import PrefillGraphs, padded_size
from vip_llava.sampling_params import SamplingParams

COUNT = 4

pytestmark = pytest.mark.usefixtures("overwritten_results")


def engine_of(model: Any, cuda_graphs: bool = True, **given: Any) -> Engine:
    config = EngineConfig(cuda_graphs=cuda_graphs, **given)
    return Engine(model, image_token_id=99, suppress_ids=[99], config=config)


def submit(engine: Engine, ask: Any, count: int = COUNT, **params: Any) -> Any:
    return engine.submit(ask.ids, ask.pixels, SamplingParams(max_new_tokens=count, **params))


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Of every prefill graph from now on: tokens computed before, and new ones."""
    seen: list[tuple[int, int]] = []
    call = PrefillGraphs.__call__

    def run(self: PrefillGraphs, seq: Any, count: int) -> Any:
        seen.append((seq.num_computed, count))
        return call(self, seq, count)

    monkeypatch.setattr(PrefillGraphs, "__call__", run)
    return seen


def test_sizes() -> None:
    counts = [1, 16, 17, 32, 33, 64, 65, 640, 641]
    assert [padded_size(count) for count in counts] == [16, 16, 32, 32, 64, 64, 128, 640, 704]


@pytest.mark.parametrize("name", ["vip_model", "llava_model"])
def test_prompts_equal_the_generate_of_transformers(
    name: str, request: Any, make_ask: Any, plain_greedy: Any, fed: list[tuple[int, int]]
) -> None:
    model = request.getfixturevalue(name)
    engine = engine_of(model)
    engine.warm_up()
    for length, views in ((30, 0), (20, 3), (41, 2), (60, 1), (40, 3)):
        ask = make_ask(length, views)
        assert list(submit(engine, ask).result().tokens) == plain_greedy(model, ask, COUNT)
    assert fed == [(0, 30), (0, 32), (0, 49), (0, 64), (0, 52)]
    # 1, 2, 4 and 6 views; 1 to 64 sequences; 16, 32, 64 and 128 new tokens.
    assert engine.stats().graphs == 4 + 9 + 4


def test_a_second_turn_computes_what_is_new(
    vip_model: Any, make_ask: Any, plain_greedy: Any, fed: list[tuple[int, int]]
) -> None:
    engine = engine_of(vip_model)
    engine.warm_up()
    ask = make_ask(25, 3)
    answer = submit(engine, ask).result().tokens
    ask.ids.extend([*answer, *range(5, 25)])
    assert list(submit(engine, ask).result().tokens) == plain_greedy(vip_model, ask, COUNT)
    assert fed == [(0, 37), (32, 29)]


def test_chunks_of_a_long_prompt(
    vip_model: Any, make_ask: Any, plain_greedy: Any, fed: list[tuple[int, int]]
) -> None:
    """Beside decode, with images across the chunks; other sizes are captured when they recur."""
    engine = engine_of(vip_model, max_batched_tokens=24, max_num_seqs=3, prefix_cache_tokens=0)
    asks = [make_ask(3), make_ask(50, 4), make_ask(60, 4)]
    handles = [submit(engine, ask) for ask in asks]
    for ask, handle in zip(asks, handles, strict=True):
        assert list(handle.result().tokens) == plain_greedy(vip_model, ask, COUNT)
    assert len(fed) > 3 and all(count <= 24 for _, count in fed)
    assert {padded_size(count) for _, count in fed} == {16, 32}


def test_a_size_is_captured_when_it_recurs_and_the_oldest_is_dropped(
    vip_model: Any, make_ask: Any, fed: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_GRAPHS", 2)
    engine = engine_of(vip_model, prefix_cache_tokens=0)

    def made(length: int) -> int:
        before = engine.stats().graphs
        submit(engine, make_ask(length)).result()
        return engine.stats().graphs - before

    assert made(10) == 1  # of decode
    assert [made(length) for length in (20, 40, 20, 40, 12)] == [0, 0, 1, 1, 1]
    # 16 replaced 32, which then replaces it.
    assert [made(length) for length in (14, 33, 20, 14, 33)] == [0, 0, 1, 1, 1]
    assert [count for _, count in fed] == [20, 40, 12, 14, 33, 20, 14, 33]


def test_few_tokens_of_many_requests_are_computed_together(
    vip_model: Any, make_ask: Any, fed: list[tuple[int, int]], plain_greedy: Any
) -> None:
    engine = engine_of(vip_model, prefix_cache_tokens=0)
    engine.warm_up()
    for number, alone in ((4, 4), (5, 0)):
        fed.clear()
        asks = [make_ask(20 + at) for at in range(number)]
        handles = [submit(engine, ask) for ask in asks]
        for ask, handle in zip(asks, handles, strict=True):
            assert list(handle.result().tokens) == plain_greedy(vip_model, ask, COUNT)
        assert len(fed) == alone


def test_logprobs_and_samples_are_of_each_requests_own_logits(
    vip_model: Any, make_ask: Any, fed: list[tuple[int, int]]
) -> None:
    asks = [make_ask(20 + at, at) for at in range(4)]
    params: list[dict[str, Any]] = [
        {"logprobs": 3}, {"temperature": 1.0, "seed": 3, "logprobs": 1}, {}, {"logprobs": 2},
    ]  # fmt: skip
    engine, ordinary = engine_of(vip_model), engine_of(vip_model, cuda_graphs=False)
    engine.warm_up()
    handles = [submit(engine, ask, **given) for ask, given in zip(asks, params, strict=True)]
    for ask, given, handle in zip(asks, params, handles, strict=True):
        expected, found = submit(ordinary, ask, **given).result(), handle.result()
        assert found.tokens == expected.tokens
        for mine, theirs in zip(found.logprobs or (), expected.logprobs or (), strict=True):
            assert mine.chosen == pytest.approx(theirs.chosen, abs=1e-4)
    assert len(fed) == 4


def test_decode_beside_prefill_keeps_its_logprobs(
    vip_model: Any, make_ask: Any, fed: list[tuple[int, int]]
) -> None:
    first, second = make_ask(20), make_ask(30, 1)
    found = []
    for cuda_graphs in (False, True):
        engine = engine_of(vip_model, cuda_graphs, prefix_cache_tokens=0)
        engine.warm_up()
        early = submit(engine, first, 8, logprobs=2)
        for _ in range(3):
            engine.step()
        submit(engine, second).result()
        found.append([one.chosen for one in early.result().logprobs])
    assert fed == [(0, 20), (0, 34)]
    assert found[1] == pytest.approx(found[0], abs=1e-4)


def test_the_kv_cache_may_grow_under_graphs(
    vip_model: Any, make_ask: Any, plain_greedy: Any, fed: list[tuple[int, int]]
) -> None:
    engine = engine_of(vip_model, kv_cache_tokens=4096, prefix_cache_tokens=0)
    engine.warm_up()
    cache = engine._core.runner.kv_cache
    generation = cache.generation
    asks = [make_ask(60, 0, seed) for seed in range(24)]
    handles = [submit(engine, ask, 30) for ask in asks]
    for ask, handle in zip(asks, handles, strict=True):
        assert list(handle.result().tokens) == plain_greedy(vip_model, ask, 30)
    assert cache.generation > generation
    fed.clear()
    assert list(submit(engine, asks[3]).result().tokens) == plain_greedy(vip_model, asks[3], COUNT)
    assert fed == [(0, 60)]


def test_prompts_that_cannot_be_captured_run_without_graphs(
    vip_model: Any, make_ask: Any, plain_greedy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory may be free again at the next request; any other error would occur again."""
    ask = make_ask(30)

    for again in (True, False):

        def refuse(*_: Any, again: bool = again) -> None:
            raise torch.OutOfMemoryError("made up") if again else ValueError("odd")

        engine = engine_of(vip_model, prefix_cache_tokens=0)
        submit(engine, ask).result()
        with monkeypatch.context() as patch:
            patch.setattr(PrefillGraphs, "_step", refuse)
            handle = submit(engine, ask)
            if again:
                found = handle.result()
            else:
                with pytest.warns(UserWarning, match="prefill goes on without .*: odd"):
                    found = handle.result()
        assert list(found.tokens) == plain_greedy(vip_model, ask, COUNT)
        assert engine._core.runner.prefill_graphs is None
        submit(engine, ask).result()
        graphs, fallback = engine._core.runner.prefill_graphs, engine.stats().fallback
        assert (graphs is not None, bool(fallback)) == (again, not again)
