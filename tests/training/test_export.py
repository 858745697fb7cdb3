"""From a start to a folder and back: whole models in both layouts, projectors, adapters, cards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vip_llava.errors import CheckpointError
from vip_llava.models.loading import load_model, load_weights
from vip_llava.models.quantize import Int4Linear
from vip_llava.training.adapters import add_adapter
from vip_llava.training.recipes.model_init import load_initial_model
from vip_llava.training.recipes.recipe import AdapterConfig, Recipe
from vip_llava.training.results import export
from vip_llava.training.results.model_card import RunSummary, model_card

Make = Callable[..., Path]
VALUES: dict[str, Any] = {
    "about": "a try",
    "model": {"tiny": {"width": 32, "image": 56, "vocabulary": 320}},
    "data": {"files": ["rows.jsonl"]},
    "train": {"parts": ["projector"]},
    "optimizer": {"lr": 1e-3},
    "batch": {"size": 8, "per_device": 2},
    "precision": "float32",
}
TEXTS = ["What is this?", "A cat, and a cup of coffee on a red saucer."]


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate({**VALUES, **changes})


def start(work: Path, made: Recipe | None = None) -> Any:
    return load_initial_model(made or recipe(), work, dtype=torch.float32, texts=TEXTS)


def logits(model: Any) -> torch.Tensor:
    token, count = model.config.image_token_id, model.config.image_seq_length
    ids = torch.tensor([[1, *[token] * count, 20, 21]])
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    model.train(False)
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=ids, pixel_values=pixels).logits
    return result[..., :300]


def stir(model: Any) -> None:
    """Change all trainable weights."""
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def new_on(split: dict[str, Path], **changes: Any) -> Recipe:
    values = {"base": str(split["base"]), "tower": str(split["tower"]), "projector": "new"}
    return recipe(model={**values, **changes})


def test_a_tiny_start_is_made_once(tmp_path: Path) -> None:
    first = start(tmp_path / "one")
    again = start(tmp_path / "two")
    kept = start(tmp_path / "one", recipe(seed=5))
    for other in (again, kept):
        assert torch.equal(logits(first.model), logits(other.model))
    different = start(tmp_path / "three", recipe(seed=5))
    assert not torch.equal(logits(first.model), logits(different.model))
    assert first.processor.tokens_per_view == 16 and first.projector_config is None


@pytest.mark.parametrize("layout", ["hf", "original"])
def test_a_whole_model_in_both_layouts(tmp_path: Path, layout: Any) -> None:
    begun = start(tmp_path)
    begun.model.requires_grad_(True)
    stir(begun.model)
    want = logits(begun.model)
    arguments = (begun.model, begun.processor, begun.folders)
    target = export.export_model(*arguments, tmp_path / "out", layout=layout)
    model, processor = load_model(target, device="cpu")
    assert torch.equal(logits(model), want)
    assert processor.to_config() == begun.processor.to_config()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "tiny"]
    with pytest.raises(CheckpointError, match="already exists"):
        export.export_model(*arguments, target)
    # and round through the other layout
    from vip_llava.models.convert import convert

    other = convert(target, tmp_path / "other", "original" if layout == "hf" else "hf")
    assert torch.equal(logits(load_weights(other, device="cpu")), want)
    back = convert(other, tmp_path / "back", layout)
    assert (
        load_file(back / "model.safetensors").keys()
        == load_file(target / "model.safetensors").keys()
    )
    assert torch.equal(logits(load_weights(back, device="cpu")), want)


def test_a_whole_model_in_half_precision(tmp_path: Path) -> None:
    begun = start(tmp_path)
    target = export.export_model(
        begun.model, begun.processor, begun.folders, tmp_path / "out", dtype=torch.bfloat16
    )
    kinds = {tensor.dtype for tensor in load_file(target / "model.safetensors").values()}
    assert kinds == {torch.bfloat16}


@pytest.mark.parametrize("features", [(-2, -5, -8, -11, 6), -2])
def test_stages_hand_on_a_projector(split: dict[str, Path], tmp_path: Path, features: Any) -> None:
    begun = start(tmp_path / "run1", new_on(split, features=features))
    assert begun.processor.template.name == "plain" and begun.base == str(split["base"])
    begun.model.requires_grad_(False)
    begun.model.get_submodule("model.multi_modal_projector").requires_grad_(True)
    stir(begun.model)
    config = begun.projector_config
    assert config is not None
    folder = export.export_projector(begun.model, config, tmp_path / "stage1", dtype=None)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "mm_projector.safetensors"]
    second = start(
        tmp_path / "run2", new_on(split, projector=str(folder), template="llava_v1", aspect="pad")
    )
    assert torch.equal(logits(second.model), logits(begun.model))
    assert second.processor.template.name == "llava_v1"
    assert second.processor.geometry.mode == "pad"
    width = second.model.get_submodule("model.multi_modal_projector.linear_1").in_features
    assert width == 32 * (1 if features == -2 else 5)
    whole = export.export_model(second.model, second.processor, second.folders, tmp_path / "stage2")
    model, processor = load_model(whole, device="cpu")
    assert torch.equal(logits(model), logits(begun.model))
    assert processor.template.name == "llava_v1"


def test_a_projector_alone_needs_its_tower(split: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.tower"):
        start(tmp_path / "run", new_on(split, tower=None))
    (split["base"] / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no hidden_size"):
        start(tmp_path / "run", new_on(split))


@pytest.mark.parametrize("layout", ["hf", "original"])
@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_adapter_to_merged_model(tmp_path: Path, layout: Any, kind: str) -> None:
    begun = start(tmp_path)
    base = begun.folders[0]
    settings = AdapterConfig.model_validate({"kind": kind, "rank": 4, "alpha": 8, "dropout": 0})
    model = add_adapter(begun.model, settings)
    assert any(isinstance(m, Int4Linear) for m in model.modules()) == (kind == "qlora")
    stir(model)
    folder = export.export_adapter(model, begun.processor, tmp_path / "adapter", base=str(base))
    merged = export.merge_folder(folder, base, tmp_path / "merged", layout=layout)
    loaded, processor = load_model(merged, device="cpu")
    assert processor.to_config() == begun.processor.to_config()
    by_door = load_weights(folder, base=base, device="cpu")
    assert torch.equal(logits(loaded), logits(by_door))
    if kind == "lora":
        assert torch.allclose(logits(loaded), logits(model), atol=1e-4)
    with pytest.raises(CheckpointError, match="is not an adapter"):
        export.merge_folder(base, base, tmp_path / "other")


def test_an_adapter_on_a_language_model(split: dict[str, Path], tmp_path: Path) -> None:
    """As the original's LoRA folders: the adapter brings projector and settings itself."""
    begun = start(tmp_path / "run", new_on(split, template="llava_v1", aspect="pad"))
    model = add_adapter(begun.model, AdapterConfig(kind="lora", rank=4, alpha=8, dropout=0))
    stir(model)
    folder = export.export_adapter(
        model,
        begun.processor,
        tmp_path / "adapter",
        base=begun.base,
        config=begun.projector_config,
    )
    loaded, processor = load_model(
        folder, base=split["base"], vision_tower=split["tower"], device="cpu"
    )
    assert torch.allclose(logits(loaded), logits(model), atol=1e-4)
    assert processor.template.name == "llava_v1"
    merged = export.merge_folder(
        folder, split["base"], tmp_path / "merged", vision_tower=split["tower"]
    )
    assert torch.equal(logits(load_weights(merged, device="cpu")), logits(loaded))


