"""Fixtures for the tests of training: tiny models (see `tiny.py`) and folders for stage 1."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# `tiny.py` is also a script, so it is not part of a package.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def tiny_vip() -> Any:
    """A five-layer VipLlava: vocabulary 100, `<image>` is 99, a view is 4 tokens."""
    from tiny import vip_llava

    return vip_llava()


@pytest.fixture(params=["vip_llava", "llava"])
def tiny_model(request: pytest.FixtureRequest) -> Any:
    """A five-layer VipLlava, and a one-layer Llava."""
    import tiny

    return getattr(tiny, request.param)()


@pytest.fixture
def split(
    make_original: Callable[..., Path], tiny_model_folder: Path, tmp_path: Path
) -> dict[str, Path]:
    """A language model and an image encoder in folders of their own, as stage 1 needs them."""
    from safetensors.torch import load_file, save_file

    whole = make_original(5)
    weights = load_file(whole / "model.safetensors")
    config = json.loads((whole / "config.json").read_text())
    base, tower = tmp_path / "base", tmp_path / "tower"
    for folder in (base, tower):
        folder.mkdir()
    prefix = "model.vision_tower.vision_tower."
    kept = {k: v for k, v in weights.items() if "mm_projector" not in k and prefix not in k}
    save_file(kept, base / "model.safetensors")
    plain = {k: v for k, v in config.items() if not k.startswith("mm_")}
    (base / "config.json").write_text(json.dumps({**plain, "model_type": "llama"}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_model_folder / name, base / name)
    seen = {k.removeprefix(prefix): v for k, v in weights.items() if prefix in k}
    save_file(seen, tower / "model.safetensors")
    vision = json.loads((whole / "vision_config.json").read_text())
    (tower / "config.json").write_text(json.dumps({**vision, "model_type": "clip_vision_model"}))
    return {"base": base, "tower": tower}
