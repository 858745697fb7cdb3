"""The zoo: figures as published, measured ones only with their run, and a page that is the data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vip_llava.evaluation import zoo
from vip_llava.evaluation.zoo import Measured, checkpoints, page

PAGE = Path(__file__).parents[2] / "docs" / "model_zoo.md"


def test_the_page_is_made_of_the_data() -> None:
    assert PAGE.read_text("utf-8") == page(), "write docs/model_zoo.md anew with zoo.page()"


def test_published_figures() -> None:
    """A few, read from the original's pages by eye."""
    found = {each.name: each for each in checkpoints()}
    assert len(found) == len(checkpoints()) == 14
    small, large = found["mucai/vip-llava-7b"].published, found["mucai/vip-llava-13b"].published
    assert (small["visual7w"], small["pointqa"], small["vip-bench bbox"]) == (86.6, 71.3, 48.4)
    assert (large["vip-bench human"], large["MME"], large["VQAv2"]) == (48.2, 1564.0, 80.1)
    assert found["mucai/vip-llava-phi-3-mini-3.8B"].published["POPE"] == 88.1
    assert found["liuhaotian/llava-v1.5-13b"].published["TextVQA"] == 61.3
    assert all(each.source for each in found.values() if each.published)


def test_nothing_is_called_measured_without_a_run() -> None:
    for each in checkpoints():
        assert all(measured.run for measured in each.measured.values())
    told = replace(checkpoints()[0], measured={"visual7w": Measured(86.1, 85.0, 87.2, "runs/x")})
    assert zoo._table([told], ["visual7w"], ours=True)[2].endswith(
        "| 86.6 | visual7w 86.1 [85, 87.2] (runs/x) |"
    )
