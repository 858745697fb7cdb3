"""Compiles the kernels of frozen layers for a GPU that is not there: `compiling_frozen.py 90`.

Run by `test_frozen.py` in a process of its own, because Triton's interpreter can't compile.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernels"))

from compiling import NAMES, Compiler, JITFunction

from vip_llava.training.frozen import eight_gpu, gpu


def main() -> None:
    compiler: Any = Compiler(int(sys.argv[1]))
    NAMES[torch.float8_e4m3fn] = "fp8e4nv"
    JITFunction.__getitem__ = lambda kernel, grid: compiler(kernel, grid)  # type: ignore[method-assign]
    for width, middle in ((4096, 11008), (576, 1536)):
        x, wide = torch.empty(2, width).bfloat16(), torch.empty(2, middle).bfloat16()
        angles = torch.empty(2, 64).bfloat16()
        for more in (None, x):
            gpu.add_norm(x, more, x[0], 1e-5)
        gpu.norm_backward(x, x, x[0], 1e-5, x)
        gpu.turn(x, angles, angles, inplace=True)
        gpu.turn(x, angles, angles, back=True)
        gpu.gate(wide, wide)
        gpu.gate_backward(wide, wide, wide)
        if int(sys.argv[1]) >= 89:
            for pieces in ([x], [wide, wide], [x, x, x]):
                eight_gpu.narrow(pieces)
            eight_gpu.add_norm(x, x, x[0], 1e-5)
            eight_gpu.add_norm(x, None, x[0], 1e-5)
            eight_gpu.gate(wide, wide)
            eight_gpu.gate_backward(wide, wide, wide)
    print(len(compiler.done), "kernels")


if __name__ == "__main__":
    main()
