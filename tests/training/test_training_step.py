"""The benchmark of a training step runs, and its fast way computes what its plain way does."""

from __future__ import annotations

import importlib.util
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
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize("stage", ["1", "2"])
def test_it_runs(benchmark: Any, capsys: pytest.CaptureFixture[str], stage: str) -> None:
    benchmark.main(["--tiny", "--stage", stage, "--rows", "8"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert "times the rows a second" in last
    assert float(last.split()[-1]) < 1e-5


def test_the_fast_way_computes_the_same(benchmark: Any) -> None:
    model = benchmark.build(benchmark.TINY, "cpu", torch.float32, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)  # wide enough for every picture and row to matter
    samples = benchmark.make_samples(benchmark.TINY, 6, 0.5)
    batches = [
        benchmark.on_device(collator(samples), model)
        for collator in (benchmark.PaddedCollator(0), benchmark.PackedCollator(0))
    ]
    found = []
    for fast, batch in zip((False, True), batches, strict=True):
        if fast:
            benchmark.switch(model, 0.5, False)
        model.zero_grad()
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        slope = model.model.multi_modal_projector.linear_1.weight.grad.clone()
        found.append((loss.detach(), slope))
    (plain, plain_slope), (ours, our_slope) = found
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    assert float((our_slope - plain_slope).norm() / plain_slope.norm()) < 1e-3
