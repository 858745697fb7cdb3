"""Adapters from the first step to the exported model: saved, loaded, continued, merged.

Each test runs for each kind of base: full weights, 8 and 4 bits of this project, and 4 bits of
bitsandbytes (also on a CPU) if it is installed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vip_llava.errors import CheckpointError
from vip_llava.models.loading import load_weights
from vip_llava.models.quantize import Int4Linear, Int8Linear, Quantization, quantize_model
from vip_llava.training.adapters import (
    adapter_state,
    add_adapter,
    linear_names,
    load_adapter,
    merge_adapter,
    save_adapter,
)
from vip_llava.training.recipes.recipe import AdapterConfig

KINDS = ["lora", "qlora-8", "qlora-4", "qlora-4-bitsandbytes"]


def settings(kind: str = "lora", **changes: Any) -> AdapterConfig:
    name, *rest = kind.split("-")
    values = {"kind": name, "rank": 4, "alpha": 8, "dropout": 0.0, **changes}
    return AdapterConfig.model_validate(values | ({"bits": int(rest[0])} if rest else {}))


def base(folder: Path) -> Any:
    return load_weights(folder, device="cpu")


def adapted(folder: Path, kind: str, **changes: Any) -> Any:
    library: Any = "bitsandbytes" if kind.endswith("bitsandbytes") else "torch"
    if library == "bitsandbytes":
        pytest.importorskip("bitsandbytes")
    # peft initializes the adapter at random
    torch.manual_seed(3)
    return add_adapter(base(folder), settings(kind, **changes), library=library)


def batch(model: Any, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    token, count = model.config.image_token_id, model.config.image_seq_length
    words = torch.randint(5, 300, (2, 6), generator=generator)
    ids = torch.cat([torch.full((2, count), token), words], dim=1)
    labels = ids.masked_fill(ids == token, -100)
    pixels = torch.randn(2, 3, 56, 56, generator=generator)
    return {"input_ids": ids, "labels": labels, "pixel_values": pixels}


def logits(model: Any) -> torch.Tensor:
    model.train(False)
    with torch.no_grad():
        result: torch.Tensor = model(**batch(model)).logits
    return result


def learn(model: Any, steps: int = 3, seed: int = 1) -> list[float]:
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=2e-2)
    losses = []
    model.train()
    for _ in range(steps):
        loss = model(**batch(model, seed)).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses


def quantized(model: Any, kind: str) -> Any:
    """A loaded model, quantized as `kind` says below its adapters."""
    if kind != "lora":
        _, bits, *rest = kind.split("-")
        chosen: Any = Quantization(int(bits), "bitsandbytes" if rest else "torch")  # type: ignore[arg-type]
        quantize_model(model, chosen)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_only_adapter_and_projector_are_trained(tiny_model_folder: Path, kind: str) -> None:
    model = adapted(tiny_model_folder, kind)
    before = {n: t.clone() for n, t in model.state_dict().items() if isinstance(t, torch.Tensor)}
    start = logits(model)
    plain = quantized(base(tiny_model_folder), kind)
    assert torch.allclose(start, logits(plain), atol=1e-5), "a new adapter changes nothing"
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n.split(".")[1] for n in learning} == {"language_model", "multi_modal_projector"}
    assert all(".lora_" in n or ".modules_to_save." in n for n in learning)
    assert sum(".lora_A." in n for n in learning) == 14  # seven layers in each of two
    losses = learn(model)
    assert losses[-1] < losses[0]
    after = {n: t for n, t in model.state_dict().items() if n in before}
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed == {n for n in learning if n in before}


@pytest.mark.parametrize("kind", KINDS)
def test_saved_loaded_continued_and_merged(
    tiny_model_folder: Path, tmp_path: Path, kind: str
) -> None:
    model = adapted(tiny_model_folder, kind)
    learn(model)
    want = logits(model)
    folder = save_adapter(model, tmp_path / "adapter", base=str(tiny_model_folder))

    # loaded with the adapter as peft layers, on a base of the same bits
    kept = load_weights(folder, base=tiny_model_folder, device="cpu", merge_adapter=False)
    assert torch.allclose(logits(quantized(kept, kind)), want, atol=1e-5)

    # loaded to continue: the same next steps as without the interruption
    again = load_adapter(adapted(tiny_model_folder, kind), folder)
    assert torch.equal(logits(again), want)
    further = learn(model, seed=2)
    assert learn(again, seed=2) == further
    assert torch.equal(logits(again), logits(model))

    # merged by load_weights, and in place
    merged: Any = load_weights(folder, base=tiny_model_folder, device="cpu")
    assert not any("lora" in name for name, _ in merged.named_parameters())
    full = load_weights(folder, base=tiny_model_folder, device="cpu", merge_adapter=False)
    assert torch.allclose(logits(merged), logits(full), atol=1e-4)
    if kind == "lora":
        fresh = load_adapter(adapted(tiny_model_folder, kind), folder)
        assert torch.allclose(logits(merge_adapter(fresh)), want, atol=1e-4)
    else:
        with pytest.raises(CheckpointError, match="quantized base"):
            merge_adapter(model)

    # saved as a whole model
    merged.save_pretrained(tmp_path / "whole")
    assert torch.equal(logits(base(tmp_path / "whole")), logits(merged))


def test_the_base_is_quantized(tiny_model_folder: Path) -> None:
    for kind, layer in (("qlora-4", Int4Linear), ("qlora-8", Int8Linear)):
        model = adapted(tiny_model_folder, kind)
        assert sum(isinstance(m, layer) for m in model.modules()) == 14
        assert isinstance(model.lm_head, torch.nn.Linear)


def test_the_saved_files(tiny_model_folder: Path, tmp_path: Path) -> None:
    model = adapted(tiny_model_folder, "lora")
    folder = save_adapter(model, tmp_path / "adapter", base="owner/base")
    assert sorted(p.name for p in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["base_model_name_or_path"] == "owner/base"
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    assert set(config["target_modules"]) == set(linear_names(base(tiny_model_folder)))
    names = load_file(folder / "adapter_model.safetensors").keys()
    assert all(name.startswith("base_model.model.model.") for name in names)
    assert sum("multi_modal_projector" in name for name in names) == 6
    with pytest.raises(CheckpointError, match="owner/base"):
        load_weights(folder, device="cpu")
    with pytest.raises(CheckpointError, match="no adapter to save"):
        save_adapter(base(tiny_model_folder), tmp_path / "none", base=None)


def test_without_the_projector(tiny_model_folder: Path, tmp_path: Path) -> None:
    model = add_adapter(base(tiny_model_folder), settings(), projector=False)
    learn(model)
    assert not any("projector" in name for name in adapter_state(model))
    folder = save_adapter(model, tmp_path / "adapter", base=None)
    merged = load_weights(folder, base=tiny_model_folder, device="cpu")
    assert torch.allclose(logits(merged), logits(model), atol=1e-4)


def test_a_different_adapter_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = save_adapter(adapted(tiny_model_folder, "lora"), tmp_path / "adapter", base=None)
    with pytest.raises(CheckpointError, match="has r 4, the recipe says 8"):
        load_adapter(adapted(tiny_model_folder, "lora", rank=8), folder)
    with pytest.raises(CheckpointError, match=r"lora_alpha 8\.0, the recipe says 9"):
        load_adapter(adapted(tiny_model_folder, "lora", alpha=9), folder)
    lean = add_adapter(base(tiny_model_folder), settings(), projector=False)
    with pytest.raises(CheckpointError, match=r"unexpected: .*multi_modal_projector"):
        load_adapter(lean, folder)


def test_weights_that_are_not_finite_are_not_merged(tiny_model_folder: Path) -> None:
    model = adapted(tiny_model_folder, "lora")
    name = next(n for n, _ in model.named_parameters() if ".lora_B." in n)
    with torch.no_grad():
        model.get_parameter(name).fill_(float("nan"))
    with pytest.raises(CheckpointError, match="cannot be merged"):
        merge_adapter(model)
