"""Stage 2 on one and on several GPUs: rows per second, memory and the share of communication.

The optimized step of `training_step.py` (packed rows, supervised positions, compiled layers) for a 7B
model with random weights, sharded by FSDP2, on ragged rows, 128 rows per step for any number of
GPUs. Each number of GPUs is a run of its own that writes its results into a folder; `--table` prints
them side by side.

    torchrun --nproc-per-node 8 benchmarks/scaling.py --out RUNS [--seconds 120]
    python benchmarks/scaling.py --out RUNS --table
    torchrun --nproc-per-node 2 benchmarks/scaling.py --out RUNS --tiny     # on CPUs
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.profiler import ProfilerActivity, profile
from training_step import (
    BIG,
    TINY,
    Batch,
    Case,
    adamw,
    apply_optimizations,
    build_model,
    make_samples,
    to_device,
)

from vip_llava.data.collators import PackedCollator
from vip_llava.data.samples import Sample
from vip_llava.training.dist_utils import destroy_process_group

RAGGED = Case(2, 128, 512, 40, 700, 0.6)


def balanced_split(samples: list[Sample], parts: int) -> list[list[Sample]]:
    """Split rows into parts with similar numbers of tokens: longest first, to the smallest part."""
    rows: list[list[Sample]] = [[] for _ in range(parts)]
    tokens = [0] * parts
    for sample in sorted(samples, key=lambda sample: -sample.length):
        least = tokens.index(min(tokens))
        rows[least].append(sample)
        tokens[least] += sample.length
    return rows


def sharded_model(tiny: bool, device: torch.device, compiled: bool) -> Any:
    """A random model with each layer as a unit of FSDP2; no process ever holds the whole model."""
    size = TINY if tiny else BIG
    dtype = torch.float32 if tiny else torch.bfloat16
    model = build_model(size, "meta", dtype, 2)
    apply_optimizations(model, compiled)
    for layer in model.get_decoder().layers:
        layer.gradient_checkpointing = False
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for layer in model.get_decoder().layers:
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    model.to_empty(device=device)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            local: Any = weight.to_local() if hasattr(weight, "to_local") else weight
            local.normal_(std=0.02) if weight.ndim > 1 else local.fill_(1.0)
    reset_buffers(model)
    return model


def reset_buffers(model: Any) -> None:
    """Recompute the buffers, which are uninitialized after the meta device."""
    for module in model.modules():
        if hasattr(module, "rope_init_fn"):
            found, _ = module.rope_init_fn(module.config, module.inv_freq.device)
            module.inv_freq.copy_(found)
        if hasattr(module, "position_ids") and isinstance(module.position_ids, torch.Tensor):
            count = module.position_ids.shape[-1]
            module.position_ids.copy_(torch.arange(count).expand_as(module.position_ids))


def rank_batches(samples: list[Sample], tokens: int, device: torch.device) -> list[Batch]:
    """The packs of this rank in a step; all ranks have the same number."""
    mine = balanced_split(samples, dist.get_world_size())[dist.get_rank()]
    count = torch.tensor(-(-sum(sample.length for sample in mine) // tokens), device=device)
    dist.all_reduce(count, dist.ReduceOp.MAX)
    collate: Any = PackedCollator(0)
    return [collate(rows) for rows in balanced_split(mine, int(count))]


def step(model: Any, batches: Sequence[Batch], optimizer: torch.optim.Optimizer) -> None:
    """Accumulate the gradients of all packs, reduce them once, and step the optimizer."""
    for number, batch in enumerate(batches):
        model.set_requires_gradient_sync(number == len(batches) - 1)
        loss = model(**to_device(batch, model), use_cache=False).loss / len(batches)
        loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def communication(model: Any, batches: list[Batch], optimizer: torch.optim.Optimizer) -> float:
    """The fraction of a step in which communication kernels run, overlapped or not."""
    if model.device.type != "cuda":
        return float("nan")
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        began = time.perf_counter()
        step(model, batches, optimizer)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    spent = [e.self_device_time_total for e in seen.key_averages() if "nccl" in e.key.lower()]
    return sum(spent) / 1e6 / seconds


def run(given: argparse.Namespace) -> dict[str, float]:
    """Measure with this number of processes: their total throughput and maximum memory."""
    cuda = torch.cuda.is_available() and not given.tiny
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    model = sharded_model(given.tiny, device, cuda)
    optimizer = adamw(model, 0.0)
    case = Case(2, 8, 16, 40, 700, 0.6) if given.tiny else RAGGED
    samples = make_samples(TINY if given.tiny else BIG, case)
    starts = range(0, len(samples), case.batch)
    steps = [rank_batches(samples[at : at + case.batch], given.tokens, device) for at in starts]
    for batches in steps[:2]:
        step(model, batches, optimizer)
    dist.barrier()
    began, done = time.perf_counter(), 0
    over = torch.zeros((), device=device)
    while not over:
        step(model, steps[done % len(steps)], optimizer)
        done += 1
        # Rank 0 decides, so that all ranks stop after the same step.
        over.fill_(time.perf_counter() - began > given.seconds)
        dist.broadcast(over, 0)
    seconds = time.perf_counter() - began
    memory = torch.tensor(torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0, device=device)
    dist.all_reduce(memory, dist.ReduceOp.MAX)
    share = communication(model, steps[0], optimizer)
    found = {
        "processes": dist.get_world_size(),
        "rows": done * case.batch / seconds,
        "memory": float(memory),
        "communication": share,
    }
    if dist.get_rank() == 0:
        given.out.mkdir(parents=True, exist_ok=True)
        path = given.out / f"{dist.get_world_size()}.json"
        path.write_text(json.dumps(found), encoding="utf-8")
    return found


def table(folder: Path) -> str:
    """All runs side by side, with the efficiency relative to the run with the fewest GPUs."""
    runs = [json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")]
    runs.sort(key=lambda found: found["processes"])
    lines = [
        "| GPUs | rows/s | rows/s per GPU | efficiency | memory, GiB | communication |",
        "|---|---|---|---|---|---|",
    ]
    for found in runs:
        each, first = (r["rows"] / r["processes"] for r in (found, runs[0]))
        shared = found["communication"]
        lines.append(
            f"| {found['processes']} | {found['rows']:.2f} | {each:.2f} | {each / first:.0%} "
            f"| {found['memory']:.1f} | {'-' if math.isnan(shared) else f'{shared:.0%}'} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure with the processes that torchrun started, or print the table of earlier runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=120.0, help="duration of the measurement")
    parser.add_argument("--tokens", type=int, default=13312, help="approximate tokens of a pack")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on CPUs")
    parser.add_argument("--table", action="store_true", help="print the table of earlier runs")
    given = parser.parse_args(arguments)
    if given.tiny:
        given.seconds, given.tokens = 1.0, 200
    if not given.table:
        if "LOCAL_RANK" not in os.environ:
            parser.error("start with torchrun --nproc-per-node N, also for one GPU")
        run(given)
        destroy_process_group()  # not before the model is gone: a process may abort otherwise
    if given.table or os.environ.get("RANK") == "0":
        print(table(given.out))


if __name__ == "__main__":
    main()
