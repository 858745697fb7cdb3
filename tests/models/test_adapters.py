"""Projector and LoRA folders on a base: language model or multimodal, merged or kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vip_llava.errors import CheckpointError
from vip_llava.models.loading import load_weights

Make = Callable[..., Path]
RANK, ALPHA = 4, 8


@pytest.fixture
def parts(make_original: Make, tmp_path: Path) -> dict[str, Any]:
    """A model in the original's layout split into language model, tower, projector and LoRA."""
    whole = make_original(5)
    weights = load_file(whole / "model.safetensors")
    config = json.loads((whole / "config.json").read_text())
    llm = {k: v for k, v in weights.items() if "mm_projector" not in k and "vision_tower" not in k}
    tower = {
        k.removeprefix("model.vision_tower.vision_tower."): v
        for k, v in weights.items()
        if "vision_tower" in k
    }
    projector = {k: v for k, v in weights.items() if "mm_projector" in k}
    folders = {name: tmp_path / name for name in ("base", "tower", "projector", "lora")}
    for folder in folders.values():
        folder.mkdir()
    save_file(llm, folders["base"] / "model.safetensors")
    plain = {k: v for k, v in config.items() if not k.startswith("mm_")}
    (folders["base"] / "config.json").write_text(json.dumps({**plain, "model_type": "llama"}))
    save_file(tower, folders["tower"] / "model.safetensors")
    vision = json.loads((whole / "vision_config.json").read_text())
    vision["model_type"] = "clip_vision_model"
    (folders["tower"] / "config.json").write_text(json.dumps(vision))
    torch.save(projector, folders["projector"] / "mm_projector.bin")
    for name in ("projector", "lora"):
        (folders[name] / "config.json").write_text(json.dumps(config))
    extras = {f"base_model.model.{k}": v for k, v in projector.items()}
    torch.save(extras, folders["lora"] / "non_lora_trainables.bin")
    lora = lora_weights(llm)
    save_file(lora, folders["lora"] / "adapter_model.safetensors")
    write_adapter_config(folders["lora"])
    return {**folders, "whole": whole, "llm": llm, "lora_weights": lora}


