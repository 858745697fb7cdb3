"""Recorded steps change no answer, whatever comes, goes, stops or fails around them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vip_llava.engine import Engine, EngineSettings
from vip_llava.engine.decode_graphs import DecodeStep, buckets
from vip_llava.engine.prefill_graphs import PromptStep
from vip_llava.errors import RequestError, VipLlavaError
from vip_llava.models.quantize import Quantization, quantize_model
from vip_llava.sampling_params import SamplingParams

SHAPES = [(5, 1), (17, 2), (1, 0), (9, 1), (30, 0), (40, 3), (2, 0)]
COUNT = 12
QUICK = settings(max_examples=40, deadline=None)

pytestmark = pytest.mark.usefixtures("forgetful_recordings")


@pytest.fixture(scope="module")
def asks(make_ask: Any) -> list[Any]:
    return [make_ask(length, views) for length, views in SHAPES]


@pytest.fixture(scope="module")
def expected(vip_model: Any, asks: list[Any], plain_greedy: Any) -> list[list[int]]:
    return [plain_greedy(vip_model, ask, COUNT) for ask in asks]


def engine_of(model: Any, stop_ids: Any = (), captured: bool = True, **given: Any) -> Engine:
    return Engine(
        model,
        image_token_id=99,
        suppress_ids=[99, 1000],
        stop_ids=stop_ids,
        settings=EngineSettings(captured=captured, **given),
    )


def submit(engine: Engine, ask: Any, count: int = COUNT, **params: Any) -> Any:
    return engine.submit(ask.ids, ask.pixels, SamplingParams(max_new_tokens=count, **params))


def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """From now on of every recorded step: how many requests, and whether it ran ahead."""
    seen: list[tuple[int, bool]] = []
    launch = DecodeStep.launch

    def run(self: DecodeStep, rows: Any, before: Any = None) -> Any:
        seen.append((len(rows), before is not None))
        return launch(self, rows, before)

    monkeypatch.setattr(DecodeStep, "launch", run)
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
    # The prompt of one token, then answers; all but their first ran ahead, none for nothing.
    assert [count for count, _ in steps] == [1] + [4] * 2 + [3] * 4 + [2] * 5 + [1] * 8
    assert [ahead for _, ahead in steps] == [False] * 2 + [True] * 18
    stats = engine.stats()
    assert (stats.steps, stats.captured_steps, stats.kv_tokens_used) == (20, 20, 0)
    # Of 1, 4 and 2 requests; of 16 and 32 new tokens, met twice each; of four views.
    assert stats.recordings == 3 + 2 + 1


DRAWN: dict[int, dict[str, Any]] = {
    1: {"temperature": 1.0, "seed": 7},
    4: {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.3, "seed": 3},
}


@pytest.fixture(scope="module")
def mixed(vip_model: Any, asks: list[Any], expected: list[list[int]]) -> list[list[int]]:
    """As `expected`, with some of them drawn."""
    found = list(expected)
    for which, params in DRAWN.items():
        ordinary = engine_of(vip_model, captured=False)
        found[which] = list(submit(ordinary, asks[which], **params).result().tokens)
    return found


arrivals = st.lists(
    st.tuples(st.integers(0, len(SHAPES) - 1), st.integers(0, 4)), min_size=1, max_size=9
)


@QUICK
@given(
    arrivals=arrivals,
    step_tokens=st.sampled_from([4, 11, 64]),
    kv_tokens=st.sampled_from([96, 144, 4096]),
    prefix=st.sampled_from([0, 48, None]),
    stop=st.sampled_from([None, 3, 7]),
)
def test_any_arrival_gives_what_each_gets_alone(
    vip_model: Any,
    asks: list[Any],
    mixed: list[list[int]],
    arrivals: list[tuple[int, int]],
    step_tokens: int,
    kv_tokens: int,
    prefix: int | None,
    stop: int | None,
) -> None:
    """Stops are found out one step late, and what ran ahead for nothing leaves no trace."""
    stops = set() if stop is None else {answer[stop] for answer in mixed[::2]}
    engine = engine_of(
        vip_model,
        stops,
        step_tokens=step_tokens,
        max_running=3,
        kv_tokens=kv_tokens,
        prefix_tokens=prefix,
        vision_bytes=2048,
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
    assert (stats.kv_tokens_used, stats.running, stats.waiting) == (0, 0, 0)


@QUICK
@given(data=st.data())
def test_a_storm_of_cancellations_hurts_nobody_else(
    vip_model: Any,
    asks: list[Any],
    expected: list[list[int]],
    cancel_storm: Any,
    data: st.DataObject,
) -> None:
    engine = engine_of(vip_model, step_tokens=8, max_running=4, kv_tokens=160)
    cancel_storm(engine, asks, expected, data, 6)


SAMPLED = [
    {"temperature": 1.0, "seed": 7},
    {},
    {"temperature": 1.5, "top_k": 5, "seed": 7, "logprobs": 2},
    {"repetition_penalty": 1.4},
    {"temperature": 1.2, "min_p": 0.05, "repetition_penalty": 1.3, "seed": 9},
    {"logprobs": 3},
]


def test_other_sampling_takes_the_logits_of_recorded_steps(
    vip_model: Any, asks: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = launched(monkeypatch)
    ordinary = engine_of(vip_model, captured=False)
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
    # Where nothing is told beside the tokens, such steps run ahead too.
    steps.clear()
    silent = [{name: g[name] for name in g if name != "logprobs"} for g in SAMPLED]
    handles = [submit(engine, ask, **g) for ask, g in zip(asks, silent, strict=False)]
    assert [handle.result().tokens for handle in handles] == [one.tokens for one in alone]
    # (The prompt of one token goes with the others, since the model is looked at meanwhile.)
    assert [ahead for _, ahead in steps] == [False] + [True] * (COUNT - 2)


@pytest.mark.parametrize("bits", [None, 8])
def test_the_kernels_of_gpus_say_the_same(
    vip_model: Any, asks: list[Any], bits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Triton's interpreter."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from vip_llava.kernels import fused
    from vip_llava.kernels.fused import context as setting

    if not setting.INTERPRETED:
        pytest.skip("these models are on the CPU, and Triton's interpreter is not on")
    model = copy.deepcopy(vip_model)
    if bits:
        quantize_model(model, Quantization(bits))
    ordinary = engine_of(model, captured=False)
    some = [asks[0], asks[6]]  # each takes seconds
    alone = [submit(ordinary, ask, 3).result().tokens for ask in some]
    monkeypatch.setattr("vip_llava.engine.runner_selection.for_device", lambda _: fused)
    steps = launched(monkeypatch)
    engine = engine_of(model)
    handles = [submit(engine, ask, 3) for ask in some]
    assert [handle.result().tokens for handle in handles] == alone
    assert steps == [(2, False), (2, True)]


def test_each_step_gives_each_one_token(vip_model: Any, asks: list[Any]) -> None:
    engine = engine_of(vip_model)
    handles = [submit(engine, asks[which], 6) for which in (0, 3)]
    for made in range(1, 7):
        assert engine.step()
        assert [len(handle._row.tokens) for handle in handles] == [made, made]
    assert not engine.step()


def test_who_comes_late_is_read_while_answers_go_on(
    vip_model: Any, asks: list[Any], expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = launched(monkeypatch)
    engine = engine_of(vip_model, step_tokens=10, max_running=4)
    first = submit(engine, asks[0])
    for _ in range(3):
        engine.step()
    late = submit(engine, asks[4])  # 30 tokens: four pieces beside the answer's tokens
    for _ in range(5):
        engine.step()
    assert (len(first._row.tokens), len(late._row.tokens)) == (8, 1)
    assert list(first.result().tokens) == expected[0]
    assert list(late.result().tokens) == expected[4]
    assert steps[:8] == [(1, False), (1, True), (1, True)] + [(1, False)] * 4 + [(2, False)]


def test_a_request_may_take_the_place_of_one_that_ran_ahead_for_nothing(
    vip_model: Any, asks: list[Any], expected: list[list[int]]
) -> None:
    """Its memory is another's while a step for it is still under way."""
    engine = engine_of(vip_model, {expected[1][3]}, kv_tokens=48, prefix_tokens=0)
    for _ in range(3):
        stopped, other = submit(engine, asks[1]), submit(engine, asks[4])
        assert list(stopped.result().tokens) == expected[1][:3]
        assert engine._flight is not None
        cut = [at for at, token in enumerate(expected[4]) if token == expected[1][3]]
        assert list(other.result().tokens) == expected[4][: cut[0] if cut else None]


