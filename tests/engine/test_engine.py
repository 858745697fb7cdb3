"""The fast path equals the slow path; every request gets what it would get alone."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from vip_llava.engine import Engine, EngineConfig, TokenEvent
from vip_llava.engine.model_runner import ModelRunner
from vip_llava.errors import RequestError, VipLlavaError
from vip_llava.sampling_params import SamplingParams

SHAPES = [(5, 1), (17, 2), (1, 0), (9, 1), (30, 0)]


@pytest.fixture(params=["vip_model", "llava_model"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def asks(make_ask: Any) -> list[Any]:
    return [make_ask(length, views) for length, views in SHAPES]


def submit(engine: Engine, ask: Any, count: int = 10, **params: Any) -> Any:
    sampling = SamplingParams(max_new_tokens=count, **params)
    return engine.submit(ask.ids, ask.pixels, sampling)


def letters(ids: Any) -> str:
    """A stand-in for a tokenizer: one ASCII character for each id."""
    return "".join(chr(32 + int(token) % 95) for token in ids)


@pytest.fixture
def logits_of(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[Tensor]]:
    """The logits of every sequence's steps, by its id."""
    seen: dict[int, list[Tensor]] = {}
    execute = ModelRunner.execute

    def run(self: ModelRunner, batch: Any) -> Any:
        ready, logits = execute(self, batch)
        for seq, values in zip(ready, logits, strict=True):
            seen.setdefault(seq.seq_id, []).append(values.clone())
        return ready, logits

    monkeypatch.setattr(ModelRunner, "execute", run)
    return seen


def test_together_equals_the_generate_of_transformers(
    model: Any, asks: list[Any], make_engine: Any, plain_greedy: Any
) -> None:
    engine = make_engine(model)
    # Different limits, so that requests finish at different steps.
    counts = (12, 3, 7, 20, 1)
    handles = [submit(engine, ask, count) for ask, count in zip(asks, counts, strict=True)]
    for ask, count, handle in zip(asks, counts, handles, strict=True):
        result = handle.result()
        assert list(result.tokens) == plain_greedy(model, ask, count)
        assert (result.prompt_tokens, result.cached_tokens) == (len(ask.ids), 0)
        assert result.finish_reason == "length"
    assert engine.stats().steps == 20


@pytest.mark.parametrize("max_batched_tokens", [3, 7, 1024])
def test_logits_equal_the_full_forward(
    model: Any,
    asks: list[Any],
    make_engine: Any,
    logits_of: dict[int, list[Tensor]],
    max_batched_tokens: int,
) -> None:
    """For any chunks of the prompts."""
    engine = make_engine(model, max_batched_tokens=max_batched_tokens, max_num_seqs=2)
    handles = [submit(engine, ask) for ask in asks]
    for number, (ask, handle) in enumerate(zip(asks, handles, strict=True)):
        tokens = handle.result().tokens
        ids = torch.tensor([[*ask.ids, *tokens[:-1]]])
        with torch.inference_mode():
            full = model(input_ids=ids, pixel_values=ask.pixels).logits[0, -10:]
        torch.testing.assert_close(torch.stack(logits_of[number]), full, atol=5e-5, rtol=0)


def test_the_image_matters(model: Any, make_ask: Any, make_engine: Any) -> None:
    engine = make_engine(model)
    one, other = make_ask(6, 1), make_ask(6, 1)
    other.pixels.copy_(one.pixels.flip(-1) * 2)
    assert submit(engine, one).result().tokens != submit(engine, other).result().tokens


