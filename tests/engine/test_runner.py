"""The fast path equals the slow path: batched = single, cached = full, in tokens and in logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vip_llava.engine import Decoding, SamplingParams, TokenEvent, generate
from vip_llava.engine.runner import check_room
from vip_llava.errors import RequestError, VipLlavaError

IMAGE = 99
LENGTHS, VIEWS = (5, 17, 1, 9, 30), (1, 2, 0, 1, 0)


@pytest.fixture(params=["vip_model", "llava_model"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def run_with_logits(model: Any, inputs: dict[str, Tensor], params: Any) -> Any:
    """The results and, for each row, the logits of its steps."""
    # A random model would choose the picture's placeholder now and then; no real one may.
    decoding = Decoding(model, inputs, params, suppress_ids=[IMAGE])
    logits: dict[int, list[Tensor]] = {row: [] for row in range(len(params))}
    for _ in decoding:
        assert decoding.logits is not None
        for row, values in zip(decoding.running, decoding.logits, strict=True):
            logits[row].append(values.clone())
    return decoding.results(), {row: torch.stack(steps) for row, steps in logits.items()}


def letters(ids: Any) -> str:
    """A stand-in for a tokenizer: one ASCII character for each id."""
    return "".join(chr(32 + int(token) % 95) for token in ids)


def test_batch_rows_equal_single_rows(model: Any, make_batch: Any, row_of: Any) -> None:
    batch = make_batch(LENGTHS, VIEWS)
    # Different limits, so that rows leave the batch at different steps.
    params = [SamplingParams(max_new_tokens=count) for count in (12, 3, 7, 20, 1)]
    together, logits = run_with_logits(model, batch, params)
    for row, row_params in enumerate(params):
        [alone], logits_alone = run_with_logits(model, row_of(batch, row, VIEWS), [row_params])
        assert together[row].tokens == alone.tokens
        assert len(alone.tokens) == row_params.max_new_tokens
        assert together[row].prompt_tokens == alone.prompt_tokens
        torch.testing.assert_close(logits[row], logits_alone[0], atol=5e-5, rtol=0)


def test_cached_decoding_equals_the_full_forward(model: Any, make_batch: Any, row_of: Any) -> None:
    batch = make_batch(LENGTHS, VIEWS)
    results, logits = run_with_logits(model, batch, [SamplingParams(max_new_tokens=10)] * 5)
    for row, result in enumerate(results):
        single = row_of(batch, row, VIEWS)
        ids = torch.cat(
            [single["input_ids"], torch.tensor([result.tokens[:-1]], dtype=torch.long)], 1
        )
        with torch.inference_mode():
            full = model(input_ids=ids, pixel_values=single.get("pixel_values")).logits[0]
        torch.testing.assert_close(logits[row], full[-10:], atol=5e-5, rtol=0)
        allowed = full[-10:].index_fill(1, torch.tensor([IMAGE]), -torch.inf)
        assert tuple(allowed.argmax(-1).tolist()) == result.tokens


def test_equals_the_generate_of_transformers(model: Any, make_batch: Any) -> None:
    batch = make_batch(LENGTHS, VIEWS)
    theirs = model.generate(
        **batch, max_new_tokens=9, do_sample=False, eos_token_id=None, suppress_tokens=[IMAGE]
    )
    ours = generate(model, batch, [SamplingParams(max_new_tokens=9)] * 5, suppress_ids=[IMAGE])
    assert [list(row.tokens) for row in ours] == theirs[:, batch["input_ids"].shape[1] :].tolist()


def test_the_picture_matters(model: Any, make_batch: Any) -> None:
    batch = make_batch([6], [1])
    other = {**batch, "pixel_values": batch["pixel_values"].flip(-1) * 2}
    params = [SamplingParams(max_new_tokens=8)]
    assert generate(model, batch, params)[0].tokens != generate(model, other, params)[0].tokens


def test_prefill_makes_logits_of_the_last_position_only(vip_model: Any, make_batch: Any) -> None:
    widths: list[tuple[int, ...]] = []
    handle = vip_model.lm_head.register_forward_hook(lambda m, i, out: widths.append(out.shape))
    try:
        generate(vip_model, make_batch([7, 4], [1, 1]), [SamplingParams(max_new_tokens=3)] * 2)
    finally:
        handle.remove()
    assert widths == [(2, 1, 100)] * 3


def test_pictures_enter_once_and_finished_rows_leave(vip_model: Any, make_batch: Any) -> None:
    seen: list[tuple[tuple[int, ...], bool]] = []

    def spy(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        seen.append((tuple(kwargs["input_ids"].shape), kwargs.get("pixel_values") is not None))

    handle = vip_model.register_forward_pre_hook(spy, with_kwargs=True)
    try:
        limits = [SamplingParams(max_new_tokens=count) for count in (1, 3, 2)]
        generate(vip_model, make_batch([4, 4, 4], [1, 1, 1]), limits)
    finally:
        handle.remove()
    assert seen == [((3, 8), True), ((2, 1), False), ((1, 1), False)]


def test_a_sampled_row_does_not_depend_on_its_neighbours(
    vip_model: Any, make_batch: Any, row_of: Any
) -> None:
    batch = make_batch(LENGTHS, VIEWS)
    params = [
        SamplingParams(max_new_tokens=12, temperature=1.0, seed=7),
        SamplingParams(max_new_tokens=5),
        SamplingParams(max_new_tokens=9, temperature=1.5, top_k=5, seed=7),
        SamplingParams(max_new_tokens=11, temperature=0.8, top_p=0.7, seed=3),
        SamplingParams(
            max_new_tokens=8, temperature=1.2, min_p=0.05, repetition_penalty=1.3, seed=9
        ),
    ]
    together = generate(vip_model, batch, params)
    for row, row_params in enumerate(params):
        alone = generate(vip_model, row_of(batch, row, VIEWS), [row_params])[0]
        assert together[row].tokens == alone.tokens


def test_a_seed_repeats_and_another_does_not(vip_model: Any, make_batch: Any) -> None:
    batch = make_batch([5], [1])

    def run(seed: int | None) -> Any:
        return generate(
            vip_model, batch, [SamplingParams(max_new_tokens=20, temperature=1.5, seed=seed)]
        )[0]

    assert run(1).tokens == run(1).tokens != run(2).tokens
    fresh = run(None)
    assert run(fresh.seed).tokens == fresh.tokens
    assert run(None).seed != fresh.seed


def test_a_stop_id_ends_a_row_and_is_left_out(vip_model: Any, make_batch: Any) -> None:
    batch = make_batch([5, 9], [1, 0])
    free = generate(vip_model, batch, [SamplingParams(max_new_tokens=10)] * 2)
    stop = free[0].tokens[4]
    ended = generate(vip_model, batch, [SamplingParams(max_new_tokens=10)] * 2, {stop})
    assert ended[0].tokens == free[0].tokens[: free[0].tokens.index(stop)]
    assert ended[0].finish_reason == "stop"
    assert free[0].finish_reason == "length"


def test_a_stop_text_ends_a_row_and_is_left_out(vip_model: Any, make_batch: Any) -> None:
    batch = make_batch([5, 9], [1, 0])
    plain = [SamplingParams(max_new_tokens=10)] * 2
    free = generate(vip_model, batch, plain, decode=letters)
    word = free[0].text[3:5]
    params = [SamplingParams(max_new_tokens=10, stop=word), SamplingParams(max_new_tokens=10)]
    ended = generate(vip_model, batch, params, decode=letters)
    assert ended[0].text == free[0].text[: free[0].text.index(word)]
    assert ended[0].finish_reason == "stop"
    assert ended[1].text == free[1].text
    templates = generate(vip_model, batch, plain, decode=letters, stop_strings=[word])
    assert templates[0].text == ended[0].text


def test_events_carry_every_token_and_the_text(vip_model: Any, make_batch: Any) -> None:
    events: list[TokenEvent] = []
    params = [SamplingParams(max_new_tokens=count) for count in (4, 9)]
    results = generate(
        vip_model, make_batch([5, 9], [1, 0]), params, on_token=events.append, decode=letters
    )
    for row, result in enumerate(results):
        mine = [event for event in events if event.row == row]
        assert tuple(event.token for event in mine) == result.tokens
        assert "".join(event.text for event in mine) == result.text == letters(result.tokens)
        assert [event.finish_reason for event in mine] == [None] * (len(mine) - 1) + ["length"]


def test_suppressed_ids_never_come(vip_model: Any, make_batch: Any) -> None:
    batch = make_batch([5], [1])
    params = [SamplingParams(max_new_tokens=10)]
    first = generate(vip_model, batch, params)[0].tokens[0]
    assert first not in generate(vip_model, batch, params, suppress_ids={first, 99_999})[0].tokens


def test_the_positions_of_the_model_limit_the_answer(vip_model: Any, make_batch: Any) -> None:
    [result] = generate(vip_model, make_batch([90], [1]), [SamplingParams(max_new_tokens=50)])
    assert (result.prompt_tokens, result.max_new_tokens, len(result.tokens)) == (94, 2, 2)
    assert result.finish_reason == "length"
    with pytest.raises(RequestError, match=r"96 tokens.*96 positions.*at least 1 tokens"):
        generate(vip_model, make_batch([92], [1]), [SamplingParams()])
    assert check_room(vip_model, 95) == 1


def test_no_mode_is_left_on_between_steps(vip_model: Any, make_batch: Any) -> None:
    for _ in Decoding(vip_model, make_batch([5], [1]), [SamplingParams(max_new_tokens=2)]):
        assert not torch.is_inference_mode_enabled()


def test_half_precision_runs(vip_model: Any, make_batch: Any) -> None:
    import copy

    half = copy.deepcopy(vip_model).to(torch.bfloat16)
    results = generate(half, make_batch(LENGTHS, VIEWS), [SamplingParams(max_new_tokens=4)] * 5)
    assert all(len(result.tokens) == 4 for result in results)


def test_outputs_that_are_no_numbers_are_an_error(vip_model: Any, make_batch: Any) -> None:
    handle = vip_model.lm_head.register_forward_hook(lambda m, i, out: out * float("nan"))
    try:
        with pytest.raises(VipLlavaError, match="not finite"):
            generate(vip_model, make_batch([5], [0]), [SamplingParams(temperature=1.0)])
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": torch.tensor([[1, 1, 0]])}, "left"),
        ({"attention_mask": torch.tensor([[1, 0, 1]])}, "left"),
        ({"attention_mask": torch.tensor([[1, 1]])}, "attention_mask"),
    ],
)
def test_wrong_batches_are_refused(vip_model: Any, change: dict[str, Tensor], message: str) -> None:
    inputs = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 3), **change}
    with pytest.raises(ValueError, match=message):
        generate(vip_model, inputs, [SamplingParams()])


def test_other_programming_mistakes_are_refused(vip_model: Any, make_batch: Any) -> None:
    batch = make_batch([5], [0])
    with pytest.raises(ValueError, match="2 sampling parameters for 1 rows"):
        generate(vip_model, batch, [SamplingParams()] * 2)
    with pytest.raises(ValueError, match="decode"):
        generate(vip_model, batch, [SamplingParams(stop="x")])
    vip_model.train()
    try:
        with pytest.raises(ValueError, match="training mode"):
            generate(vip_model, batch, [SamplingParams()])
    finally:
        vip_model.eval()
    decoding = Decoding(vip_model, batch, [SamplingParams(max_new_tokens=2)])
    with pytest.raises(RuntimeError, match="not been run"):
        decoding.results()
    list(decoding)
    with pytest.raises(RuntimeError, match="has been run"):
        list(decoding)
