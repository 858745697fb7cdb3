"""Llama's layers called directly: equal to transformers' own call, and only where that is sure."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel, MistralConfig, MistralModel

from vip_llava.engine.attention import Piece, StepPlan, plan
from vip_llava.engine.block_manager import KVMemory
from vip_llava.engine.eager_runner import LeanLlama
from vip_llava.engine.model_runner import Runner

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 50,
}
ROPES = {
    "default": {"rope_type": "default", "rope_theta": 1e4},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0},
}


def llama(**options: Any) -> Any:
    torch.manual_seed(0)
    model = LlamaModel(LlamaConfig(**SIZES, max_position_embeddings=256, **options)).eval()
    for name, weight in model.named_parameters():
        nn.init.normal_(weight, mean=1.0 if "norm" in name else 0.0, std=0.2)
    return model


def step(memory: KVMemory, starts_counts: list[tuple[int, int]]) -> StepPlan:
    """A step of requests that have twenty places each."""
    pieces = []
    for number, (start, count) in enumerate(starts_counts):
        first = 20 * number
        pieces.append(Piece(start, count, torch.arange(first, first + start + count), first))
    return plan(memory, pieces, torch.device("cpu"))


@pytest.mark.parametrize("rope", list(ROPES))
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_equal_to_the_ordinary_call(rope: str, bias: bool) -> None:
    model = llama(rope_parameters=ROPES[rope], attention_bias=bias, mlp_bias=bias)
    assert LeanLlama.fits(model)
    memories = [KVMemory(8), KVMemory(8)]
    owner: Any = type("Owner", (), {"get_decoder": lambda self: model})()
    for starts_counts in ([(0, 1), (0, 7), (0, 4)], [(1, 1), (7, 2), (4, 1)]):
        embeds = torch.randn(1, sum(count for _, count in starts_counts), 48)
        plans = [step(memory, starts_counts) for memory in memories]
        lean = LeanLlama(model)(embeds, plans[0])
        hook = model.register_forward_pre_hook(lambda *_: None)
        assert not LeanLlama.fits(model)
        ordinary = Runner(owner, memories[1])._decode(embeds, plans[1])
        hook.remove()
        torch.testing.assert_close(lean, ordinary, atol=2e-5, rtol=1e-5)
        for layer in range(3):
            for mine, theirs in zip(*(m.layer(layer) for m in memories), strict=True):
                places = plans[0].places
                torch.testing.assert_close(mine[places], theirs[places], atol=2e-5, rtol=1e-5)


def test_what_is_not_quite_a_llama_goes_the_ordinary_way() -> None:
    assert not LeanLlama.fits(MistralModel(MistralConfig(**SIZES)))
    assert not LeanLlama.fits(llama(hidden_act="gelu"))
    model = llama()
    model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert not LeanLlama.fits(model)
    model = llama()
    model.layers[2].mlp.forward = model.layers[1].mlp.forward
    assert not LeanLlama.fits(model)
    model = llama()
    model.layers[2].post_attention_layernorm = nn.LayerNorm(48)
    assert not LeanLlama.fits(model)


def test_hooks_that_only_look_on_do_not_count() -> None:
    model = llama()
    model(torch.tensor([[1, 2]]), output_hidden_states=True)
    assert any(layer._forward_hooks for layer in model.layers)
    assert LeanLlama.fits(model)
