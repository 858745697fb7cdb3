"""Hashes of views: equal ones mean equal pixels, so what was made of them may be used again.

Whoever asks about a picture waits for its hash, so the pieces of a view are hashed side by side.

This module knows tensors and bytes, and nothing of what they show.
"""

from __future__ import annotations

import functools
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

__all__ = ["view_digests"]

_PIECE = 1 << 17
"""Bytes hashed in one go. It is a part of what the hash is, so no two machines may differ in it."""
_THREADS = 8


def view_digests(pixel_values: Tensor) -> list[bytes]:
    """One hash for each view of `pixel_values` [N, 3, S, S] of any type."""
    kind = f"{pixel_values.dtype} {list(pixel_values.shape[1:])} ".encode()
    views = pixel_values.detach().cpu().contiguous()
    if not views.numel():
        return [_hash(kind)] * len(views)
    data = memoryview(views.view(-1).view(torch.uint8).numpy())
    size = len(data) // len(views)
    starts = range(0, size, _PIECE)
    pieces = [
        data[first + start : first + min(start + _PIECE, size)]
        for first in range(0, len(data), size)
        for start in starts
    ]
    # The interpreter is free while a piece is hashed; a few bytes are not worth a thread.
    found = list(map(_hash, pieces) if len(pieces) < 3 else _pool().map(_hash, pieces))
    each = len(starts)
    return [_hash(kind + b"".join(found[at : at + each])) for at in range(0, len(found), each)]


def _hash(data: bytes | memoryview) -> bytes:
    # Processors have instructions for this one.
    return hashlib.sha256(data).digest()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), "vip-llava-hash")


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing is forked
    # A forked process has the pool, but not its threads.
    os.register_at_fork(after_in_child=_pool.cache_clear)
