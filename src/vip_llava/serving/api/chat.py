"""From the body of a chat request to what an `Assistant` is asked.

In three steps, since they run in different places: `understood` checks what can be checked at
once, `Gathering` brings images from uploads and hosts, and `opened` decodes them (work for a
thread). No step generates anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vip_llava.errors import ImageError, RegionError
from vip_llava.images import open_image
from vip_llava.prompting.prepare import Request
from vip_llava.prompting.turns import MarkedImage
from vip_llava.regions import region_from_json
from vip_llava.serving.api.schemas import ImagePart, TextPart
from vip_llava.serving.middleware.errors import ApiError, as_api_error

if TYPE_CHECKING:
    from vip_llava.regions import Region
    from vip_llava.serving.api.fetch import Fetcher
    from vip_llava.serving.api.schemas import ChatRequest, Turn
    from vip_llava.serving.api.uploads import Uploads
    from vip_llava.serving.settings import Limits

__all__ = ["Asked", "AskedImage", "gathered", "opened", "understood"]

_DEFAULT_TOKENS = 512


@dataclass(frozen=True, slots=True)
class AskedImage:
    """An image of a request: where it is said to be, and the regions on it."""

    message: int
    place: str
    """Its place in the body, for messages."""
    address: str
    regions: tuple[Region, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """A chat request whose form is right and within the limits."""

    roles: tuple[str, ...]
    texts: tuple[str, ...]
    images: tuple[AskedImage, ...]
    sampling: dict[str, Any]
    choices: int


def understood(body: ChatRequest, limits: Limits) -> Asked:
    """Check what needs no image. Raises ApiError 422 that names the place in the body."""
    turns = body.messages
    _check_count(len(turns), limits.messages, "messages", "messages", "messages")
    if turns[-1].role != "user":
        raise _wrong("the last message is answered, so it must be a user's", "messages")
    for index, turn in enumerate(turns):
        if turn.role in ("system", "developer") and index:
            raise _wrong("only the first message can be a system's", f"messages[{index}].role")
    texts = tuple(_text(turn) for turn in turns)
    _check_count(sum(map(len, texts)), limits.text_chars, "characters", "text_chars", "messages")
    images = tuple(
        image for index, turn in enumerate(turns) for image in _images(index, turn, limits)
    )
    _check_count(len(images), limits.images, "images", "images", "messages")
    choices = body.n or 1
    _check_count(choices, limits.choices, "answers", "choices", "n")
    roles = tuple("system" if turn.role == "developer" else turn.role for turn in turns)
    return Asked(roles, texts, images, _sampling(body, limits), choices)


async def gathered(
    asked: Asked, owner: str, uploads: Uploads, fetcher: Fetcher
) -> list[str | bytes]:
    """Of each image its data address, or its bytes from the upload or the host it names.

    A path is never one of them: what is neither kind of address is refused.
    """
    found: list[str | bytes] = []
    for image in asked.images:
        address = image.address
        kind = address[:9].lower()
        try:
            if kind.startswith("data:"):
                found.append(address)
            elif kind.startswith("upload:"):
                found.append(uploads.get(owner, address[7:]).data)
            elif kind.startswith(("https:", "http:")):
                found.append(await fetcher.fetch(address))
            else:
                raise ApiError(
                    422,
                    "an image is a data: address (data:image/png;base64,...) or upload:ID",
                    code="address_refused",
                )
        except ApiError as api_error:
            raise _placed(api_error, f"{image.place}.image_url.url") from None
    return found


def opened(asked: Asked, sources: Sequence[str | bytes], limits: Limits) -> Request:
    """Decode the images, within the limits of one and of all, and put the request together."""
    left = limits.request_pixels
    shown: dict[int, list[MarkedImage]] = {}
    for asked_image, source in zip(asked.images, sources, strict=True):
        try:
            image = open_image(
                source,
                max_pixels=min(limits.image_pixels, left),
                max_bytes=limits.image_bytes,
            )
        except ImageError as error:
            api_error = as_api_error(error)
            raise _placed(api_error, f"{asked_image.place}.image_url.url") from None
        left -= image.width * image.height
        shown.setdefault(asked_image.message, []).append(MarkedImage(image, asked_image.regions))
    turns = [
        {"role": role, "text": text, "images": shown.get(index, [])}
        for index, (role, text) in enumerate(zip(asked.roles, asked.texts, strict=True))
    ]
    last = len(turns) - 1
    return Request(question=asked.texts[last], history=turns[:last], images=shown.get(last, []))


def _text(turn: Turn) -> str:
    """The text parts of a message, one below the other; images stand in front of them."""
    if isinstance(turn.content, str):
        return turn.content
    return "\n".join(part.text for part in turn.content if isinstance(part, TextPart))


def _images(index: int, turn: Turn, limits: Limits) -> list[AskedImage]:
    if isinstance(turn.content, str):
        return []
    found = []
    for number, part in enumerate(turn.content):
        if isinstance(part, ImagePart):
            place = f"messages[{index}].content[{number}]"
            regions = _regions(part, place, limits)
            found.append(AskedImage(index, place, part.image_url.url, regions))
    return found


def _regions(part: ImagePart, place: str, limits: Limits) -> tuple[Region, ...]:
    _check_count(len(part.regions), limits.regions, "regions", "regions", f"{place}.regions")
    found = []
    for number, value in enumerate(part.regions):
        try:
            found.append(region_from_json(value, index=number))
        except RegionError as error:
            raise as_api_error(error, param=f"{place}.regions[{number}]") from None
    return tuple(found)


def _sampling(body: ChatRequest, limits: Limits) -> dict[str, Any]:
    """The keywords of `Assistant.prepare`."""
    tokens = body.max_tokens
    if body.max_completion_tokens is not None:
        if tokens not in (None, body.max_completion_tokens):
            raise _wrong("max_tokens and max_completion_tokens differ", "max_completion_tokens")
        tokens = body.max_completion_tokens
    if tokens is not None:
        _check_count(tokens, limits.tokens, "tokens", "tokens", "max_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise _wrong("top_logprobs needs logprobs: true", "top_logprobs")
    given = {
        "max_new_tokens": tokens or min(_DEFAULT_TOKENS, limits.tokens),
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
        "seed": body.seed,
        "stop": body.stop,
        "logprobs": (body.top_logprobs or 0) if body.logprobs else None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _check_count(count: int, most: int, what: str, limit: str, param: str) -> None:
    if count > most:
        raise ApiError(
            422,
            f"{count:,} {what}: at most {most:,} are taken here ({limit})",
            code="over_limit",
            param=param,
        )


def _wrong(text: str, param: str) -> ApiError:
    return ApiError(422, f"{param}: {text}", code="invalid_request", param=param)


def _placed(api_error: ApiError, param: str) -> ApiError:
    """The same api_error with the place in the body that it belongs to."""
    return ApiError(
        api_error.status,
        f"{param}: {api_error.message}",
        code=api_error.code,
        param=param,
        retry_after=api_error.retry_after,
    )
