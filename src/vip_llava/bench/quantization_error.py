"""How far the logits of small weights are from those of whole ones, token by token.

Answers are made one token at a time, by kernels that are used for nothing else, so that is how the
logits compared here are made too.

This module runs models and knows no engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vip_llava.engine.block_manager import BLOCK_TOKENS, KVMemory
from vip_llava.engine.device_transfer import on
from vip_llava.engine.fused_runner import Answers, FusedLlama
from vip_llava.kernels import for_device

__all__ = ["Distance", "distance", "step_logits"]


class Distance(NamedTuple):
    """Of two sets of logits."""

    error: float
    """The norm of their difference over the norm of the ones that are right."""
    agreement: float
    """Share of places with the same most probable token."""


def step_logits(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """Logits [N, V] after each of N tokens, fed one at a time where the engine's steps can be used."""
    device = model.device
    with torch.inference_mode(), on(device):
        if not FusedLlama.fits(model):
            found: Tensor = model(input_ids=torch.tensor([list(ids)], device=device)).logits[0]
            return found.float()
        blocks = -(-len(ids) // BLOCK_TOKENS)
        memory = KVMemory(blocks)
        llama = FusedLlama(model, for_device(device), memory, blocks * BLOCK_TOKENS)
        memory.reach(memory.places)
        llama.lay_out()
        table = torch.arange(blocks, dtype=torch.int32, device=device).unsqueeze(0)
        numbers = torch.arange(len(ids) + 1, dtype=torch.int32, device=device)
        tokens = torch.tensor(list(ids), device=device)
        parts = []
        for at in range(len(ids)):
            here = numbers[at : at + 1]
            step = Answers(here, here, table, numbers[at + 1 : at + 2])
            parts.append(llama.answers(llama.embed(tokens[at : at + 1]), step).float())
        return torch.cat(parts)


def distance(found: Tensor, wanted: Tensor) -> Distance:
    """Of logits [N, V] from the right ones."""
    error = (found - wanted).norm() / wanted.norm()
    same = (found.argmax(dim=-1) == wanted.argmax(dim=-1)).float().mean()
    return Distance(float(error), float(same))
