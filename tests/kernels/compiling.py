"""Compiles every fused kernel for a GPU that is not present, as the host side would launch it.

    python compiling.py 90 bfloat16

`test_compiles.py` runs it in a process of its own, because Triton's interpreter cannot compile.
Nothing is launched: each kernel is compiled for the types, sizes and flags of its launch.
"""

from __future__ import annotations

import os
import sys

os.environ["TRITON_INTERPRET"] = "0"

from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile  # Triton's
from triton.runtime.jit import JITFunction

from vip_llava.kernels import (
    DecodeBatch,
    Dense,
    Int4,
    Int8,
    Matrix,
    Norm,
    PrefillChunk,
    fused,
)
from vip_llava.kernels.fused import launch, matmul, paged_decode, paged_prefill

NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
NAMES |= {torch.int8: "i8", torch.uint8: "u8", torch.int32: "i32", torch.int64: "i64"}
MOST_SHARED = {80: 163 << 10, 90: 227 << 10}
OPTIONS = ("num_warps", "num_stages", "launch_pdl")


def type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + NAMES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


class Compiler:
    """Compiles kernels instead of launching them."""

    def __init__(self, capability: int) -> None:
        self.capability = capability
        self.done: set[str] = set()

    def __call__(self, kernel: JITFunction[Any], grid: tuple[int, ...]) -> Any:
        def run(*given: Any, **named: Any) -> None:
            assert all(0 < count < 1 << 31 for count in grid)
            options = {name: named.pop(name) for name in OPTIONS if name in named}
            arguments = dict(zip(kernel.arg_names, given, strict=False)) | named
            constants = {p.name: arguments[p.name] for p in kernel.params if p.is_constexpr}
            types = {
                name: "constexpr" if name in constants else type_of(arguments[name])
                for name in kernel.arg_names
            }
            places = {name: (at,) for at, name in enumerate(kernel.arg_names)}
            sixteen = {
                places[name]: [["tt.divisibility", 16]] for name in types if types[name][0] == "*"
            }
            fixed = {places[name]: value for name, value in constants.items()}
            source = ASTSource(kernel, types, fixed, sixteen)
            if str((source.hash(), options)) in self.done:
                return
            self.done.add(str((source.hash(), options)))
            built = compile(source, target=GPUTarget("cuda", self.capability, 32), options=options)
            assert built.metadata.shared <= MOST_SHARED[self.capability], (kernel, constants)
            if kernel.__name__ == "int_gemv" and types["x"] != "*fp32" and constants["BG"] > 64:
                # Threads exchange only sums.
                most = 4 * constants["BN"] * options["num_warps"] * (1 + constants["GATED"])
                assert built.metadata.shared <= most, (built.metadata.shared, constants)

        return run


def matrix(bits: int, outputs: int, inputs: int, dtype: torch.dtype, bias: bool) -> Matrix:
    more = torch.empty(outputs, dtype=dtype) if bias else None
    if bits == 16:
        return Dense(torch.empty(outputs, inputs, dtype=dtype), more)
    if bits == 8:
        whole = torch.empty(outputs, inputs, dtype=torch.int8)
        return Int8(whole, torch.empty(outputs, dtype=dtype), more)
    packed = torch.empty(outputs, inputs // 2, dtype=torch.uint8)
    scale, low = torch.empty(2, outputs, inputs // 32, 1, dtype=dtype)
    return Int4(packed, scale, low, more)


def products(dtype: torch.dtype) -> None:
    for bits in (16, 8, 4):
        for rows, inputs in ((1, 4096), (1, 11008), (8, 4096), (64, 96)):
            x, residual = torch.empty(rows, inputs, dtype=dtype), torch.empty(rows, 48, dtype=dtype)
            norm = Norm(torch.empty(inputs, dtype=dtype), 1e-5)
            three = [matrix(bits, 16, inputs, dtype, bias=True) for _ in range(3)]
            single = matrix(bits, 48, inputs, dtype, bias=False)
            if inputs != 11008:
                fused.linear(x, three, norm=norm)
                fused.swiglu(x, single, single, norm)
            if rows < 64:
                fused.linear(x, [single], residual)


def attention(dtype: torch.dtype) -> None:
    for heads, kv_heads, width, rows in ((32, 32, 128, 1), (32, 32, 128, 64), (9, 3, 64, 2)):
        q = torch.empty(rows, heads, width, dtype=dtype)
        k, v = torch.empty(2, rows, kv_heads, width, dtype=dtype)
        keys, values = torch.empty(2, 64, kv_heads, width, dtype=dtype)
        table = torch.zeros(rows, 48, dtype=torch.int32)
        lengths, slots = torch.zeros(2, rows, dtype=torch.int32)
        cos, sin = torch.empty(2, rows, width, dtype=dtype)
        qkv, rotary, cache = (q, k, v), (cos, sin), (keys, values)
        fused.decode_attention(qkv, rotary, cache, DecodeBatch(slots, table, lengths), 0.1)
        fused.decode_attention(qkv, rotary, cache, DecodeBatch(slots.long(), table, lengths), 0.1)
        fused.rope_and_cache(qkv, rotary, cache, slots)
        span = torch.zeros(2, dtype=torch.int32)
        fused.prefill_attention(q, cache, PrefillChunk(slots, table[0], span), 0.1)


def main() -> None:
    capability, dtype = int(sys.argv[1]), getattr(torch, sys.argv[2])
    compiler: Any = Compiler(capability)
    JITFunction.__getitem__ = lambda kernel, grid: compiler(kernel, grid)  # type: ignore[method-assign]
    launch.supports_overlap = lambda device: capability >= 90  # type: ignore[assignment]
    module: Any
    for module in (matmul, paged_decode, paged_prefill):
        module.num_processors = lambda device: 132  # of the GPU that configurations are tuned for
    with torch.inference_mode():
        x = torch.empty(2, 192, dtype=dtype)
        fused.rms_norm(x, x[0], 1e-5)
        fused.add_rms_norm(x, x, x[0], 1e-5)
        fused.silu_and_mul(x)
        attention(dtype)
        products(dtype)
    print(len(compiler.done), "kernels")


if __name__ == "__main__":
    main()
