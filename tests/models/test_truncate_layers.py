"""Truncated towers have the features of whole ones; projectors; image token ids past the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, VipLlavaForConditionalGeneration

from vip_llava.errors import CheckpointError
from vip_llava.models.loading import load_weights
from vip_llava.models.projector import MlpProjector
from vip_llava.models.truncate_layers import hidden_state_indices

IMAGES = (2, 3, 56, 56)


def test_used_states_count_from_the_input() -> None:
    assert hidden_state_indices((-2, -5, -8, -11, 6), 24) == (23, 20, 17, 14, 6)
    assert hidden_state_indices(-1, 12) == (12,)
    with pytest.raises(CheckpointError, match="13"):
        hidden_state_indices(13, 12)


@pytest.fixture
def pair(tiny_model_folder: Path) -> tuple[Any, Any]:
    whole = VipLlavaForConditionalGeneration.from_pretrained(tiny_model_folder)
    return whole.eval(), load_weights(tiny_model_folder, device="cpu")


def test_a_truncated_tower_has_the_same_features(pair: tuple[Any, Any]) -> None:
    whole, ours = pair
    assert len(whole.model.vision_tower.encoder.layers) == 12
    assert len(ours.model.vision_tower.encoder.layers) == 11
    pixels = torch.randn(IMAGES, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = whole.get_image_features(pixel_values=pixels).pooler_output
        got = ours.get_image_features(pixel_values=pixels).pooler_output
    assert torch.equal(got, want)


def test_only_used_hidden_states_are_recorded(pair: tuple[Any, Any]) -> None:
    _, ours = pair
    seen: list[Any] = []
    ours.model.vision_tower.register_forward_hook(
        lambda module, args, output: seen.append(output.hidden_states)
    )
    with torch.no_grad():
        ours.get_image_features(pixel_values=torch.zeros(IMAGES))
    kept = [index for index, state in enumerate(seen[0]) if state is not None]
    assert kept == [2, 5, 6, 8, 11]


@pytest.mark.parametrize("layer", [-1, -2, 0, 5])
@pytest.mark.parametrize("strategy", ["patch", "cls_patch"])
def test_one_layer_towers(
    layer: int, strategy: str, make_original: Any, tiny_clip: CLIPVisionModel
) -> None:
    folder = make_original(layer=layer, strategy=strategy, linears=2)
    model: Any = load_weights(folder, device="cpu")
    pixels = torch.randn(IMAGES, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        state = tiny_clip(pixels, output_hidden_states=True).hidden_states[layer]
        state = state if strategy == "cls_patch" else state[:, 1:]
        want = model.model.multi_modal_projector(state)
        got = torch.stack(list(model.get_image_features(pixel_values=pixels).pooler_output))
    assert model.config.image_seq_length == got.shape[1]
    assert torch.equal(got, want)
    assert len(model.model.vision_tower.encoder.layers) == max(1, layer % 13)


def test_the_projector_computes_linear_gelu_linear() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for number, (out, width) in enumerate([(6, 4), (6, 6), (5, 6)], start=1):
        weights[f"linear_{number}.weight"] = torch.randn(out, width, generator=generator)
        weights[f"linear_{number}.bias"] = torch.randn(out, generator=generator)
    projector = MlpProjector(weights)
    projector.load_state_dict(weights)
    x = torch.randn(2, 3, 4, generator=generator)
    want = x
    for number in (1, 2, 3):
        want = torch.nn.functional.gelu(want) if number > 1 else want
        want = want @ weights[f"linear_{number}.weight"].T + weights[f"linear_{number}.bias"]
    assert torch.allclose(projector(x), want, atol=1e-5)


def test_an_image_token_id_past_the_table_changes_no_logits(make_original: Any) -> None:
    model: Any = load_weights(make_original(), device="cpu")
    token = model.config.image_token_id
    assert token == model.get_input_embeddings().weight.shape[0] == model.lm_head.weight.shape[0]
    count = model.config.image_seq_length
    ids = torch.tensor([[1, *[token] * count, 5, 6]])
    out = model(input_ids=ids, pixel_values=torch.zeros(1, 3, 56, 56))
    assert out.logits.shape == (1, count + 3, token)
    with pytest.raises(IndexError):
        model.get_input_embeddings()(torch.tensor([token + 1]))


def test_tiny_clip_is_not_trivial(tiny_clip: CLIPVisionModel) -> None:
    assert isinstance(tiny_clip.config, CLIPVisionConfig)
    with torch.no_grad():
        states = tiny_clip(torch.randn(IMAGES), output_hidden_states=True).hidden_states
    assert not torch.allclose(states[-1], states[-2], atol=1e-2)
