"""Names of weights in each layout, and the reader of `.bin` files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vip_llava.errors import CheckpointError
from vip_llava.models.layouts import (
    ProjectorStyle,
    canonical_from_hub,
    canonical_from_original,
    canonical_to_hub,
    canonical_to_original,
    projector_style,
    read_bin,
    rename,
)

FIVE = ProjectorStyle(linears=2, norm=True)
ONE = ProjectorStyle(linears=2, norm=False)
LINEAR = ProjectorStyle(linears=1, norm=False, bare=True)

ORIGINAL = [
    ("model.embed_tokens.weight", "model.language_model.embed_tokens.weight", FIVE),
    (
        "model.layers.0.self_attn.q_proj.weight",
        "model.language_model.layers.0.self_attn.q_proj.weight",
        FIVE,
    ),
    ("model.norm.weight", "model.language_model.norm.weight", FIVE),
    ("lm_head.weight", "lm_head.weight", FIVE),
    (
        "model.mm_projector.clip_layernorm.bias",
        "model.multi_modal_projector.projector_layernorm.bias",
        FIVE,
    ),
    (
        "model.mm_projector.final_linear.0.weight",
        "model.multi_modal_projector.linear_1.weight",
        FIVE,
    ),
    (
        "model.mm_projector.final_linear.2.bias",
        "model.multi_modal_projector.linear_2.bias",
        FIVE,
    ),
    ("model.mm_projector.0.weight", "model.multi_modal_projector.linear_1.weight", ONE),
    ("model.mm_projector.2.weight", "model.multi_modal_projector.linear_2.weight", ONE),
    ("model.mm_projector.weight", "model.multi_modal_projector.linear_1.weight", LINEAR),
    (
        "model.vision_tower.vision_tower.vision_model.pre_layrnorm.weight",
        "model.vision_tower.pre_layrnorm.weight",
        FIVE,
    ),
]


@pytest.mark.parametrize(("original", "canonical", "style"), ORIGINAL)
def test_original_names_both_ways(original: str, canonical: str, style: ProjectorStyle) -> None:
    assert canonical_from_original(original) == canonical
    assert canonical_to_original(canonical, style) == original


HUB = [
    "language_model.lm_head.weight",
    "language_model.model.layers.3.mlp.up_proj.weight",
    "multi_modal_projector.linear_2.bias",
    "vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight",
]


@pytest.mark.parametrize("name", HUB)
def test_hub_names_both_ways(name: str) -> None:
    canonical = canonical_from_hub(name)
    assert canonical is not None
    assert canonical_to_hub(canonical) == name
    assert canonical_from_hub(canonical) == canonical  # as transformers 5 saves them


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.mm_projector.0.weight",
        "module.model.mm_projector.0.weight",
        "mm_projector.0.weight",
    ],
)
def test_prefixes_of_training_libraries_are_removed(name: str) -> None:
    assert canonical_from_original(name) == "model.multi_modal_projector.linear_1.weight"


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.vision_tower.vision_tower.vision_model.embeddings.position_ids",
    ],
)
def test_computed_buffers_are_left_out(name: str) -> None:
    assert canonical_from_original(name) is None


@pytest.mark.parametrize(
    "name", ["optimizer.state", "model.mm_projector.1.weight", "transformer.h"]
)
def test_an_unexpected_name_is_an_error(name: str) -> None:
    with pytest.raises(CheckpointError, match="unexpected weight"):
        canonical_from_original(name)


def test_all_unexpected_names_are_listed() -> None:
    tensors = {name: torch.zeros(1) for name in ("lm_head.weight", "foo.a", "foo.b")}
    with pytest.raises(CheckpointError, match=r"foo\.a, foo\.b"):
        rename(tensors, canonical_from_original, Path("folder"))


def test_two_names_for_one_weight_are_an_error() -> None:
    tensors = {name: torch.zeros(1) for name in ("lm_head.weight", "language_model.lm_head.weight")}
    with pytest.raises(CheckpointError, match="same weight"):
        rename(tensors, canonical_from_hub, Path("folder"))


@pytest.mark.parametrize(
    ("names", "type_name", "style"),
    [
        (["projector_layernorm.weight", "linear_1.weight", "linear_2.weight"], None, FIVE),
        (["linear_1.weight", "linear_1.bias"], "linear", LINEAR),
        (["linear_1.weight"], "mlp1x_gelu", ProjectorStyle(1, False)),
        ([f"linear_{n}.weight" for n in (1, 2, 3)], "mlp3x_gelu", ProjectorStyle(3, False)),
    ],
)
def test_projector_style(names: list[str], type_name: str | None, style: ProjectorStyle) -> None:
    canonical = [f"model.multi_modal_projector.{name}" for name in names]
    assert projector_style(canonical, type_name) == style


def test_a_projector_with_a_gap_is_an_error() -> None:
    with pytest.raises(CheckpointError, match="linear_1"):
        projector_style(["model.multi_modal_projector.linear_2.weight"])


def test_bin_files_are_read(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(3)}, tmp_path / "new.bin")
    torch.save({"a": torch.arange(3)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("new.bin", "old.bin"):
        assert read_bin(tmp_path / name)["a"].tolist() == [0, 1, 2]


class Harmful:
    """An object whose unpickling has a side effect."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("harm"),))  # type: ignore[return-value]


def test_code_in_a_bin_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"a": Harmful()}, tmp_path / "bad.bin")
    with pytest.raises(CheckpointError, match=r"bad\.bin"):
        read_bin(tmp_path / "bad.bin")
    assert not Path("harm").exists()


@pytest.mark.parametrize("content", [b"", b"not a file of weights", b"PK\x03\x04broken"])
def test_a_damaged_bin_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bad\.bin"):
        read_bin(tmp_path / "bad.bin")


def test_a_bin_file_without_tensors_is_an_error(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.bin")
    with pytest.raises(CheckpointError, match="dictionary"):
        read_bin(tmp_path / "list.bin")
