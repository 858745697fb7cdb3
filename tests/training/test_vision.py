"""Image inputs match transformers' own; layers are compiled where they should be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vip_llava.errors import DataError
from vip_llava.training.param_groups import set_trainable
from vip_llava.training.vision import compile_layers, patch_image_inputs, tower_features

IMAGE = 99
IDS = torch.tensor([[1, 5, *[IMAGE] * 4, 7, 8], [*[IMAGE] * 4, 9, *[IMAGE] * 2, 3]])
IDS = torch.cat([IDS, torch.tensor([[4, *[IMAGE] * 2, 6, 2, 2, 2, 2]])])


def test_images_replace_the_same_tokens_as_in_transformers(tiny_model: Any) -> None:
    """Also if the tokens of an image are not contiguous, or continue in the next row."""
    pixels = torch.randn(3, 3, 28, 28)
    weights = list(tiny_model.model.multi_modal_projector.parameters())
    plain = tiny_model(input_ids=IDS, pixel_values=pixels).logits
    wanted = torch.autograd.grad(plain.square().mean(), weights)
    patch_image_inputs(tiny_model)
    found = tiny_model(input_ids=IDS, pixel_values=pixels).logits
    torch.testing.assert_close(found, plain)
    slopes = torch.autograd.grad(found.square().mean(), weights)
    torch.testing.assert_close(slopes, wanted)
    other = tiny_model(input_ids=IDS, pixel_values=pixels.flip(0)).logits
    assert not torch.allclose(other, plain)


def test_embeddings_of_ones_own_are_left_to_transformers(tiny_model: Any) -> None:
    pixels = torch.randn(3, 3, 28, 28)
    given = {"inputs_embeds": tiny_model.get_input_embeddings()(IDS), "pixel_values": pixels}
    plain = tiny_model(**given).logits
    patch_image_inputs(tiny_model)
    torch.testing.assert_close(tiny_model(**given).logits, plain)


@pytest.mark.parametrize("count", [2, 4])
def test_too_few_or_too_many_images_are_refused(tiny_model: Any, count: int) -> None:
    patch_image_inputs(tiny_model)
    with pytest.raises(DataError, match=f"12 image tokens, but the images give {4 * count}"):
        tiny_model(input_ids=IDS, pixel_values=torch.randn(count, 3, 28, 28))


def test_tower_features_are_the_towers_hidden_states(tiny_vip: Any) -> None:
    tower, config = tiny_vip.model.vision_tower, tiny_vip.config
    pixels = torch.randn(2, 3, 28, 28)
    states = tower(pixels, output_hidden_states=True).hidden_states
    layers = getattr(config, "vision_feature_layer", None) or config.vision_feature_layers
    expected = torch.cat([states[layer][:, 1:] for layer in layers], dim=-1)
    assert torch.equal(tower_features(tiny_vip, pixels), expected)


# torch.compile warns about torch's own code.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("part", ["projector", "tower"])
def test_layers_are_compiled_but_not_those_of_a_trainable_tower(tiny_vip: Any, part: str) -> None:
    set_trainable(tiny_vip, [part])
    compile_layers(tiny_vip)
    words, tower = tiny_vip.get_decoder().layers, tiny_vip.model.vision_tower.encoder.layers
    assert all(layer._compiled_call_impl is not None for layer in words)
    assert all((layer._compiled_call_impl is not None) == (part != "tower") for layer in tower)
