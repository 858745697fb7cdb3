"""The benchmark of a training step runs, and its optimized step computes the plain one's loss."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "training_step.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
]


@pytest.fixture
def benchmark() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("training_step", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_all_cases_run(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    names = list(benchmark.CASES)
    benchmark.main(["--tiny", "--eager", *(f"--case={name}" for name in names)])
    told = capsys.readouterr().out.splitlines()[-5:]
    # The loss differences of all cases with two variants.
    assert [line.split(":")[0] for line in told] == names[:5]
    differences = [float(line.split()[-1]) for line in told]
    assert max(differences) < 1e-5


def test_an_error_does_not_stop_the_other_cases(
    benchmark: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "add_adapter", lambda *_args, **_options: 1 / 0)
    benchmark.main(["--tiny", "--eager", "--case=qlora", "--case=curves"])
    told = capsys.readouterr().out.splitlines()[-2:]
    assert told[0] == "qlora: ZeroDivisionError: division by zero"
    assert told[1].startswith("curves: the loss goes from ")


def test_the_optimized_step_computes_the_same(benchmark: Any) -> None:
    model = benchmark.build_model(benchmark.TINY, "cpu", torch.float32, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)  # wide enough for every image and row to matter
    samples = benchmark.make_samples(benchmark.TINY, benchmark.Case(2, 2, 6, 40, 700, 0.5))
    batches = [
        benchmark.to_device(collator(samples), model)
        for collator in (benchmark.PaddedCollator(0), benchmark.PackedCollator(0))
    ]
    found = []
    for fast, batch in zip((False, True), batches, strict=True):
        if fast:
            benchmark.apply_optimizations(model, compiled=False)
        model.zero_grad()
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        slope = model.model.multi_modal_projector.linear_1.weight.grad.clone()
        found.append((loss.detach(), slope))
    (plain, plain_slope), (ours, our_slope) = found
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    assert float((our_slope - plain_slope).norm() / plain_slope.norm()) < 1e-3


def test_rows_with_images_have_real_lengths(benchmark: Any) -> None:
    case = benchmark.CASES["ragged"]
    samples = benchmark.make_samples(benchmark.BIG, case)
    text = sorted(sample.length - 576 for sample in samples if not sample.text_only)
    listed = json.loads(benchmark.LISTED.read_text(encoding="utf-8"))
    assert text == sorted(length for length, _ in listed)
    assert sum(sample.text_only for sample in samples) == case.rows - len(listed)
