"""Metrics, throughput, trackers, sample answers and the loss curve."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from vip_llava.data.samples import Sample
from vip_llava.errors import DataError, MissingExtraError
from vip_llava.models.loading import load_model
from vip_llava.training.metrics import (
    MetricsLogger,
    ProgressReporter,
    Throughput,
    check_trackers,
    flops_per_token,
    peak_flops,
    read_metrics,
)
from vip_llava.training.param_groups import set_trainable
from vip_llava.training.results.loss_curve import draw_loss_curve, write_loss_curve
from vip_llava.training.sample_answers import SampleAnswers, SamplePrompt


def state(step: int, *, first: bool = True, last: int = 10) -> Any:
    return SimpleNamespace(global_step=step, is_world_process_zero=first, max_steps=last)


NOTHING: Any = SimpleNamespace()


def test_a_resumed_run_has_each_step_once_in_its_metrics(tmp_path: Path) -> None:
    throughput = Throughput()
    metrics = MetricsLogger(tmp_path, throughput)
    metrics.on_train_begin(NOTHING, state(0), NOTHING)
    for step in (1, 2, 3):
        throughput.add(rows=8, tokens=100, data_seconds=0.25)
        metrics.on_log(NOTHING, state(step), NOTHING, logs={"loss": torch.tensor(1.0 / step)})
    metrics.on_log(NOTHING, state(3, first=False), NOTHING, logs={"loss": 9.0})
    metrics.on_log(NOTHING, state(3), NOTHING, logs={"train_runtime": 1.5})
    lines = read_metrics(metrics.path)
    assert [line["step"] for line in lines] == [1, 2, 3, 3]
    assert lines[1]["loss"] == 0.5 and lines[1]["data_seconds"] == 0.25
    assert lines[1]["tokens_per_second"] > lines[1]["rows_per_second"] > 0
    assert "rows_per_second" not in lines[3]
    with metrics.path.open("a") as stream:
        stream.write('{"step": 4, "lo')  # killed while writing
    again = MetricsLogger(tmp_path, Throughput())
    again.on_train_begin(NOTHING, state(2), NOTHING)
    again.on_log(NOTHING, state(3), NOTHING, logs={"loss": 0.25})
    assert [(m["step"], m["loss"]) for m in read_metrics(again.path)] == [
        (1, 1.0), (2, 0.5), (3, 0.25),
    ]  # fmt: skip


def test_rates_are_those_since_the_last_report() -> None:
    throughput = Throughput()
    assert throughput.report() == {}
    throughput.add(4, 40, 0.5)
    throughput.add(4, 40, 0.5)
    found = throughput.report()
    assert found["data_seconds"] == 1.0
    assert found["tokens_per_second"] == pytest.approx(10 * found["rows_per_second"], rel=1e-3)
    assert throughput.report() == {}


def test_flops_per_token_depend_on_what_is_trained(tiny_vip: Any) -> None:
    weights = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48)
    set_trainable(tiny_vip, ["projector"])
    assert flops_per_token(tiny_vip) == 4 * weights
    set_trainable(tiny_vip, ["projector", "language"])
    assert flops_per_token(tiny_vip) == 6 * weights


def test_mfu_is_reported_for_a_known_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2e9)
    throughput = Throughput()
    metrics = MetricsLogger(tmp_path, throughput, flops_per_token=10**12)
    args: Any = SimpleNamespace(device=torch.device("cuda"), world_size=2)
    metrics.on_train_begin(args, state(0), NOTHING)
    throughput.add(8, 1000, 0.0)
    metrics.on_log(args, state(1), NOTHING, logs={"loss": 1.0})
    (line,) = read_metrics(metrics.path)
    assert line["mfu"] == pytest.approx(line["tokens_per_second"] / 2 * 1e12 / 989e12, rel=1e-2)
    assert line["memory_gb"] == 2.0
    assert peak_flops(torch.device("cpu")) is None


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


def test_a_tracker_must_be_installed() -> None:
    check_trackers(())
    with pytest.raises(MissingExtraError, match="pip install no_such_tracker"):
        check_trackers(["no_such_tracker"])


def test_a_prompt_ends_before_the_first_answer() -> None:
    sample = Sample(
        id="7",
        input_ids=[1, 2, 3, 4, 5, 6, 7],
        labels=[-100, -100, 3, 4, -100, -100, 7],
        pixel_values=None,
    )
    prompt = SamplePrompt.of(sample, lambda ids: " ".join(map(str, ids)))
    assert (prompt.id, prompt.input_ids, prompt.expected) == ("7", [1, 2], "3 4")


@pytest.mark.parametrize("image", [True, False])
def test_sample_answers_do_not_change_the_run(
    tiny_model_folder: Path, tmp_path: Path, image: bool
) -> None:
    model, processor = load_model(tiny_model_folder, device="cpu")
    model.train()
    ids = [1, *([processor.image_token_id] * 16 if image else []), 20, 21]
    prompt = SamplePrompt("a", ids, torch.zeros(1, 3, 56, 56) if image else None, "wanted")
    answers = SampleAnswers([prompt], processor.decode, tmp_path, every=5, max_new_tokens=4)
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


def test_the_curve_follows_the_loss(tmp_path: Path) -> None:
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
    with pytest.raises(DataError, match="has 1 losses"):
        write_loss_curve(path, tmp_path / "x.png")


@pytest.mark.parametrize(
    "points", [[(1, 1.0), (2, 1.0)], [(0, -3.0), (9, 1e6)], [(5, 1e-7), (6, 0)]]
)
def test_any_losses_can_be_drawn(points: list[tuple[float, float]]) -> None:
    assert draw_loss_curve(points, "loss").size == (800, 450)