def test_a_step_has_no_padding_and_logits_only_where_needed(
    vip_model: Any, asks: list[Any], make_engine: Any
) -> None:
    fed: list[int] = []
    made: list[int] = []
    decoder = vip_model.get_decoder()
    handles = [
        decoder.register_forward_pre_hook(
            lambda m, a, k: fed.append(k["inputs_embeds"].shape[1]), with_kwargs=True
        ),
        vip_model.lm_head.register_forward_hook(lambda m, i, out: made.append(out.shape[0])),
    ]
    try:
        engine = make_engine(vip_model)
        for ask, count in zip(asks, (1, 3, 2, 2, 2), strict=True):
            submit(engine, ask, count)
        while engine.step():
            pass
    finally:
        for handle in handles:
            handle.remove()
    assert fed == [sum(len(ask.ids) for ask in asks), 4, 1]
    assert made == [5, 4, 1]


SAMPLED = [
    {"temperature": 1.0, "seed": 7},
    {},
    {"temperature": 1.5, "top_k": 5, "seed": 7},
    {"temperature": 0.8, "top_p": 0.7, "seed": 3},
    {"temperature": 1.2, "min_p": 0.05, "repetition_penalty": 1.3, "seed": 9},
]


def test_samples_do_not_depend_on_other_requests(
    vip_model: Any, asks: list[Any], make_engine: Any
) -> None:
    engine = make_engine(vip_model, max_batched_tokens=9, max_num_seqs=4)
    together = [submit(engine, ask, **given) for ask, given in zip(asks, SAMPLED, strict=True)]
    for ask, given, handle in zip(asks, SAMPLED, together, strict=True):
        alone = submit(make_engine(vip_model), ask, **given).result()
        assert handle.result().tokens == alone.tokens


def test_a_seed_repeats_and_another_does_not(
    vip_model: Any, asks: list[Any], make_engine: Any
) -> None:
    engine = make_engine(vip_model)

    def run(seed: int | None) -> Any:
        return submit(engine, asks[0], 20, temperature=1.5, seed=seed).result()

    assert run(1).tokens == run(1).tokens != run(2).tokens
    fresh = run(None)
    assert run(fresh.seed).tokens == fresh.tokens
    assert run(None).seed != fresh.seed


def test_a_stop_id_ends_a_request_and_is_not_in_it(
    vip_model: Any, asks: list[Any], make_engine: Any, plain_greedy: Any
) -> None:
    free = plain_greedy(vip_model, asks[0], 10)
    engine = make_engine(vip_model, stop_ids={free[4]})
    ended = submit(engine, asks[0]).result()
    assert list(ended.tokens) == free[: free.index(free[4])]
    assert ended.finish_reason == "stop"


def test_a_stop_string_ends_a_request_and_is_not_in_it(
    vip_model: Any, asks: list[Any], make_engine: Any, plain_greedy: Any
) -> None:
    free = letters(plain_greedy(vip_model, asks[0], 10))
    word = free[3:5]
    engine = make_engine(vip_model, decode=letters)
    ended = submit(engine, asks[0], stop=word)
    other = submit(engine, asks[1])
    assert ended.result().text == free[: free.index(word)]
    assert ended.result().finish_reason == "stop"
    assert other.result().text == letters(plain_greedy(vip_model, asks[1], 10))
    template = make_engine(vip_model, decode=letters, stop_strings=[word])
    assert submit(template, asks[0]).result().text == ended.result().text


def test_events_carry_every_token_and_the_text(
    vip_model: Any, asks: list[Any], make_engine: Any
) -> None:
    engine = make_engine(vip_model, decode=letters)
    received: list[TokenEvent] = []
    params = SamplingParams(max_new_tokens=4)
    first = engine.submit(asks[0].ids, asks[0].pixels, params, on_event=received.append)
    handles = [first, submit(engine, asks[1], 9)]
    for handle in handles:
        events = list(handle)
        result = handle.result()
        assert tuple(event.token for event in events) == result.tokens
        assert "".join(event.text for event in events) == result.text == letters(result.tokens)
        reasons = [event.finish_reason for event in events]
        assert reasons == [None] * (len(events) - 1) + ["length"]
    assert tuple(event.token for event in received) == first.result().tokens


