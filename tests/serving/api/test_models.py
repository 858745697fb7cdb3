"""The models of a server: what is done before they are said to be ready."""

from __future__ import annotations

import time
from pathlib import Path

from vip_llava import Assistant, load
from vip_llava.engine import EngineSettings
from vip_llava.serving.api.models import Models


def recording(folder: Path) -> Assistant:
    """A tiny model whose steps are recorded on a CPU too."""
    plain = load(folder)
    settings = EngineSettings(captured=True, max_running=2)
    return Assistant(plain.model, plain.processor, settings=settings)


def test_recordings_are_made_before_anybody_waits_for_them(tiny_model_folder: Path) -> None:
    opened, late = recording(tiny_model_folder), recording(tiny_model_folder)
    models = Models({"opened": opened}, {"late": lambda: late})
    assert opened.engine.stats().recordings == 0
    models.start()
    try:
        until = time.monotonic() + 60
        while models.not_ready() and time.monotonic() < until:
            time.sleep(0.01)
        assert models.not_ready() is None
        for assistant in (opened, late):
            made = assistant.engine.stats().recordings
            assert made > 0
            answer = assistant.ask(None, "What is it?", max_new_tokens=3)
            assert answer.usage.completion_tokens > 0
            assert assistant.engine.stats().recordings == made
    finally:
        models.stop()
