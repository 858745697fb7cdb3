"""EfficientNet-Lite: padding, tokens and folding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

from vip_llava.models.default.efficientnet import (
    EfficientNetLiteConfig,
    EfficientNetLiteTower,
    SameConv,
)


@pytest.fixture
def tower(lite_model: Callable[..., Any]) -> EfficientNetLiteTower:
    made = lite_model().model.vision_tower
    assert isinstance(made, EfficientNetLiteTower)
    return made


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def reference_same_conv(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """TensorFlow's rule: ceil(length / stride) outputs, and an odd padding is larger at the end."""
    side, kernel = x.shape[-1], weight.shape[-1]
    outputs = (side + stride - 1) // stride
    total = max((outputs - 1) * stride + kernel - side, 0)
    before = total // 2
    result = torch.zeros(x.shape[0], weight.shape[0], outputs, outputs)
    for row in range(outputs):
        for column in range(outputs):
            for i in range(kernel):
                for j in range(kernel):
                    y, z = row * stride + i - before, column * stride + j - before
                    if 0 <= y < side and 0 <= z < side:
                        result[:, :, row, column] += x[:, :, y, z] @ weight[:, :, i, j].T
    return result


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [7, 8])
def test_same_padding(kernel: int, stride: int, side: int) -> None:
    torch.manual_seed(0)
    layer = SameConv(2, 3, kernel, stride, folded=True)
    x = torch.randn(1, 2, side, side)
    with torch.no_grad():
        assert layer.conv.bias is not None
        layer.conv.bias.zero_()
        expected = reference_same_conv(x, layer.conv.weight, stride)
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_tokens_are_grid_and_summary(tower: EfficientNetLiteTower, pixels: Tensor) -> None:
    with torch.no_grad():
        out = tower(pixels)
    assert tower.config.hidden_size == 12 + 16 + 24
    assert tower.config.tokens_per_view == 17
    assert out.last_hidden_state.shape == (2, 1 + 16 + 1, 52)
    assert (out.last_hidden_state[:, 0] == 0).all()  # the token that VipLlava drops
    features = out.last_hidden_state[:, 1:].split([12, 16, 24], -1)
    for part in features:  # each depth is normalized on its own
        torch.testing.assert_close(part.mean(-1), torch.zeros(2, 17), atol=1e-5, rtol=0)
        assert (part.var(-1, unbiased=False) - 1).abs().max() < 0.1


def test_a_token_depends_most_on_its_cell(tower: EfficientNetLiteTower) -> None:
    """A change in one corner changes the tokens of that corner most."""
    plain = torch.zeros(1, 3, 64, 64)
    changed = plain.clone()
    changed[:, :, :12, 50:] = 2.0
    with torch.no_grad():
        moved = tower(changed).last_hidden_state - tower(plain).last_hidden_state
    by_place = moved[0, 1:17].norm(dim=-1).view(4, 4)
    assert by_place.argmax() == 3 and by_place[3, 0] < 0.2 * by_place[0, 3]


def test_folding_keeps_the_features(tower: EfficientNetLiteTower, pixels: Tensor) -> None:
    with torch.no_grad():
        before = tower(pixels).last_hidden_state
        after = tower.fold()(pixels).last_hidden_state
    assert not any(isinstance(module, nn.BatchNorm2d) for module in tower.modules())
    assert tower.config.folded
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    again = EfficientNetLiteTower(tower.config)  # a folded tower can be built and loaded
    again.load_state_dict(tower.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(pixels).last_hidden_state, after)


def test_batch_norm_statistics_are_frozen_in_training(
    tower: EfficientNetLiteTower, pixels: Tensor
) -> None:
    before = {name: value.clone() for name, value in tower.named_buffers()}
    tower.train()
    assert tower.training and tower.stem.training
    tower(pixels).last_hidden_state.sum().backward()
    assert all(torch.equal(before[name], value) for name, value in tower.named_buffers())
    assert tower.stem.norm.weight.grad is not None  # its scale is trained


def test_gradients_reach_every_weight(tower: EfficientNetLiteTower, pixels: Tensor) -> None:
    generator = torch.Generator().manual_seed(2)
    tower.train()
    out = tower(pixels).last_hidden_state
    (out * torch.randn(out.shape, generator=generator)).sum().backward()
    assert [n for n, p in tower.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_tower_works_inside_vip_llava(
    lite_model: Callable[..., Any], pixels: Tensor, tmp_path: Path
) -> None:
    model = lite_model()
    ids = torch.tensor([[5, *[3] * 17, 6, 7], [8, *[3] * 17, 9, 9]])
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=pixels).logits
        other = model(input_ids=ids, pixel_values=pixels.flip(0)).logits
        inner = model.model
        features = inner.multi_modal_projector(inner.vision_tower(pixels).last_hidden_state[:, 1:])
        embeds = inner.get_input_embeddings()(ids)
        embeds[ids == 3] = features.flatten(0, 1)
        by_hand = model.lm_head(inner.language_model(inputs_embeds=embeds).last_hidden_state)
    torch.testing.assert_close(logits, by_hand, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(logits, other)
    model.save_pretrained(tmp_path)
    opened = type(model).from_pretrained(tmp_path).eval()
    assert isinstance(opened.model.vision_tower, EfficientNetLiteTower)
    with torch.no_grad():
        torch.testing.assert_close(opened(input_ids=ids, pixel_values=pixels).logits, logits)


def test_the_tower_is_registered() -> None:
    config = AutoConfig.for_model("vip_llava_efficientnet_lite")
    assert isinstance(config, EfficientNetLiteConfig)
    assert config.hidden_size == 48 + 120 + 352 + 1280 == 1800
    with torch.device("meta"):
        assert isinstance(AutoModel.from_config(config), EfficientNetLiteTower)


def test_features_of_the_head_are_relu6_of_its_norm(
    tower: EfficientNetLiteTower, pixels: Tensor
) -> None:
    """As published; features of blocks are linear."""
    with torch.no_grad():
        x = F.relu6(tower.stem(pixels))
        for block in tower.blocks:
            x = block(x)
        head = F.relu6(tower.head(x)).mean((2, 3))
        summary = tower(pixels).last_hidden_state[:, -1, -24:]
    torch.testing.assert_close(summary, F.layer_norm(head, (24,)), atol=1e-5, rtol=1e-4)
