"""Loading of served models, and what happens before they are ready."""

from __future__ import annotations

import time
from pathlib import Path

from vip_llava import Assistant, load
from vip_llava.backends.native import NativeBackend
from vip_llava.engine import EngineConfig
from vip_llava.serving.api.models import ServedModels


def recording(folder: Path) -> Assistant:
    """A tiny model that uses captured steps on the CPU too."""
    plain = load(folder)
    config = EngineConfig(cuda_graphs=True, max_num_seqs=2)
    return Assistant(NativeBackend(plain.backend.model, plain.backend.processor, config=config))


def test_graphs_are_captured_before_the_first_request(tiny_model_folder: Path) -> None:
    loaded, late = recording(tiny_model_folder), recording(tiny_model_folder)
    models = ServedModels({"loaded": loaded}, {"late": lambda: late})
    assert loaded.backend.engine.stats().graphs == 0
    models.start()
    try:
        until = time.monotonic() + 60
        while models.not_ready() and time.monotonic() < until:
            time.sleep(0.01)
        assert models.not_ready() is None
        for assistant in (loaded, late):
            made = assistant.backend.engine.stats().graphs
            assert made > 0
            answer = assistant.ask(None, "What is it?", max_new_tokens=3)
            assert answer.usage.completion_tokens > 0
            assert assistant.backend.engine.stats().graphs == made
    finally:
        models.stop()
