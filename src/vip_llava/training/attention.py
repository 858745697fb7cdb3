"""Attention for packed rows: several sequences in one row, none attending to another.

transformers derives sequence boundaries from `position_ids`, but builds a mask of T x T for them,
and only while no cache is in use: with `use_cache` (the default of every configuration) it drops
the boundaries silently and each sequence attends to those before it. Here the boundaries travel
with the batch (`cu_seq_lens_q`, from `data.collators.PackedCollator`), no mask is built, and missing
boundaries are derived from `position_ids`. On CUDA in half precision one variable-length kernel
runs all sequences (`torch.nn.attention.varlen`); elsewhere each sequence is one SDPA call.

This module knows transformers' attention interface. It does not know data, losses or optimizers.
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

__all__ = [
    "PACKED_ATTENTION",
    "batched_attention",
    "cu_seqlens_from_positions",
    "packed_attention",
    "sequential_attention",
    "use_packed_attention",
    "varlen_attention",
]

PACKED_ATTENTION = "vip_llava_packed"
"""Name under which transformers finds `packed_attention`."""

# What torch's variable-length kernel supports.
_KERNEL_DTYPES = (torch.float16, torch.bfloat16)
_MAX_HEAD_DIM = 256
# Where cuDNN's attention was measured to be faster: Hopper, these head sizes, equal lengths.
_CUDNN_HEAD_DIMS = (64, 128)


def use_packed_attention(model: PreTrainedModel) -> None:
    """Make the language model use `packed_attention`; the vision tower is unchanged. In place.

    Batches that are not packed still go through transformers' `sdpa`.
    """
    AttentionInterface.register(PACKED_ATTENTION, packed_attention)
    AttentionMaskInterface.register(PACKED_ATTENTION, _mask)
    owner: Any = model
    owner.get_decoder().set_attn_implementation(PACKED_ATTENTION)


def cu_seqlens_from_positions(position_ids: Tensor) -> Tensor:
    """Cumulative sequence lengths int32 [S + 1] from `position_ids` [1, T].

    A sequence starts wherever the position is not the previous one plus one.
    """
    positions = position_ids[0]
    starts = torch.ones_like(positions, dtype=torch.bool)
    starts[1:] = positions[1:] != positions[:-1] + 1
    offsets = starts.nonzero().flatten()
    end = offsets.new_tensor([positions.numel()])
    return torch.cat([offsets, end]).to(torch.int32)


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
    """Causal attention within each sequence: query [1, H, T, D], key and value [1, K, T, D].

    `cu_seq_lens_q` holds the cumulative sequence lengths, int32 [S + 1]. Returns [1, T, H, D]. A
    call with a mask, a cache or several rows goes to transformers' `sdpa`.
    Raises RequestError for sequence lengths together with a mask or with several rows.
    """
    if cu_seq_lens_q is not None and (attention_mask is not None or query.shape[0] != 1):
        raise RequestError(
            "a packed batch must be one row without an attention_mask; this one has "
            f"{query.shape[0]} rows and {'no' if attention_mask is None else 'a'} mask"
        )
    packed = attention_mask is None and query.shape[0] == 1 and query.shape[2] == key.shape[2]
    if cu_seq_lens_q is None and packed and position_ids is not None:
        cu_seq_lens_q = cu_seqlens_from_positions(position_ids)
    if cu_seq_lens_q is None or not packed:
        attended: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return attended
    attend = sequential_attention
    if _kernel_supports(query, dropout):
        equal = _batchable(query, key, cu_seq_lens_q, max_length_q, sliding_window)
        attend = batched_attention if equal else varlen_attention
    out = attend(query, key, value, cu_seq_lens_q, max_length_q, dropout, scaling, sliding_window)
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
    """No mask where `packed_attention` separates the sequences, else the mask of `sdpa`."""
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


def _find_kernel() -> tuple[Callable[..., Any], frozenset[str]] | None:
    """torch's variable-length attention and its parameter names, from torch 2.10 on."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn, frozenset(inspect.signature(varlen_attn).parameters)


# Looked up at import time, because compiled layers call `varlen_attention`.
_KERNEL = _find_kernel()


def _kernel_supports(query: Tensor, dropout: float) -> bool:
    return (
        query.device.type == "cuda"
        and query.dtype in _KERNEL_DTYPES
        and query.shape[-1] <= _MAX_HEAD_DIM
        and dropout == 0.0
        # Unlike torch.cuda.get_device_capability, this call does not break a compiled layer.
        and torch.cuda.get_device_properties(query.device).major >= 8
        and _KERNEL is not None
    )


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_length: int | None,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """All sequences in one call of torch's variable-length kernel."""
    assert _KERNEL is not None
    kernel, parameters = _KERNEL
    # squeeze, not [0]: indexing would write the gradient into zeros.
    q, k, v = (states.squeeze(0).transpose(0, 1).contiguous() for states in (query, key, value))
    options: dict[str, Any] = {}
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in parameters:
            options["enable_gqa"] = True
        else:
            groups = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    if "window_size" in parameters:
        # (left, right): (-1, 0) is plain causal attention.
        options["window_size"] = (-1 if window is None else window - 1, 0)
    else:
        options["is_causal"] = True
    if max_length is None:
        max_length = int(cu_seqlens.diff().max())
    if window is not None and window < max_length and "window_size" not in parameters:
        return sequential_attention(
            query, key, value, cu_seqlens, max_length, dropout, scaling, window
        )
    if scaling is not None and "scale" in parameters:
        options["scale"] = scaling
    elif scaling is not None:
        q = q * (scaling * q.shape[-1] ** 0.5)
    out: Tensor = kernel(q, k, v, cu_seqlens, cu_seqlens, max_length, max_length, **options)
    return out.unsqueeze(0)


def _batchable(
    query: Tensor, key: Tensor, cu_seqlens: Tensor, max_length: int | None, window: int | None
) -> bool:
    """Whether cuDNN can run the sequences as a batch: equal lengths, no grouped heads."""
    return (
        max_length is not None
        and max_length * (cu_seqlens.numel() - 1) == query.shape[2]
        and query.shape[1] == key.shape[1]
        and (window is None or window >= max_length)
        and query.shape[-1] in _CUDNN_HEAD_DIMS
        and torch.cuda.get_device_properties(query.device).major == 9
        and cudnn_works(query.device.type, query.dtype, query.shape[-1])
    )


def cudnn_works(device: str, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether this torch has cuDNN attention and cuDNN accepts such heads."""
    return _try_cudnn(device, dtype, head_dim)


# Evaluated while a layer is compiled, not in the compiled layer.
_mark: Any = torch.compiler.assume_constant_result
_mark(cudnn_works)


@functools.cache
def _try_cudnn(device: str, dtype: torch.dtype, head_dim: int) -> bool:
    try:
        some = torch.zeros(2, 8, 2, head_dim, device=device, dtype=dtype).transpose(1, 2)
        attend = torch.ops.aten._scaled_dot_product_cudnn_attention
        attend(some, some, some, None, True, 0.0, True, False)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return True


def batched_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_length: int | None,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Sequences of one length L as a batch [S, H, L, D], by cuDNN."""
    count = cu_seqlens.numel() - 1
    # Contiguous as [S, L, H, D]: the layout of the projection before and the one behind.
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


def sequential_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_length: int | None,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """One call of torch's SDPA for each sequence."""
    outs = []
    for start, stop in itertools.pairwise(cu_seqlens.tolist()):
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
            enable_gqa=query.shape[1] != key.shape[1],
        )
        outs.append(out)
    return torch.cat(outs, dim=2).transpose(1, 2).contiguous()
