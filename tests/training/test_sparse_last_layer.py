"""The sparse last layer computes only the read positions, with the numbers of the whole layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vip_llava.training.attention import use_packed_attention
from vip_llava.training.losses import patch_loss
from vip_llava.training.sparse_last_layer import can_read_positions, patch_last_layer

Made = Callable[..., Any]


def padded(make_row: Made) -> dict[str, Tensor]:
    """Two rows of different lengths, the shorter one padded."""
    rows = [make_row([2, "view", 6], 3), make_row([1, "view", 3], 2, seed=1)]
    lines = [(row["input_ids"], row["labels"]) for row in rows]
    width = max(len(ids) for ids, _ in lines)
    return {
        "input_ids": torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in lines]),
        "labels": torch.tensor([of + [-100] * (width - len(of)) for _, of in lines]),
        "attention_mask": torch.tensor(
            [[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in lines]
        ),
        "pixel_values": torch.cat([row["pixel_values"] for row in rows]),
    }


def positions_computed(model: Any, call: Callable[[], Any]) -> list[int]:
    """The number of positions that each layer's MLP computes during a call."""
    found: list[int] = []
    hooks = [
        layer.mlp.down_proj.register_forward_hook(
            lambda _module, given, _out: found.append(given[0].shape[:-1].numel())
        )
        for layer in model.get_decoder().layers
    ]
    call()
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("attention", ["packed", "sdpa", "eager"])
def test_only_read_positions_are_computed(make_vip: Made, make_row: Made, attention: str) -> None:
    model, batch = make_vip(), padded(make_row)
    if attention == "packed":
        use_packed_attention(model)
    else:
        model.get_decoder().set_attn_implementation(attention)
    inputs = {name: each for name, each in batch.items() if name != "labels"}
    # transformers computes its own loss in float32
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    expected = F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())
    wanted = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    patch_loss(model)
    losses: list[Tensor] = []
    seen = positions_computed(model, lambda: losses.append(model(**batch).loss))
    assert seen == [batch["input_ids"].numel(), 5]
    torch.testing.assert_close(losses[0], expected, rtol=1e-12, atol=0)
    found = torch.autograd.grad(losses[0], list(model.parameters()), allow_unused=True)
    for mine, other in zip(found, wanted, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None and other is not None:
            torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


def test_a_batch_without_supervised_tokens(make_vip: Made, make_row: Made) -> None:
    model, batch = make_vip(), padded(make_row)
    batch["labels"][:] = -100
    patch_loss(model)
    loss = model(**batch).loss
    loss.backward()
    assert loss == 0
    slope = model.model.multi_modal_projector.linear_1.weight.grad
    assert slope is not None
    assert not slope.any()


def test_layers_of_other_models_are_not_patched(make_vip: Made, make_row: Made) -> None:
    model = make_vip("phi3")
    assert not patch_last_layer(model)
    assert not can_read_positions(model, {})
    batch = padded(make_row)
    patch_loss(model)
    places = batch["input_ids"].numel()
    assert positions_computed(model, lambda: model(**batch)) == [places, places]


def test_a_hook_or_cache_needs_the_whole_layer(make_vip: Made, make_row: Made) -> None:
    model, batch = make_vip(), padded(make_row)
    patch_loss(model)
    assert can_read_positions(model, {})
    for more in (
        "output_hidden_states",
        "output_attentions",
        "use_cache",
        "past_key_values",
        "cache",
    ):
        assert not can_read_positions(model, {more: True})
    attention = model.get_decoder().layers[-1].self_attn
    hook = attention.register_forward_hook(lambda *_given: None)
    assert not can_read_positions(model, {})
    places = batch["input_ids"].numel()
    assert positions_computed(model, lambda: model(**batch)) == [places, places]
    hook.remove()
    assert can_read_positions(model, {})


def test_calls_without_labels_are_unchanged(make_vip: Made, make_row: Made) -> None:
    model, batch = make_vip(), padded(make_row)
    del batch["labels"]
    expected = model(**batch).logits
    patch_loss(model)
    assert torch.equal(model(**batch).logits, expected)
