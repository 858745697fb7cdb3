"""Generation: ids and tensors in, ids (and their text) out; see `core`.

Knows no pictures, regions, templates or HTTP.
"""

from __future__ import annotations

from vip_llava.engine.core import Engine, Handle
from vip_llava.engine.detokenize import TextStream
from vip_llava.engine.sampling import Logprobs, SamplingParams
from vip_llava.engine.scheduler import TokenEvent
from vip_llava.engine.values import EngineSettings, EngineStats, Generated, check_room

__all__ = [
    "Engine",
    "EngineSettings",
    "EngineStats",
    "Generated",
    "Handle",
    "Logprobs",
    "SamplingParams",
    "TextStream",
    "TokenEvent",
    "check_room",
]
