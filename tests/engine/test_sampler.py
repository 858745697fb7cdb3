"""Parameters are checked with the field named; samples follow the stated distribution."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vip_llava.engine.sampler import Sampler, SamplingState, logprobs
from vip_llava.errors import RequestError
from vip_llava.sampling_params import SamplingParams

CPU = torch.device("cpu")
LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -5.0])


def frequencies(logits: Tensor = LOGITS, draws: int = 4000, **params: Any) -> Tensor:
    """How often each token is drawn, by one generator over all draws."""
    sampler, states = Sampler(CPU), [SamplingState(SamplingParams(seed=0, **params), [])]
    counts = torch.zeros(len(logits))
    for _ in range(draws):
        [token] = sampler(logits.unsqueeze(0), states)
        assert token is not None
        counts[token] += 1
    return counts / draws


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 1.5),
        ("max_new_tokens", True),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "1"),
        ("temperature", None),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", 1.5),
        ("repetition_penalty", 0),
        ("repetition_penalty", 0.09),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", "0"),
        ("stop", ""),
        ("stop", 5),
        ("stop", ["a", 1]),
        ("stop", ["a"] * 17),
        ("stop", ["a" * 257]),
        ("stop", b"a"),
    ],
)
def test_a_value_out_of_range_is_named(field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=field) as caught:
        SamplingParams(**{field: value})
    if isinstance(value, int | float):
        assert " must be " in str(caught.value)
        assert str(value) in str(caught.value)


def test_good_values_are_kept() -> None:
    params = SamplingParams(temperature=1, stop="END", seed=2**63 - 1)
    assert params.stop == ("END",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    assert not params.greedy
    assert SamplingParams().greedy
    assert SamplingParams(temperature=1e-9).greedy
    assert params.with_seed() is params
    assert SamplingParams(top_k=3).with_seed().top_k == 3


def test_draws_follow_the_softmax() -> None:
    for temperature in (0.5, 1.0, 2.0):
        expected = (LOGITS / temperature).softmax(-1)
        assert (frequencies(temperature=temperature) - expected).abs().max() < 0.03


def test_top_k_keeps_the_k_most_probable() -> None:
    found = frequencies(temperature=2.0, top_k=2)
    assert (found - torch.tensor([*(LOGITS[:2] / 2).softmax(-1), 0, 0, 0, 0])).abs().max() < 0.03
    assert frequencies(torch.ones(5), temperature=1.0, top_k=1, draws=50)[0] == 1


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    # Probabilities of about .55 .20 .12 .08 .03: .55 alone is below .6, two are above.
    found = frequencies(temperature=1.0, top_p=0.6)
    assert (found > 0).tolist() == [True, True, False, False, False, False]
    assert frequencies(temperature=1.0, top_p=1e-6, draws=50)[0] == 1


def test_min_p_keeps_tokens_near_the_best() -> None:
    # exp(-1) = .37 and exp(-1.5) = .22 of the best.
    assert (frequencies(temperature=1.0, min_p=0.3, draws=500) > 0).sum() == 2
    assert (frequencies(temperature=1.0, min_p=0.2, draws=500) > 0).sum() == 3
    assert frequencies(temperature=1.0, min_p=1.0, draws=50)[0] == 1


def test_the_repetition_penalty_sees_prompt_and_answer() -> None:
    params = SamplingParams(repetition_penalty=3.0)
    sampler = Sampler(CPU)
    states = [SamplingState(params, [0, 99]), SamplingState(SamplingParams(), [])]
    logits = LOGITS.repeat(2, 1)
    # Sequence 0: 2.0 / 3 < 1.0 because the prompt holds token 0; then token 1 falls to 1/3 as well.
    assert [sampler(logits, states) for _ in range(3)] == [[1, 0], [0, 0], [0, 0]]
    # What was seen stays with the request in any batch.
    assert sampler(logits[:1], [SamplingState(params, [0])]) == [1]
    assert sampler(logits, states[::-1]) == [0, 0]
    assert sampler(torch.tensor([[-1.0, -2.0]]), [SamplingState(params, [0])]) == [1]


def test_logits_are_not_changed() -> None:
    logits = LOGITS.unsqueeze(0).clone()
    params = SamplingParams(temperature=0.7, top_k=3, min_p=0.1, repetition_penalty=2.0, seed=1)
    Sampler(CPU, suppress_ids={2})(logits, [SamplingState(params, [0, 1])])
    assert torch.equal(logits[0], LOGITS)


def test_a_request_draws_the_same_in_any_batch() -> None:
    many = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    params = [
        SamplingParams(temperature=1.5, seed=seed, repetition_penalty=1.1) for seed in range(3)
    ]
    alone, single = Sampler(CPU), SamplingState(params[2], [])
    mine = [alone(many[2:], [single])[0] for _ in range(20)]
    sampler, states = Sampler(CPU), [SamplingState(one, []) for one in params]
    theirs = [sampler(many, states)[2] for _ in range(10)]
    theirs += [sampler(many[[2, 0]], [states[2], states[0]])[0] for _ in range(10)]
    assert mine == theirs


def test_logits_that_are_not_finite_give_none_for_their_row() -> None:
    logits = torch.stack([LOGITS, LOGITS * math.nan, LOGITS])
    states = [SamplingState(SamplingParams(temperature=t, seed=0), []) for t in (0.0, 1.0, 0.0)]
    assert Sampler(CPU)(logits, states) == [0, None, 0]


def test_extreme_logits_stay_in_the_vocabulary() -> None:
    sharp = torch.tensor([-math.inf, 1e30, -math.inf, 1e30])
    found = frequencies(sharp, temperature=1e-4, draws=100)
    assert found[0] == found[2] == 0


def test_logprobs_are_of_the_models_own_distribution() -> None:
    logits = torch.tensor([[0.5, 2.0, -1.0, 1.0], [1.0, 0.0, 0.0, 0.0], [3.0, 0.0, 1.0, 2.0]])
    asked = [
        SamplingParams(temperature=1.5, top_k=1, logprobs=2),
        SamplingParams(),
        SamplingParams(logprobs=0),
    ]
    found = logprobs(logits, [1, 0, None], [SamplingState(each, [0]) for each in asked])
    expected = logits[0].log_softmax(dim=-1).tolist()
    assert found[1] is None and found[2] is None
    assert found[0] is not None
    assert found[0].chosen == pytest.approx(expected[1])
    assert [token for token, _ in found[0].best] == [1, 3]
    assert [value for _, value in found[0].best] == pytest.approx([expected[1], expected[3]])
    alone = logprobs(logits[2:], [2], [SamplingState(asked[2], [0])])[0]
    assert alone is not None and alone.best == ()
    assert alone.chosen == pytest.approx(float(logits[2].log_softmax(dim=-1)[2]))