def test_suppressed_ids_are_never_sampled(
    vip_model: Any, asks: list[Any], make_engine: Any
) -> None:
    first = submit(make_engine(vip_model), asks[0]).result().tokens[0]
    engine = make_engine(vip_model, suppress_ids={first, 99_999})
    assert first not in submit(engine, asks[0]).result().tokens


def test_positions_and_memory_limit_an_answer(
    vip_model: Any, make_ask: Any, make_engine: Any
) -> None:
    engine = make_engine(vip_model)
    result = submit(engine, make_ask(90, 1), 50).result()
    assert (result.prompt_tokens, result.max_new_tokens, len(result.tokens)) == (94, 2, 2)
    assert result.finish_reason == "length"
    with pytest.raises(RequestError, match=r"96 tokens.*96 positions.*at least 1 tokens"):
        submit(engine, make_ask(92, 1))
    assert engine.room(95) == 1
    small = make_engine(vip_model, kv_cache_tokens=32)
    assert len(submit(small, make_ask(30), 50).result().tokens) == 2
    with pytest.raises(RequestError, match=r"32 tokens.*KV cache holds 32"):
        submit(small, make_ask(32))


@pytest.mark.parametrize(
    ("ids", "views", "message"),
    [
        ([], 0, "empty"),
        ([1, 99, 99, 99, 2], 2, "3 image tokens for 2 views"),
        ([1, 2], 1, "0 image tokens for 1 views"),
        ([1, 99], 0, "1 image tokens for 0 views"),
        ([1, 100], 0, "token id 100"),
        ([1, -1], 0, "token id -1"),
    ],
)
def test_a_bad_prompt_is_rejected(
    vip_model: Any, make_engine: Any, ids: list[int], views: int, message: str
) -> None:
    pixels = torch.zeros(views, 3, 28, 28) if views else None
    with pytest.raises(RequestError, match=message):
        make_engine(vip_model).submit(ids, pixels)


def test_a_failure_stays_with_its_request(
    vip_model: Any, asks: list[Any], make_engine: Any, plain_greedy: Any
) -> None:
    def decode(ids: Any) -> str:
        if broken in ids:
            raise UnicodeError("no such letter")
        return letters(ids)

    def fail(event: TokenEvent) -> None:
        raise ConnectionError("the client disconnected")

    broken = plain_greedy(vip_model, asks[0], 10)[2]
    good = [ask for ask in asks if broken not in plain_greedy(vip_model, ask, 10)]
    assert len(good) > 1
    engine = make_engine(vip_model, decode=decode)
    params = SamplingParams(max_new_tokens=10)
    failing = [
        (submit(engine, asks[0]), UnicodeError, "no such letter"),
        (engine.submit([5, 99, 7], torch.zeros(1, 3, 28, 28)), RequestError, "model has 4"),
        (engine.submit([5, 99, 7], torch.zeros(1, 3, 30, 29)), ValueError, "28"),
        (engine.submit(asks[3].ids, asks[3].pixels * torch.nan), VipLlavaError, "not finite"),
        (engine.submit([5], None, params, on_event=fail), ConnectionError, "disconnected"),
    ]
    fine = [submit(engine, ask) for ask in good]
    for ask, handle in zip(good, fine, strict=True):
        assert list(handle.result().tokens) == plain_greedy(vip_model, ask, 10)
    for handle, kind, message in failing:
        with pytest.raises(kind, match=message):
            handle.result()
        assert handle.done
    assert engine.stats().kv_cache_tokens_used == 0


