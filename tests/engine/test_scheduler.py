"""Any order of arrival, pieces, cancellation and shortage of memory changes no answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vip_llava.engine import Engine
from vip_llava.engine.block_manager import Blocks
from vip_llava.engine.sampler import SamplingState
from vip_llava.engine.scheduler import Row, Scheduler
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
    from vip_llava.engine import EngineSettings

    return Engine(model, image_token_id=99, suppress_ids=[99], settings=EngineSettings(**given))


def submit(engine: Engine, ask: Any, count: int = COUNT, **params: Any) -> Any:
    return engine.submit(ask.ids, ask.pixels, SamplingParams(max_new_tokens=count, **params))


def row_of(number: int, length: int, limit: int = 100) -> Row:
    return Row(
        number=number,
        prompt=list(range(1000 * number, 1000 * number + length)),
        limit=limit,
        sampling=SamplingState(SamplingParams(seed=0), []),
        stream=None,
        pixels=None,
        views=[],
        image_at=[],
        arrived_at=0.0,
    )


def step(scheduler: Scheduler) -> dict[int, int]:
    """One step without a model: each ready request gets a token. Numbers and counts."""
    chosen = scheduler.plan()
    for row, count in chosen:
        scheduler.fed(row, count)
        if row.pending == 0:
            row.tokens.append(7)
    return {row.number: count for row, count in chosen}


def test_answers_go_on_while_a_long_prompt_is_read_in_pieces() -> None:
    scheduler = Scheduler(Blocks(64), 16, max_running=4, step_tokens=10)
    scheduler.join(row_of(0, 3))
    assert step(scheduler) == {0: 3}
    scheduler.join(row_of(1, 20))
    scheduler.join(row_of(2, 5))
    assert [step(scheduler) for _ in range(5)] == [
        {0: 1, 1: 9},
        {0: 1, 1: 9},
        {0: 1, 1: 2, 2: 5},
        {0: 1, 1: 1, 2: 1},
        {0: 1, 1: 1, 2: 1},
    ]


def test_nobody_overtakes_while_memory_is_short() -> None:
    blocks = Blocks(4)
    scheduler = Scheduler(blocks, 16, max_running=4, step_tokens=100)
    first, large, small = row_of(0, 20), row_of(1, 40), row_of(2, 3)
    for row in (first, large, small):
        scheduler.join(row)
    assert step(scheduler) == {0: 20}
    assert step(scheduler) == {0: 1}
    scheduler.leave(first)
    assert step(scheduler) == {1: 40, 2: 3}
    assert blocks.used == 4


def test_the_latest_is_put_off_and_comes_again_at_its_place() -> None:
    scheduler = Scheduler(Blocks(2, prefix_blocks=0), 16, max_running=4, step_tokens=100)
    first, second = row_of(0, 14), row_of(1, 13)
    scheduler.join(first)
    scheduler.join(second)
    scheduler.join(row_of(2, 3))
    assert step(scheduler) == {0: 14, 1: 13}
    assert [step(scheduler) for _ in range(2)] == [{0: 1, 1: 1}] * 2
    assert step(scheduler) == {0: 1}  # needs a second block, which is the other's
    assert (scheduler.preemptions, first.length, second.length) == (1, 18, 16)
    assert [row.number for row in scheduler.waiting] == [1, 2]
    scheduler.leave(first)
    assert step(scheduler) == {1: 16}  # prompt and answer so far are read anew


def test_one_that_comes_late_takes_its_place_and_runs_once() -> None:
    scheduler = Scheduler(Blocks(8), 16, max_running=4, step_tokens=100)
    scheduler.join(row_of(3, 5))
    assert step(scheduler) == {3: 5}
    scheduler.join(row_of(1, 4))
    assert [(row.number, count) for row, count in scheduler.plan()] == [(3, 1), (1, 4)]
    assert [row.number for row in scheduler.running] == [1, 3]


def test_nobody_joins_a_crowded_machine_before_somebody_leaves() -> None:
    scheduler = Scheduler(Blocks(8), 16, max_running=4, step_tokens=100)
    first, second = row_of(0, 5), row_of(1, 5)
    scheduler.join(first)
    scheduler.join(second)
    assert step(scheduler) == {0: 5, 1: 5}
    scheduler.put_off(second)
    scheduler.crowded()
    assert [step(scheduler) for _ in range(2)] == [{0: 1}] * 2
    scheduler.leave(first)
    assert step(scheduler) == {1: 6}


def test_a_shared_block_stays_while_one_of_its_users_does() -> None:
    blocks = Blocks(8)
    scheduler = Scheduler(blocks, 16, max_running=4, step_tokens=100)
    first, same = row_of(0, 40), row_of(0, 40)
    same.number = 1
    scheduler.join(first)
    step(scheduler)
    scheduler.join(same)
    assert step(scheduler) == {0: 1, 1: 8}
    assert same.cached == 32
    assert same.blocks[:2] == first.blocks[:2] != same.blocks[1:]
    assert blocks.used == 4
    scheduler.leave(first)
    assert (blocks.used, blocks.index.idle) == (3, 0)
    scheduler.leave(same)
    assert (blocks.used, scheduler.idle) == (0, True)


arrivals = st.lists(
    st.tuples(st.integers(0, len(SHAPES) - 1), st.integers(0, 4)), min_size=1, max_size=9
)


@QUICK
@given(
    arrivals=arrivals,
    step_tokens=st.sampled_from([4, 11, 64]),
    kv_tokens=st.sampled_from([96, 144, 4096]),
    prefix=st.sampled_from([0, 48, None]),
)
def test_any_arrival_gives_what_each_gets_alone(
    vip_model: Any,
    asks: list[Any],
    expected: list[list[int]],
    arrivals: list[tuple[int, int]],
    step_tokens: int,
    kv_tokens: int,
    prefix: int | None,
) -> None:
    engine = engine_of(
        vip_model,
        step_tokens=step_tokens,
        max_running=3,
        kv_tokens=kv_tokens,
        prefix_tokens=prefix,
        vision_bytes=2048,
    )
    handles = []
    for which, steps in arrivals:
        handles.append((which, submit(engine, asks[which])))
        for _ in range(steps):
            engine.step()
    for which, handle in handles:
        assert list(handle.result().tokens) == expected[which]
    stats = engine.stats()
    assert (stats.kv_tokens_used, stats.running, stats.waiting) == (0, 0, 0)
    assert stats.vision_bytes <= 2048
    assert stats.kv_tokens_kept <= (stats.kv_tokens if prefix is None else prefix)


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
    cancel_storm(engine, asks, expected, data, 3)


def test_the_memory_of_a_cancelled_request_is_free_at_once(vip_model: Any, asks: list[Any]) -> None:
    engine = engine_of(vip_model, kv_tokens=64)
    first, second = submit(engine, asks[5], 8), submit(engine, asks[4], 8)
    engine.step()
    assert (engine.stats().running, engine.stats().waiting) == (1, 1)
    first.cancel()
    first.cancel()
    assert engine.stats().kv_tokens_used == 0
    engine.step()
    assert engine.stats().kv_tokens_used == 32
    assert len(second.result().tokens) == 8
    assert list(first) != []  # what it said before stays readable
    second.cancel()
    assert len(second.result().tokens) == 8


def test_an_event_may_cancel_its_own_and_other_requests(
    vip_model: Any, asks: list[Any], expected: list[list[int]]
) -> None:
    engine = engine_of(vip_model)
    handles: list[Any] = []

    def give_up(_event: Any) -> None:
        for handle in handles[:2]:
            handle.cancel()

    handles.append(engine.submit(asks[0].ids, asks[0].pixels, on_event=give_up))
    handles += [submit(engine, asks[1]), submit(engine, asks[3])]
    assert list(handles[2].result().tokens) == expected[3]
    for handle in handles[:2]:
        with pytest.raises(RequestError, match="cancelled"):
            handle.result()


@pytest.mark.parametrize("prefix", [0, None])
def test_too_little_memory_puts_off_and_changes_nothing(
    vip_model: Any, asks: list[Any], expected: list[list[int]], prefix: int | None
) -> None:
    engine = engine_of(vip_model, kv_tokens=80, prefix_tokens=prefix)
    # Seeds too: what was drawn before being put off is not drawn again.
    drawn = {"temperature": 1.2, "seed": 5, "repetition_penalty": 1.2}
    alone = submit(engine_of(vip_model), asks[3], 30, **drawn).result()
    greedy = [submit(engine, asks[which]) for which in (0, 2, 4)]
    random = submit(engine, asks[3], 30, **drawn)
    events = [event.token for event in random]
    for which, handle in zip((0, 2, 4), greedy, strict=True):
        assert list(handle.result().tokens) == expected[which]
    assert random.result().tokens == alone.tokens == tuple(events)
    assert engine.stats().preemptions > 0


def test_a_second_turn_reads_only_what_is_new(vip_model: Any, make_ask: Any) -> None:
    """The same images, the same first turn and its answer in front."""
    engine = engine_of(vip_model)
    first = make_ask(20, 3)
    answer = submit(engine, first, 10).result()
    assert answer.cached_tokens == 0
    ids = [*first.ids, *answer.tokens, 5, 6, 7]
    again = type(first)(ids, first.pixels)
    fed: list[int] = []
    encoded: list[int] = []
    hooks = [
        vip_model.get_decoder().register_forward_pre_hook(
            lambda m, a, k: fed.append(k["inputs_embeds"].shape[1]), with_kwargs=True
        ),
        vip_model.model.vision_tower.register_forward_hook(lambda m, i, o: encoded.append(1)),
    ]
    seen: list[Any] = []
    runner = engine._runner

    def run(chosen: Any) -> Any:
        ready, logits = runner(chosen)
        seen.append(logits.clone())
        return ready, logits

    engine._runner = run  # type: ignore[assignment]
    try:
        second = submit(engine, again, 6).result()
    finally:
        for hook in hooks:
            hook.remove()
    # 32 + 10 tokens were there, but the last one said was never read: two full blocks.
    assert second.cached_tokens == 32
    assert fed == [len(ids) - 32] + [1] * 5
    assert encoded == []
    with torch.inference_mode():
        whole = [*ids, *second.tokens[:-1]]
        full = vip_model(input_ids=torch.tensor([whole]), pixel_values=first.pixels).logits[0, -6:]
    torch.testing.assert_close(torch.cat(seen), full, atol=5e-5, rtol=0)
    assert second.tokens == submit(engine_of(vip_model), again, 6).result().tokens
    stats = engine.stats()
    assert (stats.cached_tokens, stats.prompt_tokens) == (32, len(first.ids) + len(ids))


def test_the_same_words_about_another_image_share_nothing(vip_model: Any, make_ask: Any) -> None:
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
    engine.forget()
    assert submit(engine, other).result().cached_tokens == 0


def test_prompts_that_need_not_be_cut_are_not() -> None:
    """`whole`: a prompt begins a step or fits behind the others; nobody overtakes one that waits."""
    scheduler = Scheduler(Blocks(64), 16, 8, 100)
    rows = [row_of(number, length) for number, length in enumerate((60, 30, 20, 5, 230))]
    for one in rows:
        scheduler.join(one)
    counts = []
    for _ in range(6):
        chosen = scheduler.plan(whole=True)
        counts.append([(one.number, count) for one, count in chosen if one.pending > 1])
        for one, count in chosen:
            scheduler.fed(one, count)
            if not one.pending:
                one.tokens.append(1)
    assert counts[0] == [(0, 60), (1, 30)]
    assert counts[1] == [(2, 20), (3, 5)]
    assert counts[2:] == [[(4, 96)], [(4, 96)], [(4, 38)], []]
    assert scheduler.plan(400) == [(one, 1) for one in rows]
    more = row_of(9, 300)
    scheduler.join(more)
    assert scheduler.plan(400, whole=True)[-1] == (more, 300)
