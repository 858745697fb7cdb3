"""Generation: ids and tensors in, ids (and their text) out; see `runner`.

Knows no pictures, regions, templates or HTTP.
"""

from __future__ import annotations

from vip_llava.engine.detokenize import TextStream
from vip_llava.engine.runner import Decoding, Generated, TokenEvent, check_room, generate
from vip_llava.engine.sampling import SamplingParams

__all__ = [
    "Decoding",
    "Generated",
    "SamplingParams",
    "TextStream",
    "TokenEvent",
    "check_room",
    "generate",
]
