"""Steps have as many tokens as are read while an answer may wait."""

from __future__ import annotations

from vip_llava.engine.pace import Pace


def test_as_many_as_were_read_in_that_time() -> None:
    pace = Pace(1000, 4000)
    assert (pace.tokens(answering=False), pace.tokens(answering=True)) == (4000, 1000)
    pace.took(3000, 0.1)
    assert pace.tokens(answering=True) == 3000
    pace.took(400, 0.001)  # too few to tell
    assert pace.tokens(answering=True) == 3000
    pace.took(4000, 0.01)
    assert pace.tokens(answering=True) == 4000


def test_one_slow_step_changes_little_and_many_do() -> None:
    pace = Pace(1000, 4000)
    pace.took(3000, 0.1)
    pace.took(3000, 5.0)
    assert pace.tokens(answering=True) == 2700
    for _ in range(20):
        pace.took(3000, 0.2)
    assert pace.tokens(answering=True) == 1500
    for _ in range(30):
        pace.took(3000, 9.0)
    assert (pace.tokens(answering=True), pace.tokens(answering=False)) == (1000, 4000)
