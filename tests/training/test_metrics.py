"""Metrics, trackers, answers during the run and the loss curve, each by itself."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from vip_llava.errors import DataError, MissingExtraError
from vip_llava.models.loading import load_model
from vip_llava.training.metrics import (
    MetricsLogger,
    ProgressReporter,
    SampleAnswers,
    SamplePrompt,
    check_trackers,
    read_metrics,
)
from vip_llava.training.results.loss_curve import draw_loss_curve, write_loss_curve


def state(step: int, *, first: bool = True, last: int = 10) -> Any:
    return SimpleNamespace(global_step=step, is_world_process_zero=first, max_steps=last)


NOTHING: Any = SimpleNamespace()


def test_metrics_are_lines_and_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    metrics = MetricsLogger(tmp_path, rows_a_step=8)
    metrics.on_train_begin(NOTHING, state(0), NOTHING)
    for step in (1, 2, 3):
        metrics.on_log(NOTHING, state(step), NOTHING, logs={"loss": torch.tensor(1.0 / step)})
    metrics.on_log(NOTHING, state(3, first=False), NOTHING, logs={"loss": 9.0})
    metrics.on_log(NOTHING, state(3), NOTHING, logs={"train_runtime": 1.5})
    lines = read_metrics(metrics.path)
    assert [line["step"] for line in lines] == [1, 2, 3, 3]
    assert lines[1]["loss"] == 0.5 and lines[1]["rows_per_second"] > 0
    assert "rows_per_second" not in lines[3]
    with metrics.path.open("a") as stream:
        stream.write('{"step": 4, "lo')  # killed while it wrote
    again = MetricsLogger(tmp_path, rows_a_step=8)
    again.on_train_begin(NOTHING, state(2), NOTHING)
    again.on_log(NOTHING, state(3), NOTHING, logs={"loss": 0.25})
    assert [(m["step"], m["loss"]) for m in read_metrics(again.path)] == [
        (1, 1.0), (2, 0.5), (3, 0.25),
    ]  # fmt: skip


def test_a_broken_metrics_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(DataError, match="line 2"):
        read_metrics(path)


def test_reports_go_to_the_caller() -> None:
    steps: list[tuple[str, int, int]] = []
    values: list[dict[str, Any]] = []
    reports = ProgressReporter(lambda *each: steps.append(each), values.append)
    reports.on_step_end(NOTHING, state(1), NOTHING)
    reports.on_log(NOTHING, state(1), NOTHING, logs={"loss": 0.25})
    reports.on_step_end(NOTHING, state(2), NOTHING)
    reports.on_step_end(NOTHING, state(3, first=False), NOTHING)
    assert steps == [("training", 1, 10), ("training, loss 0.2500", 2, 10)]
    assert values == [{"step": 1, "loss": 0.25}]


def test_a_tracker_must_be_there() -> None:
    check_trackers(())
    with pytest.raises(MissingExtraError, match="pip install no_such_tracker"):
        check_trackers(["no_such_tracker"])


def test_a_question_is_all_before_the_first_answer() -> None:
    sample = SimpleNamespace(
        id="7",
        input_ids=[1, 2, 3, 4, 5, 6, 7],
        labels=[-100, -100, 3, 4, -100, -100, 7],
        pixel_values=None,
    )
    question = SamplePrompt.of(sample, lambda ids: " ".join(map(str, ids)))
    assert (question.name, question.ids, question.wanted) == ("7", [1, 2], "3 4")


@pytest.mark.parametrize("image", [True, False])
def test_answers_change_nothing_of_the_run(
    tiny_model_folder: Path, tmp_path: Path, image: bool
) -> None:
    model, processor = load_model(tiny_model_folder, device="cpu")
    model.train()
    ids = [1, *([processor.image_token_id] * 16 if image else []), 20, 21]
    question = SamplePrompt("a", ids, torch.zeros(1, 3, 56, 56) if image else None, "wanted")
    answers = SampleAnswers([question], processor.decode, tmp_path, every=5, longest=4)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    for step in (4, 5, 10):
        answers.on_step_end(NOTHING, state(step), NOTHING, model=model)
    answers.on_step_end(NOTHING, state(5, first=False), NOTHING, model=model)
    assert torch.equal(torch.random.get_rng_state(), before) and model.training
    lines = [json.loads(line) for line in answers.path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10]
    assert lines[0] == {"step": 5, "id": "a", "wanted": "wanted", "answer": lines[1]["answer"]}
    made: Any = model
    made.train(False)
    pixels = {"pixel_values": torch.zeros(1, 3, 56, 56)} if image else {}
    plain = made.generate(
        input_ids=torch.tensor([ids]),
        **pixels,
        max_new_tokens=4,
        do_sample=False,
        eos_token_id=None,
    )
    assert lines[0]["answer"] == processor.decode(plain[0, len(ids) :].tolist())


def test_the_curve_goes_where_the_loss_goes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "loss": 4 - step / 30} for step in range(1, 100)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Image.open(write_loss_curve(path, tmp_path / "loss.png")) as image:
        thick = [
            (x, y)
            for x in range(image.width)
            for y in range(image.height)
            if image.getpixel((x, y)) == (20, 80, 160)
        ]
    heights = dict(thick)
    assert heights[min(heights)] < 120 < 300 < heights[max(heights)], "falls from 4 to 0.7"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN}\n')
    with pytest.raises(DataError, match="holds 1 losses"):
        write_loss_curve(path, tmp_path / "x.png")


@pytest.mark.parametrize(
    "points", [[(1, 1.0), (2, 1.0)], [(0, -3.0), (9, 1e6)], [(5, 1e-7), (6, 0)]]
)
def test_any_numbers_can_be_drawn(points: list[tuple[float, float]]) -> None:
    assert draw_loss_curve(points, "loss").size == (800, 450)
