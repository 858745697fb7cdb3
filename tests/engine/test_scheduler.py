"""No order of arrival, chunking, cancellation or shortage of memory changes an answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vip_llava.engine import Engine, EngineConfig
from vip_llava.engine.block_manager import BlockManager
from vip_llava.engine.model_runner import ModelRunner
from vip_llava.engine.sampler import SamplingState
from vip_llava.engine.scheduler import PrefillBudget, Scheduler
from vip_llava.engine.sequence import Sequence
from vip_llava.errors import RequestError
from vip_llava.sampling_params import SamplingParams

SHAPES = [(5, 1), (17, 2), (1, 0), (9, 1), (30, 0), (40, 3), (2, 0)]
COUNT = 12
QUICK = settings(max_examples=40, deadline=None)


@pytest.fixture(scope="module")
def asks(make_ask: Any) -> list[Any]:
    return [make_ask(length, views) for length, views in SHAPES]


@pytest.fixture(scope="module")
def expected(vip_model: Any, asks: list[Any], plain_greedy: Any) -> list[list[int]]:
    return [plain_greedy(vip_model, ask, COUNT) for ask in asks]


def engine_of(model: Any, **given: Any) -> Engine:
    return Engine(model, image_token_id=99, suppress_ids=[99], config=EngineConfig(**given))


def submit(engine: Engine, ask: Any, count: int = COUNT, **params: Any) -> Any:
    return engine.submit(ask.ids, ask.pixels, SamplingParams(max_new_tokens=count, **params))


def sequence(seq_id: int, length: int) -> Sequence:
    return Sequence(
        seq_id=seq_id,
        prompt_ids=list(range(1000 * seq_id, 1000 * seq_id + length)),
        max_tokens=100,
        sampling=SamplingState(SamplingParams(seed=0), []),
    )


def scheduler_of(
    blocks: BlockManager, tokens: int = 100, high: int = 0, max_num_seqs: int = 4
) -> Scheduler:
    return Scheduler(blocks, PrefillBudget(tokens, high or tokens), max_num_seqs)


def step(blocks: BlockManager, scheduler: Scheduler, **given: bool) -> dict[int, int]:
    """One step without a model, in which each ready sequence gets a token: ids and counts."""
    scheduled = scheduler.schedule(**given)
    for seq, count in scheduled:
        blocks.advance(seq, count)
        if seq.num_pending == 0:
            seq.output_ids.append(7)
    return {seq.seq_id: count for seq, count in scheduled}


def test_decode_goes_on_while_a_long_prompt_is_prefilled_in_chunks() -> None:
    blocks = BlockManager(64)
    scheduler = scheduler_of(blocks, 10)
    scheduler.add(sequence(0, 3))
    assert step(blocks, scheduler) == {0: 3}
    scheduler.add(sequence(1, 20))
    scheduler.add(sequence(2, 5))
    assert [step(blocks, scheduler) for _ in range(5)] == [
        {0: 1, 1: 9},
        {0: 1, 1: 9},
        {0: 1, 1: 2, 2: 5},
        {0: 1, 1: 1, 2: 1},
        {0: 1, 1: 1, 2: 1},
    ]


def test_no_sequence_overtakes_while_memory_is_short() -> None:
    blocks = BlockManager(4)
    scheduler = scheduler_of(blocks)
    first, large, small = sequence(0, 20), sequence(1, 40), sequence(2, 3)
    for seq in (first, large, small):
        scheduler.add(seq)
    assert step(blocks, scheduler) == {0: 20}
    assert step(blocks, scheduler) == {0: 1}
    scheduler.remove(first)
    assert step(blocks, scheduler) == {1: 40, 2: 3}
    assert blocks.pool.num_used == 4


def test_the_latest_is_preempted_and_keeps_its_place_in_the_queue() -> None:
    blocks = BlockManager(2, max_idle=0)
    scheduler = scheduler_of(blocks)
    first, second = sequence(0, 14), sequence(1, 13)
    for seq in (first, second, sequence(2, 3)):
        scheduler.add(seq)
    assert step(blocks, scheduler) == {0: 14, 1: 13}
    assert [step(blocks, scheduler) for _ in range(2)] == [{0: 1, 1: 1}] * 2
    assert step(blocks, scheduler) == {0: 1}  # needs a second block, which is the other's
    assert (scheduler.num_preemptions, first.num_tokens, second.num_tokens) == (1, 18, 16)
    assert [seq.seq_id for seq in scheduler.waiting] == [1, 2]
    scheduler.remove(first)
    assert step(blocks, scheduler) == {1: 16}  # prompt and output so far are computed anew


def test_a_late_sequence_takes_its_place_and_runs_once() -> None:
    blocks = BlockManager(8)
    scheduler = scheduler_of(blocks)
    scheduler.add(sequence(3, 5))
    assert step(blocks, scheduler) == {3: 5}
    scheduler.add(sequence(1, 4))
    assert [(seq.seq_id, count) for seq, count in scheduler.schedule()] == [(3, 1), (1, 4)]
    assert [seq.seq_id for seq in scheduler.running] == [1, 3]


def test_none_is_admitted_to_a_full_device_before_one_finishes() -> None:
    blocks = BlockManager(8)
    scheduler = scheduler_of(blocks)
    first, second = sequence(0, 5), sequence(1, 5)
    scheduler.add(first)
    scheduler.add(second)
    assert step(blocks, scheduler) == {0: 5, 1: 5}
    scheduler.preempt_for_memory(second)
    assert [step(blocks, scheduler) for _ in range(2)] == [{0: 1}] * 2
    scheduler.remove(first)
    assert step(blocks, scheduler) == {1: 6}


def test_a_shared_block_stays_until_its_last_user_leaves() -> None:
    blocks = BlockManager(8)
    scheduler = scheduler_of(blocks)
    first, same = sequence(0, 40), sequence(0, 40)
    same.seq_id = 1
    scheduler.add(first)
    step(blocks, scheduler)
    scheduler.add(same)
    assert step(blocks, scheduler) == {0: 1, 1: 8}
    assert same.num_cached == 32
    assert same.block_table[:2] == first.block_table[:2] != same.block_table[1:]
    assert blocks.pool.num_used == 4
    scheduler.remove(first)
    assert (blocks.pool.num_used, blocks.pool.num_idle) == (3, 0)
    scheduler.remove(same)
    assert (blocks.pool.num_used, scheduler.idle) == (0, True)


def test_prompts_are_split_only_if_necessary() -> None:
    """`whole_prompts`: a prompt begins a step or fits behind the others, in order."""
    blocks = BlockManager(64)
    scheduler = scheduler_of(blocks, 100, max_num_seqs=8)
    for seq_id, length in enumerate((60, 30, 20, 5, 230)):
        scheduler.add(sequence(seq_id, length))
    steps = [step(blocks, scheduler, whole_prompts=True) for _ in range(6)]
    prefilled = [{seq: count for seq, count in one.items() if count > 1} for one in steps]
    assert prefilled == [{0: 60, 1: 30}, {2: 20, 3: 5}, {4: 96}, {4: 96}, {4: 38}, {}]


def test_the_budget_is_what_the_device_prefills_in_time() -> None:
    budget = PrefillBudget(1000, 4000)
    assert (budget.tokens(decoding=False), budget.tokens(decoding=True)) == (4000, 1000)
    budget.observe(3000, 0.1)
    assert budget.tokens(decoding=True) == 3000
    budget.observe(400, 0.001)  # too few to measure by
    assert budget.tokens(decoding=True) == 3000
    budget.observe(4000, 0.01)
    assert budget.tokens(decoding=True) == 4000


def test_one_slow_step_changes_the_budget_little_and_many_do() -> None:
    budget = PrefillBudget(1000, 4000)
    budget.observe(3000, 0.1)
    budget.observe(3000, 5.0)
    assert budget.tokens(decoding=True) == 2700
    for _ in range(20):
        budget.observe(3000, 0.2)
    assert budget.tokens(decoding=True) == 1500
    for _ in range(30):
        budget.observe(3000, 9.0)
    assert (budget.tokens(decoding=True), budget.tokens(decoding=False)) == (1000, 4000)


def test_prefill_is_limited_only_while_sequences_decode() -> None:
    blocks = BlockManager(64)
    scheduler = scheduler_of(blocks, 50, high=400)
    scheduler.add(sequence(0, 300))
    assert step(blocks, scheduler) == {0: 300}
    scheduler.add(sequence(1, 300))
    assert step(blocks, scheduler) == {0: 1, 1: 49}


arrivals = st.lists(
    st.tuples(st.integers(0, len(SHAPES) - 1), st.integers(0, 4)), min_size=1, max_size=9
)


@QUICK
@given(
    arrivals=arrivals,
    max_batched_tokens=st.sampled_from([4, 11, 64]),
    kv_cache_tokens=st.sampled_from([96, 144, 4096]),
    prefix=st.sampled_from([0, 48, None]),
)
def test_any_arrival_gives_what_each_gets_alone(
    vip_model: Any,
    asks: list[Any],
    expected: list[list[int]],
    arrivals: list[tuple[int, int]],
    max_batched_tokens: int,
    kv_cache_tokens: int,
    prefix: int | None,
) -> None:
    engine = engine_of(
        vip_model,
        max_batched_tokens=max_batched_tokens,
        max_num_seqs=3,
        kv_cache_tokens=kv_cache_tokens,
        prefix_cache_tokens=prefix,
        encoder_cache_bytes=2048,
    )
    handles = []
    for which, steps in arrivals:
        handles.append((which, submit(engine, asks[which])))
        for _ in range(steps):
            engine.step()
    for which, handle in handles:
        assert list(handle.result().tokens) == expected[which]
    stats = engine.stats()
    assert (stats.kv_cache_tokens_used, stats.running, stats.waiting) == (0, 0, 0)
    assert stats.encoder_cache_bytes <= 2048
    assert stats.kv_cache_tokens_idle <= (stats.kv_cache_tokens if prefix is None else prefix)


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
    cancel_storm(engine, asks, expected, data, 3)


def test_the_memory_of_a_cancelled_request_is_freed_at_once(
    vip_model: Any, asks: list[Any]
) -> None:
    engine = engine_of(vip_model, kv_cache_tokens=64)
    first, second = submit(engine, asks[5], 8), submit(engine, asks[4], 8)
    engine.step()
    assert (engine.stats().running, engine.stats().waiting) == (1, 1)
    first.cancel()
    first.cancel()
    assert engine.stats().kv_cache_tokens_used == 0
    engine.step()
    assert engine.stats().kv_cache_tokens_used == 32
    assert len(second.result().tokens) == 8
    assert list(first) != []  # events before the cancellation stay readable
    second.cancel()
    assert len(second.result().tokens) == 8


def test_an_event_may_cancel_its_own_and_other_requests(
    vip_model: Any, asks: list[Any], expected: list[list[int]]
) -> None:
    engine = engine_of(vip_model)
    handles: list[Any] = []

    def cancel(_event: Any) -> None:
        for handle in handles[:2]:
            handle.cancel()

    handles.append(engine.submit(asks[0].ids, asks[0].pixels, on_event=cancel))
    handles += [submit(engine, asks[1]), submit(engine, asks[3])]
    assert list(handles[2].result().tokens) == expected[3]
    for handle in handles[:2]:
        with pytest.raises(RequestError, match="cancelled"):
            handle.result()


@pytest.mark.parametrize("prefix", [0, None])
def test_preemption_changes_no_answer(
    vip_model: Any, asks: list[Any], expected: list[list[int]], prefix: int | None
) -> None:
    engine = engine_of(vip_model, kv_cache_tokens=80, prefix_cache_tokens=prefix)
    # Sampling too: tokens drawn before a preemption are not drawn again.
    drawn = {"temperature": 1.2, "seed": 5, "repetition_penalty": 1.2}
    alone = submit(engine_of(vip_model), asks[3], 30, **drawn).result()
    greedy = [submit(engine, asks[which]) for which in (0, 2, 4)]
    random = submit(engine, asks[3], 30, **drawn)
    events = [event.token for event in random]
    for which, handle in zip((0, 2, 4), greedy, strict=True):
        assert list(handle.result().tokens) == expected[which]
    assert random.result().tokens == alone.tokens == tuple(events)
    assert engine.stats().preemptions > 0


def test_a_second_turn_computes_only_what_is_new(
    vip_model: Any, make_ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its prefix is the same image, the first turn and its answer."""
    engine = engine_of(vip_model)
    first = make_ask(20, 3)
    answer = submit(engine, first, 10).result()
    assert answer.cached_tokens == 0
    ids = [*first.ids, *answer.tokens, 5, 6, 7]
    again = type(first)(ids, first.pixels)
    expected = submit(engine_of(vip_model), again, 6).result().tokens
    fed: list[int] = []
    encoded: list[int] = []
    hooks = [
        vip_model.get_decoder().register_forward_pre_hook(
            lambda m, a, k: fed.append(k["inputs_embeds"].shape[1]), with_kwargs=True
        ),
        vip_model.model.vision_tower.register_forward_hook(lambda m, i, o: encoded.append(1)),
    ]
    engine.invalidate()  # hooks were added
    assert submit(engine, first, 10).result().tokens == answer.tokens
    fed.clear()
    encoded.clear()
    seen: list[Any] = []
    execute = ModelRunner.execute

    def run(self: ModelRunner, batch: Any) -> Any:
        ready, logits = execute(self, batch)
        seen.append(logits.clone())
        return ready, logits

    monkeypatch.setattr(ModelRunner, "execute", run)
    try:
        second = submit(engine, again, 6).result()
    finally:
        for hook in hooks:
            hook.remove()
    # 32 + 10 tokens, but the last one was never computed: two full blocks.
    assert second.cached_tokens == 32
    assert fed == [len(ids) - 32] + [1] * 5
    assert encoded == []
    with torch.inference_mode():
        whole = [*ids, *second.tokens[:-1]]
        full = vip_model(input_ids=torch.tensor([whole]), pixel_values=first.pixels).logits[0, -6:]
    torch.testing.assert_close(torch.cat(seen), full, atol=5e-5, rtol=0)
    assert second.tokens == expected
    stats = engine.stats()
    assert (stats.cached_tokens, stats.prompt_tokens) == (32, 2 * len(first.ids) + len(ids))


def test_the_same_text_about_another_image_shares_nothing(vip_model: Any, make_ask: Any) -> None:
    engine = engine_of(vip_model)
    one = make_ask(40, 2)
    pixels = one.pixels.clone()
    pixels[1] += 0.5
    other = type(one)(one.ids, pixels)
    swapped = type(one)(one.ids, one.pixels.flip(0))
    for ask in (one, other, swapped):
        result = submit(engine, ask).result()
        assert result.cached_tokens == 0
        alone = submit(engine_of(vip_model), ask).result()
        assert result.tokens == alone.tokens
    assert submit(engine, other).result().cached_tokens == 32
    engine.clear_cache()
    assert submit(engine, other).result().cached_tokens == 0