def write_adapter_config(folder: Path, **settings: Any) -> None:
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": ["q_proj", "down_proj"],
        "bias": "none",
        "base_model_name_or_path": "lmsys/vicuna-7b-v1.5",
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        **settings,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def lora_weights(llm: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    lora = {}
    for name, weight in llm.items():
        if name.endswith(("q_proj.weight", "down_proj.weight")):
            stem = "base_model.model." + name.removesuffix(".weight")
            out, width = weight.shape
            lora[f"{stem}.lora_A.weight"] = torch.randn(RANK, width, generator=generator) * 0.2
            lora[f"{stem}.lora_B.weight"] = torch.randn(out, RANK, generator=generator) * 0.2
    return lora


def logits(model: Any) -> torch.Tensor:
    token, count = model.config.image_token_id, model.config.image_seq_length
    ids = torch.tensor([[1, *[token] * count, 20, 21]])
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out: torch.Tensor = model(input_ids=ids, pixel_values=pixels).logits
    return out


def test_projector_on_a_language_model(parts: dict[str, Any]) -> None:
    model = load_weights(
        parts["projector"], base=parts["base"], vision_tower=parts["tower"], device="cpu"
    )
    assert torch.equal(logits(model), logits(load_weights(parts["whole"], device="cpu")))


def merged_by_hand(parts: dict[str, Any]) -> Path:
    """The whole checkpoint with W + (alpha / r) B A instead of W."""
    folder: Path = parts["whole"]
    weights = load_file(folder / "model.safetensors")
    lora = parts["lora_weights"]
    for name in lora:
        if name.endswith("lora_A.weight"):
            stem = name.removesuffix(".lora_A.weight")
            change = lora[f"{stem}.lora_B.weight"] @ lora[name] * (ALPHA / RANK)
            weights[stem.removeprefix("base_model.model.") + ".weight"] += change
    save_file(weights, folder / "model.safetensors")
    return folder


def test_lora_merged_and_kept(parts: dict[str, Any]) -> None:
    plain = logits(load_weights(parts["whole"], device="cpu"))
    want = logits(load_weights(merged_by_hand(parts), device="cpu"))
    places = {"base": parts["base"], "vision_tower": parts["tower"], "device": "cpu"}
    merged = load_weights(parts["lora"], **places)
    kept = load_weights(parts["lora"], merge_adapter=False, **places)
    assert type(merged) is type(kept)
    assert torch.allclose(logits(merged), want, atol=1e-4)
    assert torch.allclose(logits(kept), want, atol=1e-4)
    assert not torch.allclose(plain, want, atol=1e-2)
    assert not any("lora_" in name for name, _ in merged.named_parameters())
    adapted = {n.split(".lora_")[0] for n, _ in kept.named_parameters() if ".lora_" in n}
    assert adapted and all(name.startswith("model.language_model.") for name in adapted)


def test_a_merged_model_can_be_saved_and_loaded(parts: dict[str, Any], tmp_path: Path) -> None:
    merged = load_weights(
        parts["lora"], base=parts["base"], vision_tower=parts["tower"], device="cpu"
    )
    merged.save_pretrained(tmp_path / "saved")
    again = load_weights(tmp_path / "saved", device="cpu")
    assert torch.equal(logits(again), logits(merged))


def test_lora_on_a_multimodal_base(parts: dict[str, Any]) -> None:
    by_llm = load_weights(
        parts["lora"], base=parts["base"], vision_tower=parts["tower"], device="cpu"
    )
    by_whole = load_weights(parts["lora"], base=parts["whole"], device="cpu")
    assert torch.equal(logits(by_llm), logits(by_whole))


def test_adapters_with_names_of_transformers_load(parts: dict[str, Any]) -> None:
    want = logits(load_weights(parts["lora"], base=parts["whole"], device="cpu"))
    renamed = {
        k.replace("base_model.model.model.", "base_model.model.model.language_model."): v
        for k, v in parts["lora_weights"].items()
    }
    save_file(renamed, parts["lora"] / "adapter_model.safetensors")
    assert torch.equal(logits(load_weights(parts["lora"], base=parts["whole"], device="cpu")), want)


def test_start_and_end_tokens_extend_the_vocabulary(parts: dict[str, Any]) -> None:
    stored = torch.load(parts["projector"] / "mm_projector.bin", weights_only=True)
    words = parts["llm"]["model.embed_tokens.weight"]
    new = torch.ones(2, words.shape[1])
    stored["model.embed_tokens.weight"] = torch.cat([words, new])
    torch.save(stored, parts["projector"] / "mm_projector.bin")
    model: Any = load_weights(
        parts["projector"], base=parts["base"], vision_tower=parts["tower"], device="cpu"
    )
    assert model.config.text_config.vocab_size == 402
    assert torch.equal(model.get_input_embeddings().weight[400:], new)
    average = model.lm_head.weight[:400].mean(dim=0)
    assert torch.allclose(model.lm_head.weight[401], average, atol=1e-6)


def test_a_base_is_needed(parts: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="vicuna"):
        load_weights(parts["lora"], device="cpu")
    with pytest.raises(CheckpointError, match="projector only"):
        load_weights(parts["projector"], device="cpu")
    with pytest.raises(CheckpointError, match="language model without"):
        load_weights(parts["base"], device="cpu")
    with pytest.raises(CheckpointError, match="itself a lora folder"):
        load_weights(parts["projector"], base=parts["lora"], device="cpu")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"peft_type": "LOHA"}, "only LORA"), ({"r": 3}, "another shape")],
)
def test_adapters_that_do_not_fit(
    parts: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    write_adapter_config(parts["lora"], **settings)
    with pytest.raises(CheckpointError, match=message):
        load_weights(parts["lora"], base=parts["whole"], device="cpu")


def test_missing_and_unexpected_adapter_weights(parts: dict[str, Any]) -> None:
    path = parts["lora"] / "adapter_model.safetensors"
    lora = dict(parts["lora_weights"])
    name = next(iter(lora))
    del lora[name]
    save_file(lora, path)
    with pytest.raises(CheckpointError, match=r"missing: .*_proj\.lora_"):
        load_weights(parts["lora"], base=parts["whole"], device="cpu")
    lora = dict(parts["lora_weights"])
    lora["base_model.model.model.layers.9.mlp.up_proj.lora_A.weight"] = torch.zeros(RANK, 32)
    save_file(lora, path)
    with pytest.raises(CheckpointError, match=r"no layers .*layers\.9"):
        load_weights(parts["lora"], base=parts["whole"], device="cpu")
