"""What goes into an engine besides prompts, and what comes out besides tokens: plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vip_llava.engine.block_manager import BLOCK_TOKENS
from vip_llava.engine.sampler import Logprobs
from vip_llava.engine.scheduler import FinishReason
from vip_llava.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["EngineSettings", "EngineStats", "Generated", "check_room"]

_LEAST_TOKENS, _MOST_TOKENS = 8192, 32768


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How much an engine may hold and do at once."""

    kv_tokens: int | None = None
    """Tokens of KV memory for all requests together; None: what the model's positions need, at
    least 8192 and at most 32768. The memory grows up to it as needed."""
    max_running: int = 64
    """Requests that are answered at the same time; more wait."""
    step_tokens: int | None = None
    """Most tokens of a step; longer prompts are read in several, between which others go on. None:
    on CUDA as many as it reads in a tenth of a second, at least 1024 and at most 4096; elsewhere 1024;
    256 on a CPU, which reads no faster for reading more at once; so of several prompts the first
    is answered while the others are read."""
    prefix_tokens: int | None = None
    """Tokens of the KV memory that may be kept for requests with the same beginning while nobody
    uses them; None: all of it, 0: none."""
    vision_bytes: int = 256 * 2**20
    """Image features that are kept for requests with the same views."""
    captured: bool | None = None
    """Whether steps of answers and encodings of images are recorded once and then repeated, where
    the model allows it. None: on CUDA only. On a CPU nothing gets faster by it."""

    def step(self, device: str) -> tuple[int, int]:
        """Most tokens of a step on a kind of device, more than requests may run: while others are
        being answered (`pace` may allow more), and ever."""
        if self.step_tokens is not None:
            return self.step_tokens, self.step_tokens
        least = max(256 if device == "cpu" else 1024, self.max_running + 1)
        return least, max(least, 4096) if device == "cuda" else least

    def blocks(self, positions: int | None) -> int:
        """Whole blocks of KV memory for a model with so many positions."""
        tokens = self.kv_tokens
        if tokens is None:
            tokens = min(max(positions or 0, _LEAST_TOKENS), _MOST_TOKENS)
        return -(-tokens // BLOCK_TOKENS)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine did and holds."""

    steps: int
    running: int
    waiting: int
    preemptions: int
    kv_tokens: int
    """The budget."""
    kv_tokens_used: int
    """In blocks that a request holds."""
    kv_tokens_kept: int
    """In blocks that nobody holds and that can be found again."""
    kv_bytes: int
    prompt_tokens: int
    """Of all requests that gave a first token."""
    cached_tokens: int
    """Prompt tokens among them that did not need to be read again."""
    vision_hits: int
    vision_misses: int
    vision_bytes: int
    captured_steps: int = 0
    """Of `steps` those in which answers went on by a recording."""
    recordings: int = 0
    """Made so far, for numbers of requests, of a prompt's tokens and of images."""
    recording_seconds: float = 0.0
    """What making them took."""
    recording_bytes: int = 0
    """Memory of a GPU that they hold."""
    closed: str = ""
    """Why recordings or fused kernels are done without, if they failed."""


@dataclass(frozen=True, slots=True)
class Generated:
    """What was generated for one request. Times are seconds."""

    tokens: tuple[int, ...]
    """The generated ids; a stop id that ended the answer is not among them."""
    text: str
    """The text handed out, up to a stop text; '' where the engine has no `decode`."""
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that did not need to be read, because another request had them before."""
    max_new_tokens: int
    """The limit that held: what was asked, or less where positions or memory end sooner."""
    seed: int
    prefill_seconds: float
    """From submission to the first token, waiting included."""
    decode_seconds: float
    logprobs: tuple[Logprobs, ...] | None = None
    """One for each token, where they were asked for."""


def check_room(model: PreTrainedModel, prompt_tokens: int) -> int | None:
    """How many tokens still fit after a prompt (None: no limit known); `RequestError` if none."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return None
    room = int(positions) - prompt_tokens
    if room < 1:
        raise RequestError(
            f"the prompt has {prompt_tokens} tokens (images included) and the model holds "
            f"{positions} positions, which leaves no room for an answer; "
            f"shorten it by at least {1 - room} tokens"
        )
    return room
