"""Generation: ids and tensors in, ids and their text out.

`engine.Engine` is the entry point. Below it: `engine_core` makes the steps; `scheduler` and
`block_manager` decide who runs and in which blocks; `model_runner` runs the language model by graphs
(`decode_graphs`, `prefill_graphs`), fused kernels or layer by layer; `encoder_cache` holds image
features; `sampler` and `detokenizer` make tokens and text of logits.

This package does not know images, regions, templates or HTTP.
"""

from __future__ import annotations

from vip_llava.engine.config import EngineConfig, EngineStats
from vip_llava.engine.detokenizer import TextStream
from vip_llava.engine.engine import Engine
from vip_llava.engine.handle import Handle
from vip_llava.engine.sampler import Logprobs
from vip_llava.engine.sequence import RequestOutput, TokenEvent

__all__ = [
    "Engine",
    "EngineConfig",
    "EngineStats",
    "Handle",
    "Logprobs",
    "RequestOutput",
    "TextStream",
    "TokenEvent",
]
