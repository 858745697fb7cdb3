"""The keyword under which the installed transformers takes a key/value cache.

transformers 5.24 renamed `past_key_values` to `cache` in every decoder and layer. The old name warns
where it is the only one given and is ignored where both are; it is removed in 5.40.
"""

from __future__ import annotations

import inspect

from transformers import LlamaModel

__all__ = ["CACHE"]

CACHE = (
    "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"
)
"""The name to pass a cache by: to a model, a decoder or a layer."""
