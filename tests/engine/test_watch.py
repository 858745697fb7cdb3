"""What is taken for granted for the time of a step, and made sure in it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from vip_llava.engine import Engine, EngineSettings
from vip_llava.engine.digests import Guesses, view_digests
from vip_llava.sampling_params import SamplingParams

SIDE = 28
SMALL = 3 * SIDE * SIDE
COUNT = 6

pytestmark = pytest.mark.usefixtures("forgetful_recordings")


def engine_of(model: Any, captured: bool = True) -> Engine:
    settings = EngineSettings(captured=captured)
    return Engine(model, image_token_id=99, suppress_ids=[99, 1000], settings=settings)


def asked(engine: Engine, ask: Any) -> Any:
    return engine.submit(ask.ids, ask.pixels, SamplingParams(max_new_tokens=COUNT))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few pixels are looked at that other images look alike."""
    monkeypatch.setattr("vip_llava.engine.digests._SAMPLE", 3)


@pytest.fixture
def alike(make_ask: Any) -> list[Any]:
    """One question about three images that only differ where a guess does not look."""
    first = make_ask(40, 1)
    others = []
    for shift in (1.0, -1.0):
        pixels = first.pixels.clone()
        pixels.view(-1)[5:700] += shift
        others.append(replace(first, pixels=pixels))
    return [first, *others]


def test_a_guess_is_made_by_few_pixels(few: None) -> None:
    views = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    guesses = Guesses(2)
    assert guesses.of(views) is None
    guesses.learn(views, view_digests(views))
    assert guesses.of(views) == view_digests(views)
    changed = views.clone()
    changed.view(2, -1)[:, 1] += 1
    assert guesses.of(changed) == view_digests(views) != view_digests(changed)
    changed.view(2, -1)[1, 0] += 1
    assert guesses.of(changed) is None and guesses.of(changed[:1]) is not None
    guesses.learn(changed[1:], view_digests(changed[1:]))  # the first one goes
    assert guesses.of(views[:1]) is None and guesses.of(views[1:]) is not None


@pytest.mark.parametrize("together", [False, True])
def test_a_wrong_guess_changes_no_answer(
    few: None, vip_model: Any, alike: list[Any], together: bool
) -> None:
    expected = [asked(engine_of(vip_model, captured=False), ask).result().tokens for ask in alike]
    assert len({tuple(tokens) for tokens in expected}) == 3
    engine = engine_of(vip_model)
    engine.warm_up()
    order = [0, 1, 2, 0, 0, 2, 1, 1]
    if together:
        handles = [asked(engine, alike[which]) for which in order]
        found = [handle.result().tokens for handle in handles]
    else:
        found = [asked(engine, alike[which]).result().tokens for which in order]
    assert found == [expected[which] for which in order]
    if not together:
        assert engine.stats().preemptions == 5  # as often as the image was another one
    engine.forget()  # so that features are needed
    before = engine.stats().vision_misses
    assert [asked(engine, alike[which]).result().tokens for which in (0, 2)] == expected[::2]
    assert engine.stats().vision_misses == before + 2


def test_a_right_guess_finds_what_was_read(vip_model: Any, make_ask: Any) -> None:
    ask = make_ask(40, 1)
    engine = engine_of(vip_model)
    engine.warm_up()
    first = asked(engine, ask).result()
    row = asked(engine, ask)
    assert row._row.guessed
    again = row.result()
    assert again.tokens == first.tokens and again.cached_tokens > first.cached_tokens == 0
    assert not row._row.guessed and engine.stats().preemptions == 0


def test_nothing_is_guessed_where_no_device_works_meanwhile(vip_model: Any, make_ask: Any) -> None:
    ask = make_ask(40, 1)
    engine = engine_of(copy.deepcopy(vip_model), captured=False)
    for _ in range(2):
        row = asked(engine, ask)
        assert not row._row.guessed
        row.result()
