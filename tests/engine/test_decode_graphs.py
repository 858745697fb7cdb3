"""Decode graphs change no answer, whatever arrives, finishes, stops or fails around them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vip_llava.engine import Engine, EngineConfig
from vip_llava.engine.decode_graphs import DecodeGraphs, bucket_sizes
from vip_llava.errors import RequestError, VipLlavaError
from vip_llava.models.quantize import Quantization, quantize_model
from vip_llava.sampling_params import SamplingParams

SHAPES = [(5, 1), (17, 2), (1, 0), (9, 1), (30, 0), (40, 3), (2, 0)]
COUNT = 12
QUICK = settings(max_examples=40, deadline=None)

pytestmark = pytest.mark.usefixtures("overwritten_results")


@pytest.fixture(scope="module")
def asks(make_ask: Any) -> list[Any]:
    return [make_ask(length, views) for length, views in SHAPES]


@pytest.fixture(scope="module")
def expected(vip_model: Any, asks: list[Any], plain_greedy: Any) -> list[list[int]]:
    return [plain_greedy(vip_model, ask, COUNT) for ask in asks]


def engine_of(model: Any, stop_ids: Any = (), cuda_graphs: bool = True, **given: Any) -> Engine:
    return Engine(
        model,
        image_token_id=99,
        suppress_ids=[99, 1000],
        stop_ids=stop_ids,
        config=EngineConfig(cuda_graphs=cuda_graphs, **given),
    )


def submit(engine: Engine, ask: Any, count: int = COUNT, **params: Any) -> Any:
    return engine.submit(ask.ids, ask.pixels, SamplingParams(max_new_tokens=count, **params))


def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Of every decode graph launched from now on: sequences, and whether it was launched ahead."""
    seen: list[tuple[int, bool]] = []
    launch = DecodeGraphs.launch

    def run(self: DecodeGraphs, seqs: Any, previous: Any = None) -> Any:
        seen.append((len(seqs), previous is not None))
        return launch(self, seqs, previous)

    monkeypatch.setattr(DecodeGraphs, "launch", run)
    return seen


