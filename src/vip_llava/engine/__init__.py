"""Generation: ids and tensors in, ids (and their text) out; see `core`.

Knows no images, regions, templates or HTTP.
"""

from __future__ import annotations

from vip_llava.engine.config import EngineSettings, EngineStats, Generated, check_room
from vip_llava.engine.detokenizer import TextStream
from vip_llava.engine.engine import Engine, Handle
from vip_llava.engine.sampler import Logprobs
from vip_llava.engine.scheduler import TokenEvent

__all__ = [
    "Engine",
    "EngineSettings",
    "EngineStats",
    "Generated",
    "Handle",
    "Logprobs",
    "TextStream",
    "TokenEvent",
    "check_room",
]
