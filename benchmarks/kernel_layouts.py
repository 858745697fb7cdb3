"""Tries layouts of the kernels at the shapes of a 7B Llama; what is best goes to `fused/choices.py`.

Compiling takes longer than measuring, so it is done by several processes first; they share
Triton's cache. The table names the best layouts of each product and the time of the present one.

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

from kernels import TINY, Case, Product, Requests, Size, microseconds, numbers, products, random
from vip_llava.kernels import fused
from vip_llava.kernels.fused import tuned_configs as choices

WORKERS = 12


# Outputs, inputs, warps; outputs are those of both matrices where there are two.
VECTORS = [
    (4, 4096, 8), (4, 4096, 4), (2, 4096, 4), (4, 2048, 4), (8, 2048, 8), (8, 4096, 8),
    (8, 1024, 4), (2, 4096, 8), (4, 2048, 8),
]  # fmt: skip
# Outputs (of both matrices), groups, warps; then programs on a multiprocessor and tiles ahead.
WORDS = [(8, 128, 4), (4, 128, 4)]
SHARES = list(itertools.product((2, 3, 4, 6), (0, 1, 2, 4)))


def vector_layouts(bits: int, gated: bool) -> Iterator[Any]:
    share = 2 if gated else 1
    if bits == 16:
        for at, (outputs, inputs, warps) in enumerate(VECTORS):
            for ahead in (0, 2048) if at == 0 else (0,):
                yield choices.VectorSetting(outputs // share, inputs, warps, ahead)
        return
    for (outputs, groups, warps), (programs, ahead) in itertools.product(WORDS, SHARES):
        yield choices.WordsSetting(outputs // share, groups, warps, programs, ahead)


def matrix_layouts(bits: int, gated: bool) -> Iterator[choices.MatrixSetting]:
    share = 2 if gated else 1
    for outputs, inputs, warps, stages in itertools.product(
        (32, 64, 128), (64, 128, 256), (4, 8), (2, 4)
    ):
        if 4096 <= outputs * inputs <= 4096 * warps:
            yield choices.MatrixSetting(outputs // share, inputs, warps, stages)


def layouts_of(size: Size, product: Product, bits: int, rows: int) -> tuple[str, list[Any]]:
    """The name of the choice, and what to try."""
    if rows > 1:
        return "matrix_setting", list(matrix_layouts(bits, product.gated))
    name = "vector_setting" if bits == 16 else "words_setting"
    few = 3 if size.device == "cpu" else None
    return name, list(vector_layouts(bits, product.gated))[:few]


def compiled_once(layouts: list[Any]) -> list[Any]:
    """Those of them that differ in what has to be compiled."""
    words = [one for one in layouts if isinstance(one, choices.WordsSetting)]
    return list({replace(one, programs=1): one for one in words}.values()) or layouts


@contextmanager
def always(name: str, layout: Any) -> Iterator[None]:
    """One layout is chosen for every product."""
    usual = getattr(choices, name)
    setattr(choices, name, lambda *_: layout)
    try:
        yield
    finally:
        setattr(choices, name, usual)


def try_products(size: Size, bits: int, rows: int, names: list[str], part: int) -> Iterator[str]:
    for product in products(size):
        if product.name not in names or (product.name == "head" and bits != 16):
            continue
        case = Case(size, product, bits, rows)
        name, layouts = layouts_of(size, product, bits, rows)
        if part >= 0:
            for layout in compiled_once(layouts)[part::WORKERS]:
                with always(name, layout), suppress(Exception):  # the other run says so
                    case.run(fused, case.sets[0])
            continue
        now = case.time(fused)
        found = []
        for layout in layouts:
            try:
                with always(name, layout):
                    found.append((case.time(fused), str(layout).split("Setting")[1]))
            except Exception as error:  # too large for the device: the table says so
                found.append((float("inf"), f"{layout}: {type(error).__name__}"))
        for took, text in sorted(found)[:8]:
            rate = case.bytes / took / 1e3
            yield f"{product.name:8} {bits:2} {rows:3} {took:7.1f} us {rate:5.0f} GB/s  {text}"
        yield f"{product.name:8} {bits:2} {rows:3} {now:7.1f} us now; {len(found)} tried"


ATTENTIONS = [
    (16, 4, 2, None), (32, 4, 1, None), (32, 4, 2, None), (64, 4, 1, None), (64, 8, 1, None),
    (64, 8, 1, 8), (32, 4, 1, 8), (128, 8, 1, 8), (32, 8, 1, None),
]  # fmt: skip


def try_attention(size: Size, rows: int, part: int) -> Iterator[str]:
    requests = Requests(size, rows, max(2, min(16, 1 + size.cold // (rows * 11 << 20))))
    layers = len(requests.memory)
    qkv = random(size, rows, (size.heads + 2 * size.held) * size.head)
    usual, found = choices.attention_setting, []
    for layout in ATTENTIONS[part::WORKERS] if part >= 0 else ATTENTIONS:
        setting = choices.AttentionSetting(*layout)
        choices.attention_setting = lambda *_, setting=setting: setting
        if part >= 0:
            requests.step(fused, 0, qkv)
            continue
        order = [partial(requests.step, fused, at % layers, qkv) for at in range(max(8, layers))]
        found.append((microseconds(size, order, 7), str(setting)))
    choices.attention_setting = usual
    for took, text in sorted(found)[:4]:
        yield f"paged    {rows:3} {took:7.1f} us {requests.bytes / took / 1e3:5.0f} GB/s  {text}"


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=numbers, default=[1])
    parser.add_argument("--bits", type=numbers, default=[16, 8, 4])
    parser.add_argument("--names", default="qkv,out,gate-up,down,head,attention")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--part", type=int, default=-1, help="only compile this share")
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
