"""An answer: its text, and everything the model read to produce it.

Plain values; this module does not know models or generation.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from PIL import Image

    from vip_llava.backends.base import TokenLogprob
    from vip_llava.prompting.turns import MarkedImage
    from vip_llava.regions import Region

__all__ = ["Answer", "Timing", "Usage"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one answer. `image_tokens` are part of `prompt_tokens`."""

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    """Generated tokens, without the stop token."""

    @property
    def total(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens

    def to_json(self) -> dict[str, int]:
        """The counts and their total."""
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds spent on one answer. In a batch `prefill` and `decode` include the steps of other
    requests, and `prefill` the time in the queue."""

    open: float
    """Opening the images: decoding, EXIF rotation, conversion to RGB."""
    draw: float
    """Resolving and drawing the regions."""
    preprocess: float
    """Wording, tokenizing, and turning the images into tensors."""
    prefill: float
    """Queue, vision tower and prompt, up to and including the first token."""
    decode: float
    """From the first token to the end of the answer."""

    @property
    def first_token(self) -> float:
        """From the call to the first token."""
        return self.open + self.draw + self.preprocess + self.prefill

    @property
    def total(self) -> float:
        """The sum of the parts."""
        return self.first_token + self.decode

    def to_json(self) -> dict[str, float]:
        """All times in seconds, rounded to microseconds."""
        parts = {**asdict(self), "first_token": self.first_token, "total": self.total}
        return {name: round(seconds, 6) for name, seconds in parts.items()}


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. `str(answer)` is its text."""

    text: str
    """Without surrounding white space, stop strings and control tokens."""
    images: tuple[MarkedImage, ...]
    """All images of the conversation, in order, each drawn and with its resolved regions."""
    prompt: str
    """The whole prompt, with `<image>` for each view of an image."""
    usage: Usage
    timing: Timing
    notes: tuple[str, ...]
    """What was changed on the way: clipped regions, a dropped image marker, a shortened limit."""
    finish_reason: Literal["stop", "length"]
    """"stop": the model or a stop text ended it; "length": the limit of tokens did."""
    seed: int
    """The seed that was used; the same request with this seed gives the same answer."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One for each token of the answer, if requested."""

    @property
    def image(self) -> Image.Image | None:
        """The first image as the model saw it, with its regions drawn; None without images."""
        return self.images[0].shown if self.images else None

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions of all images as they were drawn, in pixels of their own image."""
        return tuple(region for each in self.images for region in each.regions)

    def __str__(self) -> str:
        return self.text

    def to_json(self) -> dict[str, Any]:
        """The answer as JSON values; of images the sizes only."""
        values: dict[str, Any] = {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "image": _size(self.image),
            "regions": [region.to_json() for region in self.regions],
            "prompt": self.prompt,
            "usage": self.usage.to_json(),
            "timing": self.timing.to_json(),
            "notes": list(self.notes),
            "seed": self.seed,
        }
        if len(self.images) > 1:
            values["images"] = [_size(each.shown) for each in self.images]
        if self.logprobs is not None:
            values["logprobs"] = [each.to_json() for each in self.logprobs]
        return values


def _size(image: Image.Image | None) -> dict[str, int] | None:
    if image is None:
        return None
    return {"width": image.size[0], "height": image.size[1]}
