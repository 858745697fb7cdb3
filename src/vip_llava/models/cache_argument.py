"""The name of the argument that passes a KV cache to a transformers model.

transformers 5.24 renamed `past_key_values` to `cache` in every model, decoder and layer. It warns
about the old name alone, ignores it beside the new one, and removes it in 5.40.
"""

from __future__ import annotations

import inspect

from transformers import LlamaModel

__all__ = ["CACHE_ARGUMENT"]

CACHE_ARGUMENT = (
    "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"
)
"""The name in the installed version."""
