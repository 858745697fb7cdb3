"""Freezing and parameter groups: frozen parts get no gradient, no graph, and do not change."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tiny import Rows, padded, trainer
from torch import nn

from vip_llava.errors import RequestError
from vip_llava.training.param_groups import param_groups, part_of, set_trainable, unwrap
from vip_llava.training.vision import patch_image_inputs, tower_features


def adapted(model: Any, **options: Any) -> Any:
    targets = r".*language_model.*\.(q_proj|v_proj)"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses deprecated names of transformers
        return peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, **options))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.multi_modal_projector.linear_1.weight", "projector"),
        ("model.vision_tower.encoder.layers.0.mlp.fc1.bias", "tower"),
        ("model.language_model.layers.0.mlp.up_proj.weight", "language"),
        ("lm_head.weight", "language"),
        ("module._orig_mod.model.vision_tower.x", "tower"),
    ],
)
def test_part_of_a_parameter_name(name: str, part: str) -> None:
    assert part_of(name) == part


@pytest.mark.parametrize(
    "parts", [("projector",), ("language",), ("tower",), ("projector", "language"), None]
)
def test_frozen_parts_stay_as_they_are(
    tmp_path: Path, tiny_vip: Any, parts: tuple[str, ...] | None
) -> None:
    """`None` stands for adapters in the language model and no part."""
    model = adapted(tiny_vip) if parts is None else tiny_vip
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    made = trainer(tmp_path, model=model, parts=parts or (), max_steps=3, save_steps=99)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    touched: list[Any] = []
    for parameter in frozen:
        parameter.register_hook = touched.append  # type: ignore[method-assign]
    made.train()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad}
    if parts is None:
        assert all("lora_" in name for name in changed)
    else:
        assert {part_of(name) for name in changed} == set(parts)
    assert all(parameter.grad is None for parameter in frozen)


def test_a_frozen_tower_has_no_graph_and_stays_in_evaluation_mode(tiny_model: Any) -> None:
    patch_image_inputs(tiny_model)
    pixels = torch.randn(2, 3, 28, 28)
    set_trainable(tiny_model, ["projector"])
    tiny_model.train()
    features = tower_features(tiny_model, pixels)
    assert not features.requires_grad
    assert not tiny_model.model.vision_tower.training
    set_trainable(tiny_model, ["tower"])
    tiny_model.train()
    assert tower_features(tiny_model, pixels).requires_grad
    assert tiny_model.model.vision_tower.training


def test_unread_tower_layers_are_frozen(tiny_vip: Any) -> None:
    """The deepest hidden state read is the last but one of 11 layers: layer 10 is unused."""
    set_trainable(tiny_vip, ["tower"])
    tower = tiny_vip.model.vision_tower
    assert not any(p.requires_grad for p in tower.encoder.layers[10].parameters())
    assert not any(p.requires_grad for p in tower.post_layernorm.parameters())
    patch_image_inputs(tiny_vip)
    features = tower_features(tiny_vip, torch.randn(1, 3, 28, 28))
    features.sum().backward()
    trainable = [p for p in tower.parameters() if p.requires_grad]
    assert trainable
    assert all(p.grad is not None for p in trainable)


def test_patched_image_inputs_give_the_same_logits(tiny_model: Any) -> None:
    batch = padded([Rows(9)[i] for i in (1, 2, 3)])
    call = {k: batch[k] for k in ("input_ids", "attention_mask", "pixel_values")}
    plain = tiny_model(**call).logits
    patch_image_inputs(tiny_model)
    assert torch.equal(tiny_model(**call).logits, plain)
    features = tower_features(tiny_model, call["pixel_values"])
    call["pixel_values"] = {"features": features}
    torch.testing.assert_close(tiny_model(**call).logits, plain)
    pixels = batch["pixel_values"]
    cached = torch.tensor([False, True])
    call["pixel_values"] = {"features": features[1:], "pixels": pixels[:1], "cached": cached}
    torch.testing.assert_close(tiny_model(**call).logits, plain)


def test_a_blank_image_changes_nothing_and_reaches_the_projector(tiny_model: Any) -> None:
    patch_image_inputs(tiny_model)
    set_trainable(tiny_model, ["projector", "language"])
    ids = torch.tensor([[1, 2, 3]])
    plain = tiny_model(input_ids=ids).logits
    blank = {"blank": torch.zeros(1, 3, 28, 28)}
    logits = tiny_model(input_ids=ids, pixel_values=blank).logits
    torch.testing.assert_close(logits, plain)
    logits.sum().backward()
    grads = [p.grad for p in tiny_model.model.multi_modal_projector.parameters()]
    assert all(grad is not None and not grad.any() for grad in grads)


@pytest.mark.parametrize(
    ("parts", "words"), [(["head"], "'head'"), ([], "no trainable parameters")]
)
def test_invalid_parts_are_refused(tiny_vip: Any, parts: list[str], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        set_trainable(tiny_vip, parts)


def test_adapters_and_the_whole_language_model_are_exclusive(tiny_vip: Any) -> None:
    with pytest.raises(RequestError, match="not both"):
        set_trainable(adapted(tiny_vip), ["language"])


def test_quantized_weights_are_not_trainable(tiny_vip: Any) -> None:
    projector = tiny_vip.model.multi_modal_projector
    whole = torch.zeros(4, dtype=torch.uint8)
    projector.linear_1.weight = nn.Parameter(whole, requires_grad=False)
    with pytest.raises(RequestError, match=r"linear_1\.weight is quantized"):
        set_trainable(tiny_vip, ["projector"])


def test_a_projector_in_modules_to_save(tiny_vip: Any) -> None:
    model = adapted(tiny_vip, modules_to_save=["multi_modal_projector"])
    counts = set_trainable(model, ["projector"])
    assert set(counts) == {"adapters"}
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("modules_to_save" in name for name in names)
    assert not any("original_module" in name for name in names)
    assert unwrap(model) is tiny_vip


def test_groups_have_their_learning_rates_and_vectors_no_decay(tiny_vip: Any) -> None:
    counts = set_trainable(tiny_vip, ["projector", "language", "tower"])
    groups = param_groups(tiny_vip, lr=1e-3, projector_lr=2e-3, tower_lr=3e-3, weight_decay=0.1)
    assert {(g["part"], g["lr"]) for g in groups} == {
        ("language", 1e-3),
        ("projector", 2e-3),
        ("tower", 3e-3),
    }
    assert len(groups) == 6
    for group in groups:
        assert {p.dim() > 1 for p in group["params"]} == {group["weight_decay"] > 0}
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(counts.values())