def test_a_step_that_does_not_fit_is_split(
    vip_model: Any, asks: list[Any], make_engine: Any, plain_greedy: Any
) -> None:
    """Requests that do not fit together run one by one; one that does not fit alone fails."""

    def full(module: Any, args: Any, kwargs: Any) -> None:
        if kwargs["inputs_embeds"].shape[1] > 26:
            raise torch.OutOfMemoryError("made up")

    hook = vip_model.get_decoder().register_forward_pre_hook(full, with_kwargs=True)
    engine = make_engine(vip_model)
    try:
        handles = [submit(engine, ask) for ask in asks]
        with pytest.raises(torch.OutOfMemoryError):
            handles[4].result()
        assert all(handle.done for handle in handles)
        results = [list(handle.result().tokens) for handle in handles[:4]]
    finally:
        hook.remove()
    assert results == [plain_greedy(vip_model, ask, 10) for ask in asks[:4]]
    assert engine.stats().preemptions > 0


def test_a_full_device_preempts_requests(
    vip_model: Any, asks: list[Any], make_engine: Any, plain_greedy: Any
) -> None:
    """The KV cache cannot grow while two requests run; caches are cleared first."""
    engine = make_engine(vip_model)
    cache = engine._core.runner.kv_cache
    reserve = cache.reserve

    def full(count: int) -> None:
        if count > 48:
            raise torch.OutOfMemoryError("made up")
        reserve(count)

    cache.reserve = full
    for _ in range(2):
        handles = [submit(engine, asks[which]) for which in (1, 3, 0)]
        for which, handle in zip((1, 3, 0), handles, strict=True):
            assert list(handle.result().tokens) == plain_greedy(vip_model, asks[which], 10)
    assert engine.stats().preemptions > 0
    with pytest.raises(torch.OutOfMemoryError):
        submit(engine, asks[4], 40).result()
    assert engine.stats().kv_cache_tokens_used == 0


def test_a_sliding_window_is_respected(make_vip: Any, make_ask: Any, make_engine: Any) -> None:
    """As in Phi-3: a token sees a limited number before it, in prompts, chunks and decode."""
    model = make_vip("phi3", window=8).eval()
    ask = make_ask(30, 1)
    with torch.inference_mode():
        pixels = ask.pixels.double()
        theirs = model.generate(
            input_ids=torch.tensor([ask.ids]),
            attention_mask=torch.ones(1, len(ask.ids), dtype=torch.long),
            pixel_values=pixels,
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            suppress_tokens=[99],
        )[0, len(ask.ids) :].tolist()
    for max_batched_tokens in (7, 1024):
        engine = make_engine(model, max_batched_tokens=max_batched_tokens, max_num_seqs=4)
        assert list(submit(engine, ask, 12).result().tokens) == theirs
    whole = make_vip("phi3", window=None).eval()
    assert list(submit(make_engine(whole), ask, 12).result().tokens) != theirs


def test_invalidate_makes_changed_weights_effective(
    vip_model: Any, asks: list[Any], make_engine: Any
) -> None:
    model = copy.deepcopy(vip_model)
    engine = make_engine(model)
    before = submit(engine, asks[1]).result()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    engine.invalidate()
    after = submit(engine, asks[1]).result()
    assert after.cached_tokens == 0
    assert after.tokens == submit(make_engine(model), asks[1]).result().tokens != before.tokens
    assert engine.stats().encoder_cache_misses == 4


