"""A portrait changes with all that the engine must notice, and with nothing else."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from vip_llava.engine.portrait import portrait
from vip_llava.models.quantize import Quantization, quantize_model


def test_what_changes_a_portrait(vip_model: Any) -> None:
    model = copy.deepcopy(vip_model)
    quantize_model(model, Quantization(8))
    first = portrait(model)
    with torch.inference_mode():
        model(input_ids=torch.tensor([[1, 2]]))
    assert portrait(model) == first
    layer = model.get_decoder().layers[1]
    with torch.no_grad():
        layer.input_layernorm.weight.mul_(2)
    written = portrait(model)
    assert (written.weights != first.weights, written.parts) == (True, first.parts)
    model.lm_head.weight.data = model.lm_head.weight.data.clone()
    moved = portrait(model)
    assert (moved.weights != written.weights, moved.parts != written.parts) == (True, True)
    seen = {moved.parts}
    layer.mlp.up_proj.weight = layer.mlp.up_proj.weight.clone()  # a buffer, as it is quantized
    seen.add(portrait(model).parts)
    hook = layer.mlp.register_forward_pre_hook(lambda *_: None)
    seen.add(portrait(model).parts)
    hook.remove()
    hook = layer.mlp.register_forward_hook(lambda *_: None)
    seen.add(portrait(model).parts)
    hook.remove()
    layer.mlp.act_fn = nn.GELU()
    seen.add(portrait(model).parts)
    layer.mlp.forward = lambda x: x
    seen.add(portrait(model).parts)
    assert len(seen) == 6
    assert portrait(model).weights == moved.weights


def test_weights_of_inference_mode_have_one_too(vip_model: Any) -> None:
    with torch.inference_mode():
        model = copy.deepcopy(vip_model)
        assert portrait(model) == portrait(model)
