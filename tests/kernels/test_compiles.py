"""Every fused kernel compiles for GPUs that are not present; the interpreter checks no types."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "dtype"),
    # The code of float16 is that of bfloat16.
    [(90, "bfloat16"), (90, "float32"), (80, "bfloat16")],
)
def test_kernels_compile(capability: int, dtype: str) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    command = [
        sys.executable,
        str(Path(__file__).with_name("compiling.py")),
        str(capability),
        dtype,
    ]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[0]) > 25
