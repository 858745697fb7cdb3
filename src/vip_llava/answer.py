"""What comes back from an ask: the text, and everything the model saw to get there.

Plain values; knows no model and no generation.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from PIL import Image

    from vip_llava.regions import Region

__all__ = ["Answer", "DrawnImage", "Timing", "TokenLogprob", "Usage"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one answer. `image_tokens` are part of `prompt_tokens`."""

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    """Generated tokens; the token that ended the answer is not counted."""

    @property
    def total(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens

    def to_json(self) -> dict[str, int]:
        """The counts and their total."""
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds spent on one answer. Among others the last two hold what its neighbours took, and
    `prefill` also the time that it waited for its turn."""

    open: float
    """Opening the image (decoding, EXIF turn, conversion to RGB)."""
    draw: float
    """Resolving and drawing the regions."""
    preprocess: float
    """Wording, tokens, and the image's way to tensors."""
    prefill: float
    """Vision tower and prompt, up to and with the first token."""
    decode: float
    """From the first token to the end of the answer."""

    @property
    def first_token(self) -> float:
        """From the start to the first token."""
        return self.open + self.draw + self.preprocess + self.prefill

    @property
    def total(self) -> float:
        """The sum of the parts."""
        return self.first_token + self.decode

    def to_json(self) -> dict[str, float]:
        """All of it in seconds, rounded to microseconds."""
        parts = {**asdict(self), "first_token": self.first_token, "total": self.total}
        return {name: round(seconds, 6) for name, seconds in parts.items()}


@dataclass(frozen=True, slots=True)
class DrawnImage:
    """An image as the model was shown it."""

    image: Image.Image
    """Regions drawn, in its original size; RGB."""
    regions: tuple[Region, ...]
    """In pixels, clipped to the image, with id, colour, alpha and width filled in."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability, as the model gave it."""

    token: int
    text: str
    logprob: float
    best: tuple[TokenLogprob, ...] = ()
    """The most probable tokens in its place, best first, as many as were asked for."""

    def to_json(self) -> dict[str, Any]:
        """All of it; "best" only where there is one."""
        values: dict[str, Any] = {"token": self.token, "text": self.text, "logprob": self.logprob}
        return {**values, "best": [each.to_json() for each in self.best]} if self.best else values


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. `str(answer)` is its text."""

    text: str
    """White space at both ends, stop texts and control tokens are not part of it."""
    images: tuple[DrawnImage, ...]
    """All images of the conversation, in order."""
    prompt: str
    """The whole prompt, with `<image>` where a view of the image stands."""
    usage: Usage
    timing: Timing
    notes: tuple[str, ...]
    """What was changed on the way: clipped regions, a dropped marker, a shortened limit."""
    finish_reason: Literal["stop", "length"]
    """"stop": the model or a stop text ended it; "length": the limit of tokens did."""
    seed: int
    """The seed that was used; asking again with it and a temperature gives the same answer."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One for each token of the answer, where they were asked for."""

    @property
    def image(self) -> Image.Image | None:
        """The image, the first one of several, as the model was shown it; None without one."""
        return self.images[0].image if self.images else None

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions of all images as they were drawn, each in pixels of its own image."""
        return tuple(region for each in self.images for region in each.regions)

    def __str__(self) -> str:
        return self.text

    def to_json(self) -> dict[str, Any]:
        """Everything but the images themselves, of which the sizes stay."""
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
            values["images"] = [_size(each.image) for each in self.images]
        if self.logprobs is not None:
            values["logprobs"] = [each.to_json() for each in self.logprobs]
        return values


def _size(image: Image.Image | None) -> dict[str, int] | None:
    if image is None:
        return None
    return {"width": image.size[0], "height": image.size[1]}
