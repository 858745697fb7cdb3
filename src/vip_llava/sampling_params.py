"""How one answer is generated: the parameters that a caller may set, with their ranges.

Plain values, shared by every backend; the arithmetic is the backend's.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from vip_llava.errors import RequestError

__all__ = ["MAX_LOGPROBS", "MAX_STOP_STRINGS", "SamplingParams"]

MAX_STOP_STRINGS = 16
MAX_LOGPROBS = 20
_MAX_STOP_LENGTH = 256
_MAX_NEW_TOKENS = 1_000_000
_MAX_SEED = 2**63 - 1
# Dividing by less than this overflows float32 sooner than it changes the choice.
_GREEDY_BELOW = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one answer is generated. Raises RequestError with the field and its range.

    Order of operations: repetition penalty, temperature, `top_k`, `top_p`, `min_p`, draw. With
    `temperature` 0 the most probable token is taken and `top_k`, `top_p` and `min_p` have no effect.
    """

    max_new_tokens: int = 512
    """Most tokens to generate, at least 1; the model's positions may end the answer earlier."""
    temperature: float = 0.0
    """0 (always the most probable token) to 2."""
    top_p: float = 1.0
    """Keep the most probable tokens that together reach this probability; above 0, 1 is off."""
    top_k: int = 0
    """Keep this many of the most probable tokens; 0 is off."""
    min_p: float = 0.0
    """Keep tokens at least this many times as probable as the most probable one; 0 is off."""
    repetition_penalty: float = 1.0
    """0.1 to 10: above 1 makes tokens of prompt and answer so far less probable; 1 is off."""
    seed: int | None = None
    """The same seed gives the same answer; None takes a random one, which the result names."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer and are not part of it; a single one needs no list."""
    logprobs: int | None = None
    """Return the log-probability of each token, and those of this many of the most probable tokens,
    before penalty, temperature and truncation. None: return none."""

    def __post_init__(self) -> None:
        _check_int("max_new_tokens", self.max_new_tokens, 1, _MAX_NEW_TOKENS)
        _check_float("temperature", self.temperature, 0.0, 2.0)
        _check_float("top_p", self.top_p, 0.0, 1.0, above=True)
        _check_int("top_k", self.top_k, 0, _MAX_SEED)
        _check_float("min_p", self.min_p, 0.0, 1.0)
        # Smaller values would overflow float32 logits.
        _check_float("repetition_penalty", self.repetition_penalty, 0.1, 10.0)
        if self.seed is not None:
            _check_int("seed", self.seed, 0, _MAX_SEED)
        if self.logprobs is not None:
            _check_int("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        object.__setattr__(self, "stop", _checked_stop(self.stop))

    @property
    def greedy(self) -> bool:
        """Whether every token is the most probable one."""
        return self.temperature < _GREEDY_BELOW

    def with_seed(self) -> SamplingParams:
        """These parameters with a seed: a random one where none is set."""
        if self.seed is not None:
            return self
        values = {name: getattr(self, name) for name in self.__slots__}
        return SamplingParams(**{**values, "seed": secrets.randbits(32)})


def _check_int(field: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{field}: must be an integer from {low} to {high}, not {value!r}")
    if not low <= value <= high:
        raise RequestError(f"{field}: must be an integer from {low} to {high}, not {value}")


def _check_float(
    field: str, value: object, low: float, high: float, *, above: bool = False
) -> None:
    allowed = f"a number {'above' if above else 'from'} {low:g} to {high:g}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"{field}: must be {allowed}, not {value!r}")
    # NaN fails every comparison, so this tests for the allowed range.
    if not (low < value <= high if above else low <= value <= high):
        raise RequestError(f"{field}: must be {allowed}, not {value}")


def _checked_stop(stop: object) -> tuple[str, ...]:
    if isinstance(stop, str):
        stop = (stop,)
    if not isinstance(stop, Sequence) or isinstance(stop, bytes):
        raise RequestError(f"stop: must be a string or a list of strings, not {stop!r}")
    if len(stop) > MAX_STOP_STRINGS:
        raise RequestError(f"stop: at most {MAX_STOP_STRINGS} strings, not {len(stop)}")
    for text in stop:
        if not isinstance(text, str):
            raise RequestError(f"stop: must be strings, not {text!r}")
        if not 1 <= len(text) <= _MAX_STOP_LENGTH:
            raise RequestError(
                f"stop: strings have 1 to {_MAX_STOP_LENGTH} characters, not {len(text)}"
            )
    return tuple(stop)
