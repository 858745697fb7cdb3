"""Llama's layers by the kernels equal the layers called one by one; others are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from vip_llava.engine.attention import Chunk, plan_step
from vip_llava.engine.eager_runner import EagerLlama
from vip_llava.engine.fused_runner import FusedLlama
from vip_llava.engine.kv_cache import KVCache
from vip_llava.kernels import DecodeBatch, PrefillChunk, reference
from vip_llava.models.quantize import Quantization, quantize_model

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
KINDS: list[dict[str, Any]] = [
    {},
    {"attention_bias": True, "mlp_bias": True},
    {"rope_parameters": LLAMA3, "head_dim": 10},
    {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
    {"num_key_value_heads": 6},
]


def llava(**options: Any) -> Any:
    torch.manual_seed(0)
    tower = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=11, num_attention_heads=2,
        image_size=28, patch_size=14,
    )  # fmt: skip
    text = LlamaConfig(**{**SIZES, **options})
    config = VipLlavaConfig(vision_config=tower, text_config=text, image_token_index=49)
    model = VipLlavaForConditionalGeneration(config).eval()
    for name, weight in model.named_parameters():
        nn.init.normal_(weight, mean=1.0 if "norm" in name else 0.0, std=0.2)
    return model


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("options", KINDS)
@torch.inference_mode()
def test_equals_the_layers_called_one_by_one(options: dict[str, Any], bits: Any) -> None:
    if bits == 4:
        options = {**options, "hidden_size": 64, "head_dim": 16, "num_attention_heads": 4}
        options |= {"num_key_value_heads": 2}
    model = llava(**options)
    if bits:
        quantize_model(model, Quantization(bits))
    assert FusedLlama.supports(model)
    memories = [KVCache(8), KVCache(8)]
    fused, eager = FusedLlama(model, reference, memories[0], 64), EagerLlama(model.get_decoder())
    slots = torch.stack([torch.arange(32) + 32 * number for number in (2, 0, 3, 1)])
    for counts in ([(0, 5), (0, 19), (0, 1), (0, 7)], [(5, 1), (19, 6), (1, 4), (7, 2)]):
        chunks = [Chunk(*one, slots[at][: sum(one)]) for at, one in enumerate(counts)]
        embeds = torch.randn(
            1, sum(count for _, count in counts), model.config.text_config.hidden_size
        )
        steps = [plan_step(memory, chunks, torch.device("cpu")) for memory in memories]
        torch.testing.assert_close(
            fused(embeds, steps[0]), eager(embeds, steps[1]), atol=2e-5, rtol=1e-4
        )
    lengths = torch.tensor([6, 25, 5, 9])
    chunks = [Chunk(int(n), 1, slots[at][: n + 1]) for at, n in enumerate(lengths)]
    embeds = torch.randn(4, model.config.text_config.hidden_size)
    step = plan_step(memories[1], chunks, torch.device("cpu"))
    expected = model.get_output_embeddings()(eager(embeds.unsqueeze(0), step))
    batch = DecodeBatch(
        slot_mapping=step.slot_mapping.int(),
        block_tables=(slots[:, ::16] // 16).int(),
        lengths=(lengths + 1).int(),
    )
    found = fused.decode(embeds, lengths.int(), batch)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("options", KINDS)
@torch.inference_mode()
def test_a_padded_prompt_equals_the_layers_called_one_by_one(
    options: dict[str, Any], bits: Any
) -> None:
    """The beginning of a sequence, then more of it; nothing of the padding is stored."""
    if bits == 4:
        options = {**options, "hidden_size": 64, "head_dim": 16, "num_attention_heads": 4}
        options |= {"num_key_value_heads": 2}
    model = llava(**options)
    if bits:
        quantize_model(model, Quantization(bits))
    memories = [KVCache(8), KVCache(8)]
    fused, eager = FusedLlama(model, reference, memories[0], 64), EagerLlama(model.get_decoder())
    for memory in memories:
        memory.reserve(memory.num_slots)
    fused.allocate_kv_cache()
    for keys, values in memories[0]._layers.values():
        keys.fill_(7.0)
        values.fill_(7.0)
    table = torch.tensor([5, 2, 0, 0], dtype=torch.int32)
    at = torch.cat((torch.arange(80, 96), torch.arange(32, 48)))
    for start, count, size in ((0, 19, 32), (19, 7, 16)):
        embeds = torch.randn(size, model.config.text_config.hidden_size)
        step = plan_step(
            memories[1], [Chunk(start, count, at[: start + count])], torch.device("cpu")
        )
        hidden = eager(embeds[:count].unsqueeze(0), step)[-1:]
        padded = torch.zeros(2, size, dtype=torch.int32)
        padded[1] = -1
        padded[0, :count] = torch.arange(start, start + count)
        padded[1, :count] = at[start : start + count]
        span = torch.tensor([start, start + count], dtype=torch.int32)
        last = torch.tensor([count - 1], dtype=torch.int32)
        chunk = PrefillChunk(padded[1], table, span)
        found = fused.prefill(embeds, padded[0], chunk, last)
        torch.testing.assert_close(
            found, model.get_output_embeddings()(hidden), atol=2e-5, rtol=1e-4
        )
    others = torch.ones(128, dtype=torch.bool)
    others[at[:26]] = False
    assert bool((memories[0].layer(1)[0][others] == 7).all())


def test_only_models_of_known_parts_are_supported() -> None:
    assert FusedLlama.supports(llava())
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert not FusedLlama.supports(llava(rope_parameters=dynamic))
    assert not FusedLlama.supports(llava(hidden_act="gelu"))
    model = llava()
    model.get_decoder().layers[2].self_attn.o_proj.register_forward_pre_hook(lambda *_: None)
    assert not FusedLlama.supports(model)
    model = llava()
    model.get_decoder().layers[1].mlp.down_proj = nn.Bilinear(2, 2, 2)
    assert not FusedLlama.supports(model)
    model = llava()
    model.lm_head.to(torch.float64)
    assert not FusedLlama.supports(model)
    model = llava()
    model.get_decoder().layers[0].self_attn.q_proj.to("meta")
    assert not FusedLlama.supports(model)
