"""Collectives over the processes of a run, for integers and JSON values.

Values travel as bytes in tensors, never as pickles. In a run of one process every function returns
its input. This module does not know training.
"""

from __future__ import annotations

import gc
import json
import time
from typing import Any

import torch
from torch import distributed as dist

__all__ = [
    "all_gather_json",
    "all_reduce_ints",
    "barrier",
    "broadcast_json",
    "destroy_process_group",
    "rank",
    "world_size",
]


def world_size() -> int:
    """The number of processes of the run; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The rank of this process; 0 without torch.distributed."""
    return dist.get_rank() if world_size() > 1 else 0


def barrier() -> None:
    """Wait until every process has reached this call."""
    if world_size() > 1:
        dist.barrier()


def all_reduce_ints(values: list[int], device: torch.device) -> list[int]:
    """Integers, each summed over all processes."""
    if world_size() == 1:
        return values
    total = torch.tensor(values, dtype=torch.int64, device=device)
    dist.all_reduce(total)
    return [int(value) for value in total.tolist()]


def all_gather_json(value: Any, device: torch.device) -> list[Any]:
    """The JSON values of all processes, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    size = torch.tensor([data.numel()], device=device)
    sizes = [torch.zeros_like(size) for _ in range(world_size())]
    dist.all_gather(sizes, size)
    padded = torch.zeros(max(int(each) for each in sizes), dtype=torch.uint8, device=device)
    padded[: data.numel()] = data
    gathered = [torch.zeros_like(padded) for _ in range(world_size())]
    dist.all_gather(gathered, padded)
    pairs = zip(gathered, sizes, strict=True)
    return [json.loads(each[: int(count)].cpu().numpy().tobytes()) for each, count in pairs]


def broadcast_json(value: Any, device: torch.device) -> Any:
    """The JSON value of rank 0."""
    return all_gather_json(value if rank() == 0 else None, device)[0]


def destroy_process_group() -> None:
    """Close the process group after a successful run, once its users have been dropped.

    A backend thread that frees a tensor while the interpreter shuts down aborts the process.
    Collecting reference cycles first (a trainer is one) ends those threads. torch's own caches
    keep sharded tensors alive: the pause gives the remaining threads time to release them.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    dist.barrier()
    gc.collect()
    time.sleep(0.2)
    dist.destroy_process_group()
    gc.collect()
