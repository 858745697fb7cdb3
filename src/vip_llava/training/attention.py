"""Attention for packed rows: several conversations one after the other, none sees another.

transformers finds the borders by itself from `position_ids`, but builds a mask of T x T places for
them, and only while no cache is in use: with `use_cache` (the default of every configuration) it
says nothing and lets each conversation read those before it. Here the borders travel with the
batch (`cu_seq_lens_q`, from `data.batches.PackedCollator`), no mask is made, and borders that were
not given are read off `position_ids`. On CUDA in half precision one kernel does all sequences
(`torch.nn.attention.varlen`); elsewhere each sequence is attended to by itself.

This module knows transformers' attention interface. It knows no data, no loss and no optimizer.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from vip_llava.errors import RequestError

__all__ = ["PACKED_ATTENTION", "packed_attention", "sequence_borders", "use_packed_attention"]

PACKED_ATTENTION = "vip_llava_packed"
"""Name under which transformers' models find `packed_attention`."""

# What the flash kernel can do.
_KERNEL_TYPES = (torch.float16, torch.bfloat16)
_LARGEST_HEAD = 256
# Where cuDNN's attention was measured to be faster: Hopper, these heads, sequences of one length.
BATCHES = True
_BATCHED_HEADS = (64, 128)


def use_packed_attention(model: PreTrainedModel) -> None:
    """Let the language model attend with `packed_attention`; the vision tower stays as it is.

    Batches that are not packed give what `sdpa` gives, so the model can also be used as before.
    """
    AttentionInterface.register(PACKED_ATTENTION, packed_attention)
    AttentionMaskInterface.register(PACKED_ATTENTION, _mask)
    owner: Any = model
    owner.get_decoder().set_attn_implementation(PACKED_ATTENTION)


def sequence_borders(position_ids: Tensor) -> Tensor:
    """Where sequences begin, and the end: int32 [S + 1] from `position_ids` [1, T].

    A sequence begins where positions don't go on by one.
    """
    positions = position_ids[0]
    begins = torch.ones_like(positions, dtype=torch.bool)
    begins[1:] = positions[1:] != positions[:-1] + 1
    starts = begins.nonzero().flatten()
    end = starts.new_tensor([positions.numel()])
    return torch.cat([starts, end]).to(torch.int32)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    position_ids: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each sequence: query [1, H, T, D], key and value [1, K, T, D].

    `cu_seq_lens_q`: int32 [S + 1], where each sequence begins, and T. Returns [1, T, H, D]. With a
    mask, a cache or several rows this is transformers' own `sdpa`.
    Raises RequestError for borders together with a mask or with several rows.
    """
    if cu_seq_lens_q is not None and (attention_mask is not None or query.shape[0] != 1):
        raise RequestError(
            "a packed batch is one row without an attention_mask; this one has "
            f"{query.shape[0]} rows and {'no' if attention_mask is None else 'a'} mask"
        )
    whole = attention_mask is None and query.shape[0] == 1 and query.shape[2] == key.shape[2]
    if cu_seq_lens_q is None and whole and position_ids is not None:
        cu_seq_lens_q = sequence_borders(position_ids)
    if cu_seq_lens_q is None or not whole:
        attended: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return attended
    run = _one_by_one
    if _kernel_fits(query, dropout):
        alike = _same_lengths(query, key, cu_seq_lens_q, max_length_q, sliding_window)
        run = _one_batch if alike else _one_kernel
    out = run(query, key, value, cu_seq_lens_q, max_length_q, dropout, scaling, sliding_window)
    return out, None


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """No mask for what `packed_attention` keeps apart by borders, else that of `sdpa`."""
    if batch_size == 1 and attention_mask is None and q_length == kv_length:
        return None
    mask: Tensor | None = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        attention_mask=attention_mask,
        **kwargs,
    )
    return mask


def _found_kernel() -> tuple[Callable[..., Any], frozenset[str]] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn, frozenset(inspect.signature(varlen_attn).parameters)


# Looked up once and outside of layers, because those may be compiled.
_KERNEL = _found_kernel()


def _kernel() -> tuple[Callable[..., Any], frozenset[str]] | None:
    """torch's variable-length attention and the names of its settings, where torch has it."""
    return _KERNEL


