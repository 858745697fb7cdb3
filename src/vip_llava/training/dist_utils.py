"""Small exchanges between the processes of a run: numbers, texts, and whether all went well.

Texts travel as bytes in tensors, never as pickles. With one process everything is what it was. It
knows nothing of training.
"""

from __future__ import annotations

import gc
import json
import time
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["barrier", "gather_json", "leave", "rank", "share_json", "sum_numbers", "world"]


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if world() > 1 else 0


def barrier() -> None:
    """Wait for all."""
    if world() > 1:
        dist.barrier()


def sum_numbers(numbers: list[int], device: torch.device) -> list[int]:
    """Whole numbers, each summed over all processes."""
    if world() == 1:
        return numbers
    total = torch.tensor(numbers, dtype=torch.int64, device=device)
    dist.all_reduce(total)
    return [int(number) for number in total.tolist()]


def gather_json(value: Any, device: torch.device) -> list[Any]:
    """The values of all processes, in the order of their numbers; every process gets them."""
    if world() == 1:
        return [value]
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    size = torch.tensor([text.numel()], device=device)
    sizes = [torch.zeros_like(size) for _ in range(world())]
    dist.all_gather(sizes, size)
    longest = max(int(each) for each in sizes)
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: text.numel()] = text
    texts: list[Tensor] = [torch.zeros_like(padded) for _ in range(world())]
    dist.all_gather(texts, padded)
    pairs = zip(texts, sizes, strict=True)
    return [json.loads(each[: int(count)].cpu().numpy().tobytes()) for each, count in pairs]


def share_json(value: Any, device: torch.device) -> Any:
    """The value of process 0."""
    return gather_json(value if rank() == 0 else None, device)[0]


def leave() -> None:
    """End the connection; for the end of a process whose run went well, and when it is dropped.

    A thread of the connection that lets go of a tensor while Python shuts down aborts the process.
    So whatever still holds the connection (a trainer is a circle of references) goes first, which
    ends its threads. Sharded tensors are kept by torch's own caches: there the threads stay, and
    get a moment to let go.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    dist.barrier()
    gc.collect()
    time.sleep(0.2)
    dist.destroy_process_group()
    gc.collect()
