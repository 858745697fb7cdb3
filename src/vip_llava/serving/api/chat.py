"""From the body of a chat request to the `Request` that an `Assistant` takes.

Three steps, because they run in different places: `parse_chat` checks what needs no image,
`load_images` reads uploads and fetches URLs, `build_request` decodes the images in a thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vip_llava.errors import ImageError, RegionError
from vip_llava.images import open_image
from vip_llava.prompting.prepare import Request
from vip_llava.prompting.turns import MarkedImage, Role, Turn
from vip_llava.regions import region_from_json
from vip_llava.serving.api.schemas import ImagePart, TextPart
from vip_llava.serving.middleware.errors import ApiError, as_api_error

if TYPE_CHECKING:
    from vip_llava.regions import Region
    from vip_llava.serving.api.fetch import ImageFetcher
    from vip_llava.serving.api.schemas import ChatMessage, ChatRequest
    from vip_llava.serving.api.uploads import UploadStore
    from vip_llava.serving.settings import Limits

__all__ = ["ImageReference", "ParsedChat", "build_request", "load_images", "parse_chat"]

_DEFAULT_TOKENS = 512


@dataclass(frozen=True, slots=True)
class ImageReference:
    """An image of a request: its URL, the regions on it, and where it stands in the body."""

    message: int
    param: str
    """The place in the body, for error messages."""
    url: str
    regions: tuple[Region, ...]


@dataclass(frozen=True, slots=True)
class ParsedChat:
    """A chat request whose form is valid and within the limits; its images are not loaded yet."""

    roles: tuple[Role, ...]
    texts: tuple[str, ...]
    images: tuple[ImageReference, ...]
    sampling: dict[str, Any]
    choices: int


def parse_chat(body: ChatRequest, limits: Limits) -> ParsedChat:
    """Check what needs no image. Raises ApiError 422 that names the place in the body."""
    messages = body.messages
    _check_count(len(messages), limits.messages, "messages", "messages", "messages")
    if messages[-1].role != "user":
        raise _invalid("the last message must have the role user", "messages")
    for index, message in enumerate(messages):
        if message.role in ("system", "developer") and index:
            raise _invalid(
                "only the first message can be a system message", f"messages[{index}].role"
            )
    texts = tuple(_text(message) for message in messages)
    _check_count(sum(map(len, texts)), limits.text_chars, "characters", "text_chars", "messages")
    images = tuple(
        image for index, message in enumerate(messages) for image in _images(index, message, limits)
    )
    _check_count(len(images), limits.images, "images", "images", "messages")
    choices = body.n or 1
    _check_count(choices, limits.choices, "answers", "choices", "n")
    roles = tuple("system" if each.role == "developer" else each.role for each in messages)
    return ParsedChat(roles, texts, images, _sampling(body, limits), choices)


async def load_images(
    chat: ParsedChat, owner: str, uploads: UploadStore, fetcher: ImageFetcher
) -> list[str | bytes]:
    """For each image its data: URL, or the bytes of the upload or fetched URL.

    Raises:
        ApiError: a URL of another kind (a file path, for example), an unknown upload, or a URL
            that can't be fetched.
    """
    found: list[str | bytes] = []
    for image in chat.images:
        url = image.url
        kind = url[:9].lower()
        try:
            if kind.startswith("data:"):
                found.append(url)
            elif kind.startswith("upload:"):
                found.append(uploads.get(owner, url[7:]).data)
            elif kind.startswith(("https:", "http:")):
                found.append(await fetcher.fetch(url))
            else:
                raise ApiError(
                    422,
                    "must be a data: URL (data:image/png;base64,...) or upload:ID",
                    code="address_refused",
                )
        except ApiError as error:
            raise error.at(f"{image.param}.image_url.url") from None
    return found


def build_request(chat: ParsedChat, sources: Sequence[str | bytes], limits: Limits) -> Request:
    """Decode the images, within the limits of one and of all, and assemble the request."""
    pixels_left = limits.request_pixels
    images: dict[int, list[MarkedImage]] = {}
    for reference, source in zip(chat.images, sources, strict=True):
        try:
            image = open_image(
                source,
                max_pixels=min(limits.image_pixels, pixels_left),
                max_bytes=limits.image_bytes,
            )
        except ImageError as error:
            raise as_api_error(error).at(f"{reference.param}.image_url.url") from None
        pixels_left -= image.width * image.height
        images.setdefault(reference.message, []).append(MarkedImage(image, reference.regions))
    turns = [
        Turn(role, text, tuple(images.get(index, ())))
        for index, (role, text) in enumerate(zip(chat.roles, chat.texts, strict=True))
    ]
    return Request(question=chat.texts[-1], history=turns[:-1], images=turns[-1].images)


def _text(message: ChatMessage) -> str:
    """The text parts of a message, joined by line breaks; images stand in front of them."""
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content if isinstance(part, TextPart))


def _images(index: int, message: ChatMessage, limits: Limits) -> list[ImageReference]:
    if isinstance(message.content, str):
        return []
    found = []
    for number, part in enumerate(message.content):
        if isinstance(part, ImagePart):
            param = f"messages[{index}].content[{number}]"
            regions = _regions(part, param, limits)
            found.append(ImageReference(index, param, part.image_url.url, regions))
    return found


def _regions(part: ImagePart, param: str, limits: Limits) -> tuple[Region, ...]:
    _check_count(len(part.regions), limits.regions, "regions", "regions", f"{param}.regions")
    found = []
    for number, value in enumerate(part.regions):
        try:
            found.append(region_from_json(value, index=number))
        except RegionError as error:
            raise as_api_error(error, param=f"{param}.regions[{number}]") from None
    return tuple(found)


def _sampling(body: ChatRequest, limits: Limits) -> dict[str, Any]:
    """The keyword arguments of `Assistant.prepare`."""
    tokens = body.max_tokens
    if body.max_completion_tokens is not None:
        if tokens not in (None, body.max_completion_tokens):
            raise _invalid("max_tokens has another value", "max_completion_tokens")
        tokens = body.max_completion_tokens
    if tokens is not None:
        _check_count(tokens, limits.tokens, "tokens", "tokens", "max_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise _invalid("requires logprobs: true", "top_logprobs")
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
            f"{count:,} {what}, but the limit is {most:,} ({limit})",
            code="over_limit",
            param=param,
        )


def _invalid(text: str, param: str) -> ApiError:
    return ApiError(422, f"{param}: {text}", code="invalid_request", param=param)