def test_given_digests_are_used_instead_of_hashes(
    vip_model: Any, asks: list[Any], make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(vip_model)
    expected = submit(engine, asks[1]).result().tokens

    def refuse(_: Tensor) -> list[bytes]:
        raise AssertionError("hashed")

    monkeypatch.setattr("vip_llava.engine.engine.digests_of", refuse)
    for cached in (0, 16):
        params = SamplingParams(max_new_tokens=10)
        digests = [b"first", b"second"]
        handle = engine.submit(asks[1].ids, asks[1].pixels, params, view_digests=digests)
        assert (handle.result().tokens, handle.result().cached_tokens) == (expected, cached)
    assert engine.stats().encoder_cache_misses == 4


def test_inference_mode_is_left_between_tokens(
    vip_model: Any, asks: list[Any], make_engine: Any
) -> None:
    for _ in submit(make_engine(vip_model), asks[0]):
        assert not torch.is_inference_mode_enabled()


def test_half_precision_runs(vip_model: Any, asks: list[Any], make_engine: Any) -> None:
    engine = make_engine(copy.deepcopy(vip_model).to(torch.bfloat16))
    handles = [submit(engine, ask) for ask in asks]
    assert all(len(handle.result().tokens) == 10 for handle in handles)


@pytest.mark.parametrize("background", [False, True])
def test_many_threads_submit_at_once(
    vip_model: Any, asks: list[Any], make_engine: Any, plain_greedy: Any, background: bool
) -> None:
    engine = make_engine(vip_model, max_num_seqs=3, kv_cache_tokens=192)
    expected = [plain_greedy(vip_model, ask, 10) for ask in asks]
    got: dict[int, list[int]] = {}

    def work(number: int) -> None:
        handle = submit(engine, asks[number % 5])
        got[number] = [event.token for event in handle]

    if background:
        engine.start()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    engine.stop()
    assert got == {number: expected[number % 5] for number in range(20)}
    assert engine.stats().kv_cache_tokens_used == 0


def test_a_waiting_caller_drives_a_stopped_engine(
    vip_model: Any, asks: list[Any], make_engine: Any, plain_greedy: Any
) -> None:
    engine = make_engine(vip_model)
    engine.start()
    engine.start()
    assert list(submit(engine, asks[0]).result().tokens) == plain_greedy(vip_model, asks[0], 10)
    engine.stop()
    assert list(submit(engine, asks[1]).result().tokens) == plain_greedy(vip_model, asks[1], 10)
    engine.stop()


def test_misuse_raises_value_errors(vip_model: Any, asks: list[Any], make_engine: Any) -> None:
    with pytest.raises(ValueError, match="decode"):
        submit(make_engine(vip_model), asks[0], stop="x")
    with pytest.raises(ValueError, match="decode"):
        make_engine(vip_model, stop_strings=["x"])
    with pytest.raises(ValueError, match="max_batched_tokens is 5"):
        make_engine(vip_model, max_batched_tokens=5, max_num_seqs=5)
    with pytest.raises(ValueError, match="1 digests for 0 views"):
        make_engine(vip_model).submit([1, 2], view_digests=[b"one"])
    vip_model.train()
    try:
        with pytest.raises(ValueError, match="training mode"):
            submit(make_engine(vip_model), asks[0])
    finally:
        vip_model.eval()


def test_on_a_cpu_prompts_are_prefilled_one_after_the_other(
    vip_model: Any, make_ask: Any, make_engine: Any
) -> None:
    """So that the first is answered before the last is prefilled."""
    engine = make_engine(vip_model, kv_cache_tokens=2048)
    handles = [submit(engine, make_ask(80, 0, seed), 4) for seed in range(8)]
    assert engine.step()
    assert [bool(handle._sequence.output_ids) for handle in handles] == [True] * 3 + [False] * 5
    assert engine.stats().running == 4
    config = EngineConfig()
    assert (config.token_budgets("cpu"), config.token_budgets("cuda")) == ((256, 256), (1024, 4096))
    assert EngineConfig(max_num_seqs=300).token_budgets("cpu") == (301, 301)
    assert EngineConfig(max_batched_tokens=70).token_budgets("cuda") == (70, 70)


def test_a_request_drained_by_a_cancelling_thread_runs(
    vip_model: Any, make_ask: Any, make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's thread sleeps, and another thread drains the queue while it cancels."""
    engine = make_engine(vip_model)
    engine.start()
    try:
        first = submit(engine, make_ask(6, 1), 2)
        first.result()
        with monkeypatch.context() as patch:
            patch.setattr(engine, "_notify", lambda: None)
            second = submit(engine, make_ask(7, 1), 2)
        first.cancel()
        waiting = threading.Thread(target=second.result, daemon=True)
        waiting.start()
        waiting.join(20)
        assert second.done
    finally:
        engine.stop()
