"""The scripts of the project: ablations change what they name, and rows are as described."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from default_model.scenes.mixture_config import MixtureConfig
from default_model.scenes.photos import read_regions
from vip_llava.prompting.processor import Processor

FOLDER = Path(__file__).resolve().parents[1]


@pytest.fixture
def script() -> Iterator[Callable[[str], Any]]:
    """`script("ablations")` imports a script of the project by its path."""
    before = set(sys.modules)

    def opened(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    yield opened
    for name in {"ablations", "ragged_rows", "train"} - before:
        sys.modules.pop(name, None)


def test_a_box_in_words_is_not_drawn(
    script: Callable[[str], Any], labelled_folder: Path, lite_processor: Processor
) -> None:
    ablations = script("ablations")
    photos = list(read_regions(labelled_folder))
    settings = MixtureConfig(
        shares={"whole": 1.0}, rows={"whole": 4}, text_tokens={"whole": 250}, mosaic_share=0.0
    )
    made = {}
    for name in ("no-close-view", "in-words"):
        mix = ablations.Mix(photos, [], lite_processor, lite_processor.focal, settings, 3)
        mix.variant, mix.source.captioned = ablations.VARIANTS[name], []
        made[name] = mix.batch(0)
    texts = {
        name: [lite_processor.decode(ids) for ids in batch["input_ids"]]
        for name, batch in made.items()
    }
    box = re.compile(r"\[\d+, \d+, \d+, \d+\]")
    asked = [text for text in texts["in-words"] if "marked" not in text and "this" not in text]
    assert any(box.search(text) for text in asked)
    assert not any(box.search(text) for text in texts["no-close-view"])
    # The same scenes, with and without a mark.
    drawn, unwrap = (made[name]["views"].astype(int) for name in ("no-close-view", "in-words"))
    assert drawn.shape == unwrap.shape == (4, 1, 64, 64, 3)
    assert np.abs(drawn[0] - unwrap[0]).max() > 30
    # Marks are asked about by name alone, whatever else the default model is asked.
    scene = mix.source.scene("whole", np.random.default_rng(0))
    tasks = {getattr(task, "func", task).__name__ for task in mix.tasks("whole", scene)}
    assert tasks == {"name_region", "is_it", "choose_word"}
    assert ablations.in_words("What is <region:1>?", (32, 12, 64, 48), (64, 48)) == (
        "What is the object at [50, 25, 100, 100]?"
    )


def test_only_the_last_depth_is_left(script: Callable[[str], Any]) -> None:
    from vip_llava.models.default.efficientnet import EfficientNetLiteConfig, EfficientNetLiteTower

    config = EfficientNetLiteConfig()
    torch.manual_seed(0)
    tower = EfficientNetLiteTower(config).eval()
    with torch.no_grad():
        before = tower(torch.rand(1, 3, 64, 64)).hidden_states[0]
        script("ablations").only_last_depth(tower)
        torch.manual_seed(0)
        after = tower(torch.rand(1, 3, 64, 64)).hidden_states[0]
    assert before[..., : -config.head_channels].abs().sum() > 0
    assert after[..., : -config.head_channels].abs().sum() == 0
    assert after[..., -config.head_channels :].abs().sum() > 0


def test_the_table_tells_what_was_not_trained_with(
    script: Callable[[str], Any], tmp_path: Path
) -> None:
    facts = {"steps": 300, "rows": 38400, "loss": 1.0, "groups": {"box": [8, 10], "arrow": [3, 10]}}
    (tmp_path / "four-shapes.json").write_text(json.dumps(facts))
    lines = script("ablations").table(tmp_path).splitlines()[2:]
    assert "| box | 0.800 [0.490, 0.943] |" in lines[0] and "38,400" in lines[0]
    assert lines[1].startswith("| | | arrow (not trained with) | 0.300")


def test_a_photo_becomes_a_conversation_about_its_things(
    script: Callable[[str], Any], labelled_folder: Path
) -> None:
    photo = next(photo for photo in read_regions(labelled_folder) if photo.captions)
    messages = script("ragged_rows").conversation(photo, np.random.default_rng(0))
    answers = [message.text for message in messages[1::2]]
    assert answers[0] in photo.captions
    assert answers[1:] == [each.label for each in photo.objects]
    assert [len(message.images) for message in messages] == [1, *[0] * (len(messages) - 1)]
    assert all("rectangle" in message.text for message in messages[2::2])
