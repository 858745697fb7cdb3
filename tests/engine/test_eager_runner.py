"""Llama's layers called directly equal transformers' own call; other models are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel, MistralConfig, MistralModel

from vip_llava.engine.attention import Chunk, StepPlan, plan_step
from vip_llava.engine.eager_runner import EagerLlama
from vip_llava.engine.kv_cache import KVCache
from vip_llava.engine.model_runner import ModelRunner

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


def step(memory: KVCache, starts_counts: list[tuple[int, int]]) -> StepPlan:
    """A step of sequences that have twenty slots each."""
    chunks = []
    for number, (start, count) in enumerate(starts_counts):
        first = 20 * number
        chunks.append(Chunk(start, count, torch.arange(first, first + start + count), first))
    return plan_step(memory, chunks, torch.device("cpu"))


@pytest.mark.parametrize("rope", list(ROPES))
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_equals_the_forward_method(rope: str, bias: bool) -> None:
    model = llama(rope_parameters=ROPES[rope], attention_bias=bias, mlp_bias=bias)
    assert EagerLlama.supports(model)
    memories = [KVCache(8), KVCache(8)]
    owner: Any = type(
        "Owner", (), {"get_decoder": lambda self: model, "device": torch.device("cpu")}
    )()
    for starts_counts in ([(0, 1), (0, 7), (0, 4)], [(1, 1), (7, 2), (4, 1)]):
        embeds = torch.randn(1, sum(count for _, count in starts_counts), 48)
        plans = [step(memory, starts_counts) for memory in memories]
        direct = EagerLlama(model)(embeds, plans[0])
        hook = model.register_forward_pre_hook(lambda *_: None)
        assert not EagerLlama.supports(model)
        runner = ModelRunner(owner, memories[1], cuda_graphs=False, max_num_seqs=4)
        ordinary = runner._forward(embeds, plans[1])
        hook.remove()
        torch.testing.assert_close(direct, ordinary, atol=2e-5, rtol=1e-5)
        for layer in range(3):
            for mine, theirs in zip(*(m.layer(layer) for m in memories), strict=True):
                slots = plans[0].slot_mapping
                torch.testing.assert_close(mine[slots], theirs[slots], atol=2e-5, rtol=1e-5)


def test_other_models_are_not_supported() -> None:
    assert not EagerLlama.supports(MistralModel(MistralConfig(**SIZES)))
    assert not EagerLlama.supports(llama(hidden_act="gelu"))
    model = llama()
    model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert not EagerLlama.supports(model)
    model = llama()
    model.layers[2].mlp.forward = model.layers[1].mlp.forward
    assert not EagerLlama.supports(model)
    model = llama()
    model.layers[2].post_attention_layernorm = nn.LayerNorm(48)
    assert not EagerLlama.supports(model)


def test_hooks_of_transformers_are_ignored() -> None:
    model = llama()
    model(torch.tensor([[1, 2]]), output_hidden_states=True)
    assert any(layer._forward_hooks for layer in model.layers)
    assert EagerLlama.supports(model)
