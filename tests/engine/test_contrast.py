"""A first token that leans away from another prompt: equal to doing it by hand, in any company."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from vip_llava.engine import Contrast, Engine, SamplingParams
from vip_llava.engine.sampling import contrasted
from vip_llava.errors import RequestError

IMAGE = 99


def by_hand(model: Any, ask: Any, other: Any, share: float, count: int) -> list[int]:
    """Two full forwards for the first token, transformers' own generate for the rest."""

    def first(one: Any) -> Any:
        logits = model(**one.batch()).logits[0, -1]
        return logits.index_fill(0, torch.tensor([IMAGE]), -1e9).log_softmax(-1)

    with torch.inference_mode():
        own, against = first(ask), first(other)
        scores = own + share * (own - against)
        scores[own < own.max() + math.log(0.1)] = -math.inf
        token = int(scores.argmax())
        ids = torch.tensor([[*ask.ids, token]])
        rest = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=ask.pixels,
            max_new_tokens=count - 1,
            do_sample=False,
            eos_token_id=None,
            suppress_tokens=[IMAGE],
        )
    found: list[int] = rest[0, len(ask.ids) :].tolist()
    return found


@pytest.fixture
def pairs(make_ask: Any) -> list[tuple[Any, Any]]:
    return [(make_ask(8, 2, seed), make_ask(8, 1, seed + 1)) for seed in range(12)]


def submit(engine: Engine, pair: Any, share: float, count: int = 5, **params: Any) -> Any:
    ask, other = pair
    contrast = Contrast(other.ids, other.pixels, share)
    sampling = SamplingParams(max_new_tokens=count, **params)
    return engine.submit(ask.ids, ask.pixels, sampling, contrast=contrast)


@pytest.mark.parametrize("memory", [{}, {"kv_tokens": 96, "max_running": 3, "step_tokens": 5}])
def test_equal_to_two_forwards(
    vip_model: Any, make_engine: Any, pairs: list[Any], memory: dict[str, int]
) -> None:
    engine = make_engine(vip_model, **memory)
    wanted = [by_hand(vip_model, ask, other, 2.0, 5) for ask, other in pairs]
    plain = [
        engine.submit(ask.ids, ask.pixels, SamplingParams(max_new_tokens=5)) for ask, _ in pairs
    ]
    leaning = [submit(engine, pair, 2.0) for pair in pairs]
    found = [list(handle.result().tokens) for handle in leaning]
    assert found == wanted
    assert [list(handle.result().tokens) for handle in plain] != wanted
    assert engine.stats().running == engine.stats().waiting == 0
    assert engine.stats().kv_tokens_used == 0


def test_without_a_share_nothing_changes(
    vip_model: Any, make_engine: Any, pairs: list[Any], plain_greedy: Any
) -> None:
    engine = make_engine(vip_model)
    result = submit(engine, pairs[0], 0.0, logprobs=1).result()
    assert list(result.tokens) == plain_greedy(vip_model, pairs[0][0], 5)


def test_log_probabilities_stay_the_models_own(
    vip_model: Any, make_engine: Any, pairs: list[Any]
) -> None:
    engine = make_engine(vip_model)
    ask = pairs[0][0]
    alone = engine.submit(ask.ids, ask.pixels, SamplingParams(max_new_tokens=1, logprobs=20))
    leaning = submit(engine, pairs[0], 3.0, 1, logprobs=20).result()
    values = dict(alone.result().logprobs[0].best)
    assert dict(leaning.logprobs[0].best) == pytest.approx(values, abs=1e-5)
    assert leaning.logprobs[0].chosen == pytest.approx(values[leaning.tokens[0]], abs=1e-5)


def test_cancelling_ends_both(vip_model: Any, make_engine: Any, pairs: list[Any]) -> None:
    for steps in range(4):
        engine = make_engine(vip_model, step_tokens=4, max_running=3)
        handle = submit(engine, pairs[0], 1.0)
        for _ in range(steps):
            engine.step()
        handle.cancel()
        assert handle.done
        while engine.step():
            pass
        assert engine.stats().kv_tokens_used == 0
        assert engine.stats().waiting == engine.stats().running == 0
        with pytest.raises(RequestError, match="cancelled"):
            handle.result()


def test_what_goes_wrong_with_the_other_prompt_is_told(
    vip_model: Any, make_engine: Any, pairs: list[Any], make_ask: Any
) -> None:
    engine = make_engine(vip_model)
    ask = pairs[0][0]
    with pytest.raises(RequestError, match="0 views"):
        engine.submit(ask.ids, ask.pixels, contrast=Contrast(ask.ids, None, 1.0))

    def broken(*_: Any) -> Any:
        raise RuntimeError("no encoder")

    engine._vision.features = broken  # type: ignore[method-assign]
    handle = submit(engine, pairs[1], 1.0)
    with pytest.raises(RuntimeError, match="no encoder"):
        handle.result()
    assert engine.stats().waiting == engine.stats().running == 0


def test_only_probable_tokens_stay() -> None:
    own = torch.tensor([0.5, 0.3, 0.15, 0.04, 0.01]).log()
    against = torch.tensor([0.9, 0.01, 0.05, 0.01, 0.03]).log()
    leaning = contrasted(own + 3.0, against, 1.0)
    assert leaning.argmax() == 1
    assert torch.isfinite(leaning).tolist() == [True, True, True, False, False]
    assert torch.equal(contrasted(own, own, 1.0).argmax(), own.argmax())