def summary(result: str = "model") -> RunSummary:
    return RunSummary(
        result,
        steps=1200,
        rows=153600,
        loss=0.8125,
        trainable={"projector": 1000},
        failures={"failed": 3, "reasons": {"the image is missing": 3}},
        versions={"torch": "2.13"},
    )


def test_the_model_card_says_what_is_known() -> None:
    card = model_card(recipe(), summary(), "owner/model")
    header, _, text = card.removeprefix("---\n").partition("---\n")
    assert "license: other" in header and "base_model" not in header
    assert 'load("owner/model")' in text and "a small random model" in text
    for word in ("`rows.jsonl`", "153,600 rows", "Bad rows: 3", "3 x the image", "0.001",
                 "| 1,200 |", "0.8125", "trainable parameters, projector | 1,000", "torch | 2.13"):  # fmt: skip
        assert word in text, word
    adapted = recipe(
        model={"start": "mucai/vip-llava-7b", "tower": "owner/tower"},
        train={"parts": ["projector"], "adapter": {"kind": "qlora"}},
    )
    card = model_card(adapted, summary("adapter"), "me/mine")
    assert "base_model: mucai/vip-llava-7b" in card and "license: llama2" in card
    assert 'base="mucai/vip-llava-7b", vision_tower="owner/tower")' in card
    assert "rank 128, alpha 256, on a 4-bit base" in card and "- lora" in card
    assert "input of stage 2" in model_card(adapted, summary("projector"), "x")


def test_only_complete_folders_are_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    calls: list[dict[str, Any]] = []

    class Hub:
        def create_repo(self, repository: str, **facts: Any) -> str:
            calls.append({"repository": repository, **facts})
            return f"hub/{repository}"

        def upload_folder(self, **facts: Any) -> None:
            calls.append(facts)

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    begun = start(tmp_path)
    target = export.export_model(begun.model, begun.processor, begun.folders, tmp_path / "out")
    assert export.missing_files(target) == ["README.md (the model card)"]
    with pytest.raises(CheckpointError, match=r"lacks README\.md"):
        export.push_to_hub(target, "me/mine")
    (target / "README.md").write_text(model_card(recipe(), summary(), "me/mine"))
    assert export.missing_files(target) == [] and not calls
    (target / "old.bin").touch()
    with pytest.raises(CheckpointError, match=r"old\.bin: only safetensors"):
        export.push_to_hub(target, "me/mine")
    (target / "old.bin").unlink()
    assert export.push_to_hub(target, "me/mine") == "hub/me/mine"
    assert calls[0]["private"] and calls[1]["folder_path"] == target
    (target / "model.safetensors").unlink()
    (target / "tokenizer.json").unlink()
    lacking = export.missing_files(target)
    assert "model.safetensors" in lacking and "tokenizer.json or tokenizer.model" in lacking


def test_a_start_that_is_only_a_part_is_told_in_the_words_of_a_recipe(
    split: dict[str, Path], tmp_path: Path
) -> None:
    adapter, projector = tmp_path / "adapter", tmp_path / "projector"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    projector.mkdir()
    (projector / "config.json").write_text('{"model_type": "llava_llama", "mm_hidden_size": 8}')
    for folder, words in (
        (split["base"], "as model.base"),
        (adapter, "as model.adapter"),
        (projector, "as model.projector"),
    ):
        with pytest.raises(CheckpointError, match=words):
            start(tmp_path / "work", recipe(model={"start": str(folder)}))