def test_an_event_may_cancel_its_own_and_other_requests(
    vip_model: Any, asks: list[Any], expected: list[list[int]]
) -> None:
    engine = engine_of(vip_model)
    handles: list[Any] = []
    told: list[int] = []

    def give_up(event: Any) -> None:
        told.append(event.token)
        if len(told) == 4:
            for handle in handles[:2]:
                handle.cancel()

    handles.append(engine.submit(asks[0].ids, asks[0].pixels, on_event=give_up))
    handles += [submit(engine, asks[1]), submit(engine, asks[3])]
    assert list(handles[2].result().tokens) == expected[3]
    assert told == expected[0][:4]
    for handle in handles[:2]:
        with pytest.raises(RequestError, match="cancelled"):
            handle.result()


def test_memory_may_grow_under_recordings(vip_model: Any, make_ask: Any, plain_greedy: Any) -> None:
    engine = engine_of(vip_model, kv_tokens=4096, prefix_tokens=0)
    asks = [make_ask(60, 0, seed) for seed in range(18)]
    first = [submit(engine, ask, 30) for ask in asks[:2]]
    for _ in range(5):
        engine.step()
    moves, made = engine._memory.moves, engine.stats().recordings
    rest = [submit(engine, ask, 20) for ask in asks[2:]]
    for ask, handle, count in zip(asks, first + rest, [30] * 2 + [20] * 16, strict=True):
        assert list(handle.result().tokens) == plain_greedy(vip_model, ask, count)
    assert engine._memory.moves > moves
    assert engine.stats().recordings > made + 1  # that of two requests was made anew


