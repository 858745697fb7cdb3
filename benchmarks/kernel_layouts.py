"""Measures launch configurations of the kernels at the shapes of a 7B Llama, for `tuned_configs.py`.

Compiling takes longer than measuring, so several processes do it first; they share Triton's cache.
The table has the best configurations of each product and the time of the current one.

    python benchmarks/kernel_layouts.py [--rows 1] [--bits 16,8,4] [--names qkv,out] [--tiny]
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from kernels import TINY, Case, Product, Sequences, Size, microseconds, numbers, products, random
from vip_llava.kernels import fused
from vip_llava.kernels.fused import tuned_configs

WORKERS = 12


# Outputs (of both matrices if there are two), inputs, warps.
GEMV = [
    (4, 4096, 8), (4, 4096, 4), (2, 4096, 4), (4, 2048, 4), (8, 2048, 8), (8, 4096, 8),
    (8, 1024, 4), (2, 4096, 8), (4, 2048, 8),
]  # fmt: skip
# Outputs (of both matrices), groups, warps; then programs on a multiprocessor.
INT_GEMV = [(8, 128, 4), (4, 128, 4)]
PROGRAMS = (2, 3, 4, 6)


def gemv_configs(bits: int, gated: bool) -> Iterator[Any]:
    share = 2 if gated else 1
    if bits == 16:
        for outputs, inputs, warps in GEMV:
            yield tuned_configs.GemvConfig(outputs // share, inputs, warps)
        return
    for (outputs, groups, warps), programs in itertools.product(INT_GEMV, PROGRAMS):
        yield tuned_configs.IntGemvConfig(outputs // share, groups, warps, programs)


def gemm_configs(bits: int, gated: bool) -> Iterator[tuned_configs.GemmConfig]:
    share = 2 if gated else 1
    for outputs, inputs, warps, stages in itertools.product(
        (32, 64, 128), (64, 128, 256), (4, 8), (2, 4)
    ):
        if 4096 <= outputs * inputs <= 4096 * warps:
            yield tuned_configs.GemmConfig(outputs // share, inputs, warps, stages)


def configs_of(size: Size, product: Product, bits: int, rows: int) -> tuple[str, list[Any]]:
    """The name of the function that selects a configuration, and configurations to measure."""
    if rows > 1:
        return "gemm_config", list(gemm_configs(bits, product.gated))
    name = "gemv_config" if bits == 16 else "int_gemv_config"
    few = 3 if size.device == "cpu" else None
    return name, list(gemv_configs(bits, product.gated))[:few]


def compiled_once(configs: list[Any]) -> list[Any]:
    """The configurations that differ in what has to be compiled."""
    words = [one for one in configs if isinstance(one, tuned_configs.IntGemvConfig)]
    return list({replace(one, programs=1): one for one in words}.values()) or configs


@contextmanager
def fixed(name: str, config: Any) -> Iterator[None]:
    """Use one configuration for every product."""
    before = getattr(tuned_configs, name)
    setattr(tuned_configs, name, lambda *_: config)
    try:
        yield
    finally:
        setattr(tuned_configs, name, before)


def try_products(size: Size, bits: int, rows: int, names: list[str], part: int) -> Iterator[str]:
    for product in products(size):
        if product.name not in names or (product.name == "head" and bits != 16):
            continue
        case = Case(size, product, bits, rows)
        name, configs = configs_of(size, product, bits, rows)
        if part >= 0:
            for config in compiled_once(configs)[part::WORKERS]:
                with fixed(name, config), suppress(Exception):  # reported by the measuring run
                    case.run(fused, case.sets[0])
            continue
        now = case.time(fused)
        found = []
        for config in configs:
            try:
                with fixed(name, config):
                    found.append((case.time(fused), str(config).split("Config")[1]))
            except Exception as error:  # too large for the device
                found.append((float("inf"), f"{config}: {type(error).__name__}"))
        for took, text in sorted(found)[:8]:
            rate = case.bytes / took / 1e3
            yield f"{product.name:8} {bits:2} {rows:3} {took:7.1f} us {rate:5.0f} GB/s  {text}"
        yield f"{product.name:8} {bits:2} {rows:3} {now:7.1f} us now; {len(found)} measured"


ATTENTION = [
    (16, 4, 2, None), (32, 4, 1, None), (32, 4, 2, None), (64, 4, 1, None), (64, 8, 1, None),
    (64, 8, 1, 8), (32, 4, 1, 8), (128, 8, 1, 8), (32, 8, 1, None),
]  # fmt: skip


def try_attention(size: Size, rows: int, part: int) -> Iterator[str]:
    sequences = Sequences(size, rows, max(2, min(16, 1 + size.cold // (rows * 11 << 20))))
    layers = len(sequences.cache)
    qkv = random(size, rows, (size.heads + 2 * size.held) * size.head)
    before, found = tuned_configs.attention_config, []
    for config in ATTENTION[part::WORKERS] if part >= 0 else ATTENTION:
        config = tuned_configs.AttentionConfig(*config)
        tuned_configs.attention_config = lambda *_, config=config: config
        if part >= 0:
            sequences.step(fused, 0, qkv)
            continue
        order = [partial(sequences.step, fused, at % layers, qkv) for at in range(max(8, layers))]
        found.append((microseconds(size, order, 7), str(config)))
    tuned_configs.attention_config = before
    for took, text in sorted(found)[:4]:
        yield f"paged    {rows:3} {took:7.1f} us {sequences.bytes / took / 1e3:5.0f} GB/s  {text}"


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=numbers, default=[1])
    parser.add_argument("--bits", type=numbers, default=[16, 8, 4])
    parser.add_argument("--names", default="qkv,out,gate-up,down,head,attention")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--part", type=int, default=-1, help="only compile this part")
    options = parser.parse_args()
    size, names = (TINY if options.tiny else Size()), options.names.split(",")
    if options.part < 0 and not options.tiny:
        began = time.perf_counter()
        parts = range(WORKERS)
        command = [sys.executable, *sys.argv]
        running = [subprocess.Popen([*command, "--part", str(part)]) for part in parts]
        for one in running:
            one.wait()
        print(f"compiled in {time.perf_counter() - began:.0f} s", flush=True)
    if options.part >= 0:
        size = Size(cold=1)
    for rows in options.rows:
        if "attention" in names:
            for line in try_attention(size, rows, options.part):
                print(line, flush=True)
        for bits in options.bits:
            for line in try_products(size, bits, rows, names, options.part):
                print(line, flush=True)


if __name__ == "__main__":
    main()