@pytest.mark.parametrize("name", ["vip_model", "llava_model"])
def test_together_equals_the_generate_of_transformers(
    name: str, request: Any, asks: list[Any], plain_greedy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = request.getfixturevalue(name)
    steps = launched(monkeypatch)
    engine = engine_of(model)
    counts = (12, 3, 7, 20, 1)
    handles = [submit(engine, ask, count) for ask, count in zip(asks, counts, strict=False)]
    for ask, count, handle in zip(asks, counts, handles, strict=False):
        assert list(handle.result().tokens) == plain_greedy(model, ask, count)
    # The prompt of one token, then decode; all but the first were launched ahead, none in vain.
    assert [count for count, _ in steps] == [1] + [4] * 2 + [3] * 4 + [2] * 5 + [1] * 8
    assert [ahead for _, ahead in steps] == [False] * 2 + [True] * 18
    stats = engine.stats()
    assert (stats.steps, stats.graph_steps, stats.kv_cache_tokens_used) == (20, 20, 0)
    # Of 1, 4 and 2 sequences; of 16 and 32 new tokens, which occurred twice; of four views.
    assert stats.graphs == 3 + 2 + 1


DRAWN: dict[int, dict[str, Any]] = {
    1: {"temperature": 1.0, "seed": 7},
    4: {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.3, "seed": 3},
}


@pytest.fixture(scope="module")
def mixed(vip_model: Any, asks: list[Any], expected: list[list[int]]) -> list[list[int]]:
    """As `expected`, with some of them sampled."""
    found = list(expected)
    for which, params in DRAWN.items():
        ordinary = engine_of(vip_model, cuda_graphs=False)
        found[which] = list(submit(ordinary, asks[which], **params).result().tokens)
    return found


arrivals = st.lists(
    st.tuples(st.integers(0, len(SHAPES) - 1), st.integers(0, 4)), min_size=1, max_size=9
)


@QUICK
@given(
    arrivals=arrivals,
    max_batched_tokens=st.sampled_from([4, 11, 64]),
    kv_cache_tokens=st.sampled_from([96, 144, 4096]),
    prefix=st.sampled_from([0, 48, None]),
    stop=st.sampled_from([None, 3, 7]),
)
def test_any_arrival_gives_what_each_gets_alone(
    vip_model: Any,
    asks: list[Any],
    mixed: list[list[int]],
    arrivals: list[tuple[int, int]],
    max_batched_tokens: int,
    kv_cache_tokens: int,
    prefix: int | None,
    stop: int | None,
) -> None:
    """Stops are known one step late, and steps launched ahead in vain have no effect."""
    stops = set() if stop is None else {answer[stop] for answer in mixed[::2]}
    engine = engine_of(
        vip_model,
        stops,
        max_batched_tokens=max_batched_tokens,
        max_num_seqs=3,
        kv_cache_tokens=kv_cache_tokens,
        prefix_cache_tokens=prefix,
        encoder_cache_bytes=2048,
    )
    handles = []
    for which, steps in arrivals:
        handles.append((which, submit(engine, asks[which], **DRAWN.get(which, {}))))
        for _ in range(steps):
            engine.step()
    for which, handle in handles:
        ends = [at for at, token in enumerate(mixed[which]) if token in stops]
        assert list(handle.result().tokens) == mixed[which][: ends[0] if ends else None]
    stats = engine.stats()
    assert (stats.kv_cache_tokens_used, stats.running, stats.waiting) == (0, 0, 0)


@QUICK
@given(data=st.data())
def test_cancellations_do_not_affect_other_requests(
    vip_model: Any,
    asks: list[Any],
    expected: list[list[int]],
    cancel_storm: Any,
    data: st.DataObject,
) -> None:
    engine = engine_of(vip_model, max_batched_tokens=8, max_num_seqs=4, kv_cache_tokens=160)
    cancel_storm(engine, asks, expected, data, 6)


SAMPLED = [
    {"temperature": 1.0, "seed": 7},
    {},
    {"temperature": 1.5, "top_k": 5, "seed": 7, "logprobs": 2},
    {"repetition_penalty": 1.4},
    {"temperature": 1.2, "min_p": 0.05, "repetition_penalty": 1.3, "seed": 9},
    {"logprobs": 3},
]


def test_sampling_uses_the_logits_of_decode_graphs(
    vip_model: Any, asks: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = launched(monkeypatch)
    ordinary = engine_of(vip_model, cuda_graphs=False)
    alone = [submit(ordinary, ask, **g).result() for ask, g in zip(asks, SAMPLED, strict=False)]
    assert steps == []
    engine = engine_of(vip_model)
    handles = [submit(engine, ask, **g) for ask, g in zip(asks, SAMPLED, strict=False)]
    for one, handle in zip(alone, handles, strict=True):
        found = handle.result()
        assert found.tokens == one.tokens
        for mine, theirs in zip(found.logprobs or (), one.logprobs or (), strict=True):
            assert mine.chosen == pytest.approx(theirs.chosen, abs=1e-4)
    assert steps == [(1, False)] + [(6, False)] * (COUNT - 1)
    # Without logprobs such steps are launched ahead too.
    steps.clear()
    silent = [{name: g[name] for name in g if name != "logprobs"} for g in SAMPLED]
    handles = [submit(engine, ask, **g) for ask, g in zip(asks, silent, strict=False)]
    assert [handle.result().tokens for handle in handles] == [one.tokens for one in alone]
    assert [ahead for _, ahead in steps] == [False] * 2 + [True] * (COUNT - 2)


@pytest.mark.parametrize("bits", [None, 8])
def test_triton_kernels_give_the_same_tokens(
    vip_model: Any, asks: list[Any], bits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Triton's interpreter."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from vip_llava.kernels import fused
    from vip_llava.kernels.fused import launch

    if not launch.INTERPRETED:
        pytest.skip("these models are on the CPU, and Triton's interpreter is not on")
    model = copy.deepcopy(vip_model)
    if bits:
        quantize_model(model, Quantization(bits))
    ordinary = engine_of(model, cuda_graphs=False)
    some = [asks[0], asks[6]]  # each takes seconds
    alone = [submit(ordinary, ask, 3).result().tokens for ask in some]
    monkeypatch.setattr("vip_llava.engine.model_runner.for_device", lambda _: fused)
    steps = launched(monkeypatch)
    engine = engine_of(model)
    handles = [submit(engine, ask, 3) for ask in some]
    assert [handle.result().tokens for handle in handles] == alone
    assert steps == [(2, False), (2, True)]


def test_each_step_gives_each_sequence_one_token(vip_model: Any, asks: list[Any]) -> None:
    engine = engine_of(vip_model)
    handles = [submit(engine, asks[which], 6) for which in (0, 3)]
    for made in range(1, 7):
        assert engine.step()
        assert [len(handle._sequence.output_ids) for handle in handles] == [made, made]
    assert not engine.step()


def test_late_prompts_are_prefilled_beside_decode(
    vip_model: Any, asks: list[Any], expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = launched(monkeypatch)
    engine = engine_of(vip_model, max_batched_tokens=10, max_num_seqs=4)
    first = submit(engine, asks[0])
    for _ in range(3):
        engine.step()
    late = submit(engine, asks[4])  # 30 tokens: four chunks beside decode
    for _ in range(5):
        engine.step()
    assert (len(first._sequence.output_ids), len(late._sequence.output_ids)) == (8, 1)
    assert list(first.result().tokens) == expected[0]
    assert list(late.result().tokens) == expected[4]
    assert steps[:8] == [(1, False), (1, True), (1, True)] + [(1, False)] * 4 + [(2, False)]


def test_a_request_may_reuse_blocks_of_a_step_launched_in_vain(
    vip_model: Any, asks: list[Any], expected: list[list[int]]
) -> None:
    """Blocks are reallocated while a step of their former sequence is in flight."""
    engine = engine_of(vip_model, {expected[1][3]}, kv_cache_tokens=48, prefix_cache_tokens=0)
    for _ in range(3):
        stopped, other = submit(engine, asks[1]), submit(engine, asks[4])
        assert list(stopped.result().tokens) == expected[1][:3]
        assert engine._core._in_flight is not None
        cut = [at for at, token in enumerate(expected[4]) if token == expected[1][3]]
        assert list(other.result().tokens) == expected[4][: cut[0] if cut else None]


def test_an_event_may_cancel_its_own_and_other_requests(
    vip_model: Any, asks: list[Any], expected: list[list[int]]
) -> None:
    engine = engine_of(vip_model)
    handles: list[Any] = []
    events: list[int] = []

    def cancel(event: Any) -> None:
        events.append(event.token)
        if len(events) == 4:
            for handle in handles[:2]:
                handle.cancel()

    handles.append(engine.submit(asks[0].ids, asks[0].pixels, on_event=cancel))
    handles += [submit(engine, asks[1]), submit(engine, asks[3])]
    assert list(handles[2].result().tokens) == expected[3]
    assert events == expected[0][:4]
    for handle in handles[:2]:
        with pytest.raises(RequestError, match="cancelled"):
            handle.result()


def test_the_kv_cache_may_grow_under_graphs(
    vip_model: Any, make_ask: Any, plain_greedy: Any
) -> None:
    engine = engine_of(vip_model, kv_cache_tokens=4096, prefix_cache_tokens=0)
    asks = [make_ask(60, 0, seed) for seed in range(18)]
    first = [submit(engine, ask, 30) for ask in asks[:2]]
    for _ in range(5):
        engine.step()
    cache = engine._core.runner.kv_cache
    generation, made = cache.generation, engine.stats().graphs
    rest = [submit(engine, ask, 20) for ask in asks[2:]]
    for ask, handle, count in zip(asks, first + rest, [30] * 2 + [20] * 16, strict=True):
        assert list(handle.result().tokens) == plain_greedy(vip_model, ask, count)
    assert cache.generation > generation
    assert engine.stats().graphs > made + 1  # that of two sequences was captured anew


def test_invalidate_makes_changed_and_replaced_weights_effective(
    vip_model: Any, asks: list[Any]
) -> None:
    model = copy.deepcopy(vip_model)
    engine = engine_of(model)
    engine.warm_up()

    def tokens(of: Engine) -> Any:
        return submit(of, asks[1]).result().tokens

    before = tokens(engine)
    layer = model.get_decoder().layers[0]
    with torch.no_grad():
        layer.mlp.up_proj.weight.mul_(1.7)
    engine.invalidate()
    changed = tokens(engine)
    assert changed == tokens(engine_of(model, cuda_graphs=False)) != before
    layer.mlp.up_proj = copy.deepcopy(layer.mlp.up_proj)
    layer.self_attn.v_proj.weight.data = layer.self_attn.v_proj.weight * -1.5
    made = engine.stats().graphs
    engine.invalidate()
    assert tokens(engine) == tokens(engine_of(model, cuda_graphs=False)) != changed
    assert engine.stats().graphs > made


def test_invalidate_while_requests_run_keeps_what_they_computed(
    vip_model: Any, asks: list[Any], expected: list[list[int]]
) -> None:
    engine = engine_of(vip_model)
    handles = [submit(engine, asks[which]) for which in (0, 3)]
    for _ in range(3):
        engine.step()
        engine.invalidate()
    assert [list(handle.result().tokens) for handle in handles] == [expected[0], expected[3]]


def test_models_with_hooks_or_other_layers_run_without_graphs(
    vip_model: Any, asks: list[Any], expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = launched(monkeypatch)
    model = copy.deepcopy(vip_model)
    engine = engine_of(model)
    linear = model.get_decoder().layers[1].mlp.up_proj
    for part in (linear, model.lm_head, model.get_input_embeddings(), model.get_decoder()):
        calls: list[int] = []
        hook = part.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        engine.invalidate()
        assert list(submit(engine, asks[0]).result().tokens) == expected[0]
        assert (len(calls), steps) == (COUNT, [])
        hook.remove()
    model.get_decoder().layers[1].mlp.up_proj = torch.nn.Sequential(linear)
    engine.invalidate()
    assert list(submit(engine, asks[0]).result().tokens) == expected[0]
    assert steps == []
    model.get_decoder().layers[1].mlp.up_proj = linear
    engine.invalidate()
    assert list(submit(engine, asks[0]).result().tokens) == expected[0]
    assert len(steps) == COUNT - 1


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_weights_have_graphs_too(
    vip_model: Any, asks: list[Any], bits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy.deepcopy(vip_model)
    model.get_decoder().layers[0].mlp.down_proj = torch.nn.Linear(48, 32)  # a bias among them
    if bits == 4:  # widths of whole groups of inputs
        model.get_decoder().layers[0].mlp.down_proj = torch.nn.Linear(64, 32)
        for layer in model.get_decoder().layers:
            layer.mlp.gate_proj, layer.mlp.up_proj = (torch.nn.Linear(32, 64) for _ in range(2))
            layer.mlp.down_proj = torch.nn.Linear(64, 32)
    quantize_model(model, Quantization(bits))
    ordinary = engine_of(model, cuda_graphs=False)
    alone = [submit(ordinary, ask).result().tokens for ask in asks]
    steps = launched(monkeypatch)
    engine = engine_of(model)
    handles = [submit(engine, ask) for ask in asks]
    assert [handle.result().tokens for handle in handles] == alone
    assert len(steps) > 5


def test_a_step_that_cannot_be_captured_runs_without_graphs(
    vip_model: Any, asks: list[Any], expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = launched(monkeypatch)
    engine = engine_of(vip_model)
    assert list(submit(engine, asks[0]).result().tokens) == expected[0]

    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("made up") if kept else ValueError("odd")

    # Memory may be free again at the next request; any other error would occur again.
    for kept in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(DecodeGraphs, "_step", refuse)
            handles = [submit(engine, asks[which]) for which in (1, 3)]
            if kept:
                for which, handle in zip((1, 3), handles, strict=True):
                    assert list(handle.result().tokens) == expected[which]
            else:
                with pytest.warns(UserWarning, match="without graphs: ValueError: odd"):
                    handles[0].result()
                assert list(handles[1].result().tokens) == expected[3]
        steps.clear()
        assert list(submit(engine, asks[4]).result().tokens) == expected[4]
        assert bool(steps) == kept


def test_kernels_that_fail_are_not_used(
    vip_model: Any, asks: list[Any], expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request fails because of them: in decode, in prefill, or when they are selected."""

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no compiler")

    for name in ("decode_attention", "rope_and_cache", "linear"):
        steps = launched(monkeypatch)
        with monkeypatch.context() as patch:
            patch.setattr(f"vip_llava.kernels.reference.{name}", refuse)
            engine = engine_of(vip_model)
            handles = [submit(engine, asks[which]) for which in (0, 1, 3)]
            with pytest.warns(UserWarning, match="RuntimeError: no compiler"):
                handles[0].result()
            for which, handle in zip((0, 1, 3), handles, strict=True):
                assert list(handle.result().tokens) == expected[which]
            steps.clear()
            assert list(submit(engine, asks[4]).result().tokens) == expected[4]
        assert (steps, engine.stats().graphs > 0) == ([], True)
        assert "no compiler" in engine.stats().fallback
    with monkeypatch.context() as patch:
        patch.setattr("vip_llava.engine.model_runner.for_device", refuse)
        with pytest.warns(UserWarning, match="fused kernels are not used: RuntimeError"):
            engine = engine_of(vip_model)
        assert list(submit(engine, asks[0]).result().tokens) == expected[0]
    with monkeypatch.context() as patch:
        patch.setattr("vip_llava.kernels.reference.decode_attention", refuse)
        engine = engine_of(vip_model)
        with pytest.warns(UserWarning, match="without graphs: RuntimeError"):
            engine.warm_up()
        assert list(submit(engine, asks[0]).result().tokens) == expected[0]


def test_logits_that_are_not_finite_end_their_request_only(
    vip_model: Any, asks: list[Any], expected: list[list[int]]
) -> None:
    engine = engine_of(vip_model, prefix_cache_tokens=0)
    broken, fine = submit(engine, asks[0]), submit(engine, asks[3])
    for _ in range(3):
        engine.step()
    with torch.inference_mode():
        engine._core.runner.kv_cache.layer(1)[1][broken._sequence.slot(2)] = torch.nan
    assert list(fine.result().tokens) == expected[3]
    with pytest.raises(VipLlavaError, match="not finite"):
        broken.result()
    assert 3 <= len(broken._sequence.output_ids) < 6


def test_warm_up_captures_graphs(vip_model: Any, asks: list[Any]) -> None:
    engine = engine_of(vip_model, max_num_seqs=20)
    assert engine.warm_up() > 0
    stats = engine.stats()
    # 1, 2, 4, 8, 16, 24 sequences; 1, 2, 4 and 6 views; 16, 32, 64 and 128 new tokens.
    assert stats.graphs == 6 + 4 + 4
    assert stats.graph_capture_seconds > 0
    submit(engine, asks[4]).result()
    assert engine.stats().graphs == 14
    ordinary = engine_of(vip_model, cuda_graphs=False)
    ordinary.warm_up()
    assert ordinary.stats().graphs == 0


def test_buckets_cover_all_numbers() -> None:
    assert bucket_sizes(1) == [1]
    assert bucket_sizes(5) == [1, 2, 4, 8]
    assert bucket_sizes(64) == [1, 2, 4, 8, 16, 24, 32, 48, 64]
    assert bucket_sizes(100)[-3:] == [64, 96, 128]