def test_changed_and_replaced_weights_are_noticed(vip_model: Any, asks: list[Any]) -> None:
    model = copy.deepcopy(vip_model)
    engine = engine_of(model)

    def right() -> bool:
        fresh = submit(engine_of(model, captured=False), asks[1]).result()
        return bool(submit(engine, asks[1]).result().tokens == fresh.tokens)

    for _ in range(2):  # until all sizes are recorded: of the prompt, and of what is new of it
        assert right()
        assert right()
        engine.forget()
    assert right()
    made = engine.stats().recordings
    before = submit(engine, asks[1]).result().tokens
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert right()
    assert submit(engine, asks[1]).result().tokens != before
    assert engine.stats().recordings == made  # they read what is there now
    for parameter in model.get_decoder().layers[0].parameters():
        parameter.data = parameter.data * 0.7
    assert right()
    assert engine.stats().recordings > made


def test_what_does_more_than_arithmetic_goes_the_ordinary_way(
    vip_model: Any, asks: list[Any], expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = launched(monkeypatch)
    model = copy.deepcopy(vip_model)
    engine = engine_of(model)
    linear = model.get_decoder().layers[1].mlp.up_proj
    for part in (linear, model.lm_head, model.get_input_embeddings(), model.get_decoder()):
        calls: list[int] = []
        hook = part.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        assert list(submit(engine, asks[0]).result().tokens) == expected[0]
        assert (len(calls), steps) == (COUNT, [])
        hook.remove()
    model.get_decoder().layers[1].mlp.up_proj = torch.nn.Sequential(linear)
    assert list(submit(engine, asks[0]).result().tokens) == expected[0]
    assert steps == []
    model.get_decoder().layers[1].mlp.up_proj = linear
    assert list(submit(engine, asks[0]).result().tokens) == expected[0]
    assert len(steps) == COUNT - 1


@pytest.mark.parametrize("bits", [4, 8])
def test_small_weights_are_recorded_too(
    vip_model: Any, asks: list[Any], bits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy.deepcopy(vip_model)
    model.get_decoder().layers[0].mlp.down_proj = torch.nn.Linear(48, 32)  # a bias among them
    if bits == 4:  # widths that whole groups of inputs fit into
        model.get_decoder().layers[0].mlp.down_proj = torch.nn.Linear(64, 32)
        for layer in model.get_decoder().layers:
            layer.mlp.gate_proj, layer.mlp.up_proj = (torch.nn.Linear(32, 64) for _ in range(2))
            layer.mlp.down_proj = torch.nn.Linear(64, 32)
    quantize_model(model, Quantization(bits))
    ordinary = engine_of(model, captured=False)
    alone = [submit(ordinary, ask).result().tokens for ask in asks]
    steps = launched(monkeypatch)
    engine = engine_of(model)
    handles = [submit(engine, ask) for ask in asks]
    assert [handle.result().tokens for handle in handles] == alone
    assert len(steps) > 5


def test_a_step_that_cannot_be_recorded_goes_the_ordinary_way(
    vip_model: Any, asks: list[Any], expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = launched(monkeypatch)
    engine = engine_of(vip_model)
    assert list(submit(engine, asks[0]).result().tokens) == expected[0]

    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("made up") if kept else ValueError("odd")

    # Full memory may be free again when somebody comes anew; anything else would fail again.
    for kept in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(DecodeStep, "_work", refuse)
            handles = [submit(engine, asks[which]) for which in (1, 3)]
            if kept:
                for which, handle in zip((1, 3), handles, strict=True):
                    assert list(handle.result().tokens) == expected[which]
            else:
                with pytest.warns(UserWarning, match="without recorded steps: ValueError: odd"):
                    handles[0].result()
                assert list(handles[1].result().tokens) == expected[3]
        steps.clear()
        assert list(submit(engine, asks[4]).result().tokens) == expected[4]
        assert bool(steps) == kept


def test_kernels_that_fail_are_done_without(
    vip_model: Any, asks: list[Any], expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request fails because of them: in answers, in prompts, when they are first looked for."""

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no compiler")

    for name in ("paged_step", "rotate_and_store", "rows"):
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
        assert (steps, engine.stats().recordings > 0) == ([], True)
        assert "no compiler" in engine.stats().closed
    with monkeypatch.context() as patch:
        patch.setattr("vip_llava.engine.runner_selection.for_device", refuse)
        engine = engine_of(vip_model)
        with pytest.warns(UserWarning, match="fused kernels are not used: RuntimeError"):
            assert list(submit(engine, asks[0]).result().tokens) == expected[0]
    with monkeypatch.context() as patch:
        patch.setattr("vip_llava.kernels.reference.paged_step", refuse)
        engine = engine_of(vip_model)
        with pytest.warns(UserWarning, match="without recorded steps: RuntimeError"):
            engine.warm_up()
        assert list(submit(engine, asks[0]).result().tokens) == expected[0]


def test_outputs_that_are_no_numbers_end_their_request_alone(
    vip_model: Any, asks: list[Any], expected: list[list[int]]
) -> None:
    engine = engine_of(vip_model, prefix_tokens=0)
    broken, fine = submit(engine, asks[0]), submit(engine, asks[3])
    for _ in range(3):
        engine.step()
    with torch.inference_mode():
        engine._memory.layer(1)[1][broken._row.blocks[0] * 16 + 2] = torch.nan
    assert list(fine.result().tokens) == expected[3]
    with pytest.raises(VipLlavaError, match="not finite"):
        broken.result()
    assert 3 <= len(broken._row.tokens) < 6


def test_recordings_can_be_made_ahead(vip_model: Any, asks: list[Any]) -> None:
    engine = engine_of(vip_model, max_running=20)
    assert engine.warm_up() > 0
    stats = engine.stats()
    # 1, 2, 4, 8, 16, 24 requests; 1, 2, 4 and 6 views; 16, 32, 64 and 128 new tokens.
    assert stats.recordings == 6 + 4 + 4
    assert stats.recording_seconds > 0
    submit(engine, asks[4]).result()
    assert engine.stats().recordings == 14
    ordinary = engine_of(vip_model, captured=False)
    ordinary.warm_up()
    assert ordinary.stats().recordings == 0


def test_buckets_cover_all_numbers() -> None:
    assert buckets(1) == [1]
    assert buckets(5) == [1, 2, 4, 8]
    assert buckets(64) == [1, 2, 4, 8, 16, 24, 32, 48, 64]
    assert buckets(100)[-3:] == [64, 96, 128]


def test_what_changed_is_noticed_while_the_device_works(
    vip_model: Any, asks: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests run before the model was looked at closely; if it changed they begin anew."""
    model = copy.deepcopy(vip_model)
    engine = engine_of(model)
    engine.warm_up()
    looks: list[int] = []
    look = engine._watch.look
    monkeypatch.setattr(engine._watch, "look", lambda: looks.append(len(fed)) or look())
    fed: list[int] = []
    call = PromptStep.__call__
    monkeypatch.setattr(
        PromptStep, "__call__", lambda self, *given: fed.append(1) or call(self, *given)
    )

    def right(which: int) -> bool:
        fed.clear()
        looks.clear()
        fresh = submit(engine_of(model, captured=False), asks[which]).result()
        first = submit(engine, asks[4], 20)  # goes on meanwhile
        engine.step()
        found = [submit(engine, asks[which]), submit(engine, asks[2])]
        tokens = [handle.result().tokens for handle in found]
        assert len(first.result().tokens) == 20
        one = submit(engine_of(model, captured=False), asks[2]).result()
        return bool(tokens == [fresh.tokens, one.tokens])

    assert right(1)
    assert looks == [1, 2]  # after what was fed
    layer = model.get_decoder().layers[0]
    with torch.no_grad():
        layer.mlp.up_proj.weight.mul_(1.7)
    assert right(1)
    assert engine.stats().preemptions == 1  # the first of them; then it was known
    layer.mlp.up_proj = copy.deepcopy(layer.mlp.up_proj)
    with torch.no_grad():
        layer.mlp.up_proj.weight.mul_(0.5)
    assert right(5)
    assert engine.stats().preemptions == 2
    hook = layer.mlp.register_forward_hook(lambda module, given, made: 0.5 * made)
    assert right(5)
    hook.remove()
    assert right(5)
    layer.mlp.down_proj.weight.data = layer.mlp.down_proj.weight * 1.2
    before = engine.stats().preemptions
    assert right(3)
    assert engine.stats().preemptions == before  # where tensors moved the look comes first
