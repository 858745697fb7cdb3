"""Recipes that name any registered vision tower and its feature layers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    Dinov2Config,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
    VipLlavaForConditionalGeneration,
)

from vip_llava.errors import CheckpointError
from vip_llava.models.loading import load_model
from vip_llava.training.recipes.model_init import load_initial_model
from vip_llava.training.recipes.plan import build_meta_model
from vip_llava.training.recipes.recipe import Recipe
from vip_llava.training.recipes.recipe_files import load_recipe
from vip_llava.training.run import run

TUTORIAL = Path(__file__).parents[2] / "recipes" / "tutorial" / "tiny.yaml"
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 56,
}
TOWERS: dict[str, Any] = {
    "siglip": SiglipVisionConfig(**SIZES, intermediate_size=64, patch_size=14),
    "dinov2": Dinov2Config(**SIZES, patch_size=14),
}


@pytest.fixture
def folders(tmp_path: Path, tiny_model_folder: Path) -> dict[str, str]:
    """Folders of a tiny language model with a tokenizer, and of each tower."""
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(text).save_pretrained(tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_model_folder / name, tmp_path / "base" / name)
    for name, config in TOWERS.items():
        auto: Any = AutoModel
        auto.from_config(config).save_pretrained(tmp_path / name)
    return {name: str(tmp_path / name) for name in ("base", *TOWERS)}


def recipe(model: dict[str, Any], **changes: Any) -> Recipe:
    values = load_recipe(TUTORIAL, {"steps": 2, "save.every": 0, "log.samples": 0}).resolved()
    return Recipe.model_validate(
        {**values, "model": {"template": "llava_v1", "aspect": "pad", **model}, **changes}
    )


@pytest.mark.parametrize(
    ("tower", "features", "kind", "width"),
    [
        ("siglip", [-1, -3], LlavaForConditionalGeneration, 64),
        ("siglip", -2, LlavaForConditionalGeneration, 32),
        ("dinov2", [-1, 1, 0], VipLlavaForConditionalGeneration, 96),
    ],
)
def test_a_new_projector_reads_the_features_that_a_recipe_names(
    tower: str,
    features: list[int] | int,
    kind: Any,
    width: int,
    folders: dict[str, str],
    tmp_path: Path,
) -> None:
    made = recipe(
        {
            "base": folders["base"],
            "projector": "new",
            "tower": folders[tower],
            "features": features,
        }
    )
    initial = load_initial_model(made, tmp_path / "run", dtype=torch.float32)
    model: Any = initial.model
    assert type(model) is kind and model.model.multi_modal_projector.linear_1.in_features == width
    assert initial.processor.tokens_per_view == model.config.image_seq_length == 16
    norm = getattr(model.model.multi_modal_projector, "projector_layernorm", None)
    assert isinstance(norm, torch.nn.LayerNorm) == isinstance(features, list)
    outline: Any = build_meta_model(made)
    assert outline.config.image_seq_length == 16 and type(outline) is kind
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    whole: Any = AutoModel.from_pretrained(folders[tower]).eval()
    with torch.no_grad():
        states = whole(pixels, output_hidden_states=True).hidden_states
        picked = [
            states[layer] for layer in (features if isinstance(features, list) else [features])
        ]
        first = 1 if tower == "dinov2" else 0
        want = model.model.multi_modal_projector(torch.cat([s[:, first:] for s in picked], -1))
        got = torch.stack(list(model.get_image_features(pixel_values=pixels).pooler_output))
    assert torch.equal(got, want)


@pytest.mark.parametrize("tower", list(TOWERS))
def test_a_run_trains_the_tower_and_its_result_loads(
    tower: str, folders: dict[str, str], tmp_path: Path
) -> None:
    made = recipe(
        {
            "base": folders["base"],
            "projector": "new",
            "tower": folders[tower],
            "features": [-2, -3],
        },
        train={"parts": ["projector", "language", "tower"]},
    )
    run(made, tmp_path / "out")
    model, processor = load_model(tmp_path / "out", device="cpu")
    assert processor.tokens_per_view == 16
    before = AutoModel.from_pretrained(folders[tower]).state_dict()
    after = model.get_submodule("model.vision_tower").state_dict()
    assert not torch.equal(*(s["embeddings." + _patches(tower)] for s in (before, after)))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vision_config"]["model_type"] == TOWERS[tower].model_type


def _patches(tower: str) -> str:
    return "patch_embedding.weight" if tower == "siglip" else "patch_embeddings.projection.weight"


def test_layers_and_layouts_that_a_tower_does_not_have(
    folders: dict[str, str], tmp_path: Path
) -> None:
    model = {"base": folders["base"], "projector": "new", "tower": folders["siglip"]}
    with pytest.raises(CheckpointError, match="hidden state -8 of a vision tower with 4 layers"):
        load_initial_model(recipe(model), tmp_path / "a", dtype=torch.float32)
    original = recipe({**model, "features": -2}, save={"layout": "original"})
    with pytest.raises(CheckpointError, match="CLIP towers only"):
        load_initial_model(original, tmp_path / "b", dtype=torch.float32)
