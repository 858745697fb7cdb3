"""Tiny models and made samples for the tests of training."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import llava, vip_llava

from vip_llava.training.vision import read_views


@pytest.fixture
def vip_model() -> Any:
    return vip_llava()


@pytest.fixture(params=[vip_llava, llava], ids=["vip", "llava"])
def any_model(request: pytest.FixtureRequest) -> Any:
    model = request.param()
    read_views(model)
    return model