def _kernel_fits(query: Tensor, dropout: float) -> bool:
    return (
        query.device.type == "cuda"
        and query.dtype in _KERNEL_TYPES
        and query.shape[-1] <= _LARGEST_HEAD
        and dropout == 0.0
        # Of the functions that say it, the one that doesn't cut a compiled layer in two.
        and torch.cuda.get_device_properties(query.device).major >= 8
        and _kernel() is not None
    )


def _one_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    borders: Tensor,
    longest: int | None,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """All sequences in one call of torch's kernel."""
    found = _kernel()
    assert found is not None
    attend, settings = found
    # Not states[0]: its slope would be written into zeros.
    q, k, v = (states.squeeze(0).transpose(0, 1).contiguous() for states in (query, key, value))
    options: dict[str, Any] = {}
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in settings:
            options["enable_gqa"] = True
        else:
            times = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    if "window_size" in settings:
        # (left, right): (-1, 0) is plain causal.
        options["window_size"] = (-1 if window is None else window - 1, 0)
    else:
        options["is_causal"] = True
    if longest is None:
        longest = int(borders.diff().max())
    if window is not None and window < longest and "window_size" not in settings:
        return _one_by_one(query, key, value, borders, longest, dropout, scaling, window)
    if scaling is not None and "scale" in settings:
        options["scale"] = scaling
    elif scaling is not None:
        q = q * (scaling * q.shape[-1] ** 0.5)
    out: Tensor = attend(q, k, v, borders, borders, longest, longest, **options)
    return out.unsqueeze(0)


def _same_lengths(
    query: Tensor, key: Tensor, borders: Tensor, longest: int | None, window: int | None
) -> bool:
    """Whether cuDNN's attention can take all sequences as a batch: equal lengths, as many heads."""
    return (
        BATCHES
        and longest is not None
        and longest * (borders.numel() - 1) == query.shape[2]
        and query.shape[1] == key.shape[1]
        and (window is None or window >= longest)
        and query.shape[-1] in _BATCHED_HEADS
        and torch.cuda.get_device_properties(query.device).major == 9
        and _batches_work(query.device.type, query.dtype, query.shape[-1])
    )


def _batches_work(device: str, dtype: torch.dtype, width: int) -> bool:
    """Whether this torch has cuDNN's attention, and cuDNN takes such heads."""
    return _tried(device, dtype, width)


# Tried out while a layer is compiled, not by the compiled layer.
_mark: Any = torch.compiler.assume_constant_result
_mark(_batches_work)


@functools.cache
def _tried(device: str, dtype: torch.dtype, width: int) -> bool:
    try:
        some = torch.zeros(2, 8, 2, width, device=device, dtype=dtype).transpose(1, 2)
        attend = torch.ops.aten._scaled_dot_product_cudnn_attention
        attend(some, some, some, None, True, 0.0, True, False)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return True


def _one_batch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    borders: Tensor,
    longest: int | None,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Sequences of one length L as [S, H, L, D], by cuDNN."""
    count = borders.numel() - 1
    # In memory [S, L, H, D]: what was made by one product, and what the next reads.
    q, k, v = (
        states.squeeze(0)
        .transpose(0, 1)
        .contiguous()
        .view(count, -1, *states.shape[1::2])
        .transpose(1, 2)
        for states in (query, key, value)
    )
    attend = torch.ops.aten._scaled_dot_product_cudnn_attention
    out: Tensor = attend(q, k, v, None, True, 0.0, True, False, scale=scaling)[0]
    return out.transpose(1, 2).reshape(1, -1, *out.shape[1::2])


def _one_by_one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    borders: Tensor,
    longest: int | None,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Each sequence by itself, through torch's own attention."""
    places = borders.tolist()
    shared = query.shape[1] != key.shape[1]
    outs = []
    for start, stop in itertools.pairwise(places):
        length = stop - start
        band = None
        if window is not None and length > window:
            ones = torch.ones(length, length, dtype=torch.bool, device=query.device)
            band = ones.tril().triu(1 - window)
        out = F.scaled_dot_product_attention(
            query[:, :, start:stop],
            key[:, :, start:stop],
            value[:, :, start:stop],
            attn_mask=band,
            dropout_p=dropout,
            is_causal=band is None,
            scale=scaling,
            enable_gqa=shared,
        )
        outs.append(out)
    return torch.cat(outs, dim=2).transpose(1, 2).contiguous()
