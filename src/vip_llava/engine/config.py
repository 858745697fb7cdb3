"""Limits of an engine, and counts of what it did: plain values."""

from __future__ import annotations

from dataclasses import dataclass

from vip_llava.kernels import BLOCK_SIZE

__all__ = ["EngineConfig", "EngineStats"]

_MIN_KV_CACHE_TOKENS, _MAX_KV_CACHE_TOKENS = 8192, 32768


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Limits of one engine."""

    kv_cache_tokens: int | None = None
    """Tokens of the KV cache, for all requests together. None: the positions of the model, at least
    8192 and at most 32768. Memory is allocated as it is needed, up to this limit."""
    max_num_seqs: int = 64
    """Requests that run at the same time; more wait."""
    max_batched_tokens: int | None = None
    """Tokens of a step; longer prompts are prefilled in chunks, between which other requests
    decode. None: on CUDA what the device prefills in 0.1 s, from 1024 to 4096; on a CPU 256, since
    it gains nothing from more and the first of several prompts is answered sooner; else 1024."""
    prefix_cache_tokens: int | None = None
    """Tokens of the KV cache that may be kept for later requests with the same prefix. None: all,
    0: none."""
    encoder_cache_bytes: int = 256 * 2**20
    """Image features that are kept for later requests with the same views."""
    cuda_graphs: bool | None = None
    """Whether decode steps, prompts and image encodings are captured as CUDA graphs, where the model
    allows it. None: on CUDA. True on another device runs the same code without graphs, which is for
    tests and is not faster."""

    def token_budgets(self, device: str) -> tuple[int, int]:
        """The least and the most tokens of a step on a kind of device, above `max_num_seqs`."""
        if self.max_batched_tokens is not None:
            return self.max_batched_tokens, self.max_batched_tokens
        low = max(256 if device == "cpu" else 1024, self.max_num_seqs + 1)
        return low, max(low, 4096) if device == "cuda" else low

    def num_blocks(self, positions: int | None) -> int:
        """Blocks of the KV cache for a model with this many positions."""
        tokens = self.kv_cache_tokens
        if tokens is None:
            tokens = min(max(positions or 0, _MIN_KV_CACHE_TOKENS), _MAX_KV_CACHE_TOKENS)
        return -(-tokens // BLOCK_SIZE)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts since an engine was created, and what it holds now."""

    steps: int
    running: int
    waiting: int
    preemptions: int
    kv_cache_tokens: int
    """The limit."""
    kv_cache_tokens_used: int
    """In blocks of running requests."""
    kv_cache_tokens_idle: int
    """In blocks that no request uses and that the prefix cache can find."""
    kv_cache_bytes: int
    prompt_tokens: int
    """Of all requests that produced a token."""
    cached_tokens: int
    """Prompt tokens among them that the prefix cache had."""
    encoder_cache_hits: int
    encoder_cache_misses: int
    encoder_cache_bytes: int
    graph_steps: int = 0
    """Steps that replayed a decode graph."""
    graphs: int = 0
    """Graphs captured so far: of decode steps, prompts and image encodings."""
    graph_capture_seconds: float = 0.0
    graph_bytes: int = 0
    """GPU memory that the graphs reserve."""
    fallback: str = ""
    """Why graphs or fused kernels are not used any more, if they failed."""
