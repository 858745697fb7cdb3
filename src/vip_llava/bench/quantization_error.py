"""How far the logits of quantized weights are from those of full weights, token by token.

Decode uses kernels of its own, so the logits are computed one token at a time, as in decode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vip_llava.engine.device_transfer import current_device
from vip_llava.engine.fused_runner import FusedLlama
from vip_llava.engine.kv_cache import KVCache
from vip_llava.kernels import BLOCK_SIZE, DecodeBatch, for_device

__all__ = ["LogitsError", "decode_logits", "logits_error"]


class LogitsError(NamedTuple):
    """The difference between two sets of logits."""

    relative: float
    """The norm of the difference over the norm of the expected logits."""
    agreement: float
    """Share of positions with the same most probable token."""


def decode_logits(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """Logits [N, V] after each of N tokens, decoded one by one if the engine's kernels support it."""
    device = model.device
    with torch.inference_mode(), current_device(device):
        if not FusedLlama.supports(model):
            found: Tensor = model(input_ids=torch.tensor([list(ids)], device=device)).logits[0]
            return found.float()
        blocks = -(-len(ids) // BLOCK_SIZE)
        kv_cache = KVCache(blocks)
        llama = FusedLlama(model, for_device(device), kv_cache, kv_cache.num_slots)
        kv_cache.reserve(kv_cache.num_slots)
        llama.allocate_kv_cache()
        tables = torch.arange(blocks, dtype=torch.int32, device=device).unsqueeze(0)
        positions = torch.arange(len(ids) + 1, dtype=torch.int32, device=device)
        embeds = llama.embed(torch.tensor(list(ids), device=device))
        parts = []
        for at in range(len(ids)):
            here, length = positions[at : at + 1], positions[at + 1 : at + 2]
            batch = DecodeBatch(here, tables, length)
            parts.append(llama.decode(embeds[at : at + 1], here, batch).float())
        return torch.cat(parts)


def logits_error(found: Tensor, expected: Tensor) -> LogitsError:
    """The error of logits [N, V]."""
    relative = (found - expected).norm() / expected.norm()
    same = (found.argmax(dim=-1) == expected.argmax(dim=-1)).float().mean()
    return LogitsError(float(relative), float(same))
