"""Tiny models for the tests of training; `tiny.py` beside this file makes them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

# Also a script of its own, so it is no module of a package.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def tiny_vip() -> Any:
    """A five-layer VipLlava: vocabulary 100, `<image>` is 99, a view is 4 tokens."""
    from tiny import vip_llava

    return vip_llava()


@pytest.fixture(params=["vip_llava", "llava"])
def tiny_model(request: pytest.FixtureRequest) -> Any:
    """A five-layer VipLlava, and a one-layer Llava."""
    import tiny

    return getattr(tiny, request.param)()
