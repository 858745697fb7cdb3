"""`vip-llava models`: the list of models, and descriptions of folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vip_llava.cli.models import PUBLISHED, describe_folder
from vip_llava.errors import CheckpointError

Program = Callable[..., Any]


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIP_LLAVA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def listed(program: Program) -> dict[str, Any]:
    ran = program("models", "--json")
    assert ran.code == 0, ran.err
    return {row["name"]: row for row in json.loads(ran.out)}


def test_the_default_and_every_published_name_are_listed(program: Program) -> None:
    rows = listed(program)
    assert list(rows) == ["default", *(name for name, _, _ in PUBLISHED)]
    assert rows["default"]["state"] == "downloaded on first use"
    assert 80 < rows["default"]["megabytes"] < 110
    assert all(rows[name]["state"] == "not downloaded" for name, _, _ in PUBLISHED)


def test_the_table_shows_the_same(program: Program) -> None:
    out = program("models").out
    assert "default" in out and all(name in out and text in out for name, _, text in PUBLISHED)


def test_a_default_model_in_the_cache_is_ready(program: Program, own_caches: Path) -> None:
    folder = own_caches / "cache" / "smollm2-135m-instruct"
    folder.mkdir(parents=True)
    (folder / "complete.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(2_000_000))
    row = listed(program)["default"]
    assert row["state"] == f"ready in {folder}" and row["megabytes"] == 2


def test_a_name_in_the_hub_cache_has_its_size(program: Program, own_caches: Path) -> None:
    folder = own_caches / "hub" / "models--llava-hf--vip-llava-7b-hf"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "config.json").write_text("{}")
    (folder / "blobs").mkdir()
    (folder / "blobs" / "1").write_bytes(bytes(3_000_000))
    row = listed(program)["llava-hf/vip-llava-7b-hf"]
    assert (row["state"], row["megabytes"]) == ("in the hub cache", 3)


@pytest.mark.parametrize(
    ("files", "layout"),
    [
        (
            {"config.json": {"model_type": "vipllava", "text_config": {"model_type": "llama"}}},
            "Hugging Face",
        ),
        ({"config.json": {"model_type": "llava", "mm_projector_type": "mlp2x_gelu"}}, "original"),
        ({"config.json": {"model_type": "llava_llama", "mm_vision_tower": "x"}}, "original"),
        (
            {"adapter_config.json": {}, "config.json": {"model_type": "llava"}},
            "LoRA (needs --base)",
        ),
        (
            {"mm_projector.bin": {}, "config.json": {"model_type": "llava"}},
            "projector (needs --base)",
        ),
        (
            {"mm_projector.safetensors": {}, "config.json": {"model_type": "llava_llama"}},
            "projector (needs --base)",
        ),
        ({"config.json": {"model_type": "bert"}}, "other (bert)"),
    ],
)
def test_a_folder_is_described(tmp_path: Path, files: dict[str, Any], layout: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert describe_folder(tmp_path).layout == layout


def test_the_tiny_model_is_described(tiny_model_folder: Path) -> None:
    row = describe_folder(tiny_model_folder)
    assert (row.layout, row.backbone) == ("Hugging Face", "llama 2 layers width 32")


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_without_a_model_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        describe_folder(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        describe_folder(tmp_path / "none")
