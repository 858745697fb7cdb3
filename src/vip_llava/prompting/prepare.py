"""From what a person asks to what the processor takes.

One path for every way of asking: open the image, resolve the regions to its pixels, draw them,
word the question. It knows no generation and no model weights.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from vip_llava.errors import RequestError, VipLlavaError
from vip_llava.images import open_image
from vip_llava.prompting.processor import Conversation, Drawn, MarkFinder, Processor
from vip_llava.prompting.templates import IMAGE_TEXT, Message
from vip_llava.regions import Region, draw_resolved, region_from_json
from vip_llava.regions.phrases import expand
from vip_llava.regions.resolve import resolve_together
from vip_llava.sampling_params import SamplingParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    ImageInput = str | Path | bytes | Image.Image | NDArray[np.generic] | None
    RegionLike = Region | Mapping[str, Any]
    MessageLike = Message | Mapping[str, Any]

__all__ = [
    "Prepared",
    "Request",
    "Sampling",
    "Shown",
    "as_messages",
    "as_regions",
    "as_request",
    "naming",
]


class Sampling(TypedDict, total=False):
    """The sampling parameters as keywords; see `vip_llava.sampling_params.SamplingParams`."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: str | Sequence[str]
    logprobs: int | None


_SAMPLING = frozenset(field.name for field in fields(SamplingParams))
_KEYS = ("image", "question", "regions", "history", "images")
_TURN = frozenset({"role", "text", "images"})
_SHOWN = frozenset({"image", "regions"})


@dataclass(frozen=True, slots=True)
class Shown:
    """One of several images, with the regions on it; each as for `Assistant.ask`."""

    image: ImageInput
    regions: Sequence[RegionLike] | RegionLike = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One ask for `Assistant.ask_many`.

    image: path, bytes, PIL image, numpy array, data address, or None to talk without one. It is
        shown with the first question of the conversation.
    regions: Region objects or their JSON objects, on that image.
    history: earlier turns, oldest first, each a Message or an object {"role": ..., "text": ...}.
    images: in place of `image`, several that are shown with this question: `Shown` or
        {"image": ..., "regions": [...]}. Turns of the history may have such "images" too.
        The ids of regions differ over all of them.
    sampling: for this request alone; None takes what `ask_many` was given.
    """

    question: str
    image: ImageInput = None
    regions: Sequence[RegionLike] | RegionLike = ()
    history: Sequence[MessageLike] = ()
    images: Sequence[Shown | Mapping[str, Any]] = ()
    sampling: SamplingParams | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request whose images are open and drawn and whose question is worded. Times: seconds."""

    conversation: Conversation
    sampling: SamplingParams
    notes: tuple[str, ...]
    prompt: str
    prompt_tokens: int
    open_seconds: float
    draw_seconds: float
    encode_seconds: float

    @classmethod
    def of(cls, request: Request, processor: Processor, sampling: SamplingParams) -> Prepared:
        """Do everything up to the prompt. Raises the `VipLlavaError` of whatever is wrong."""
        notes: list[str] = []
        history, shown = _images(request)
        question = _question(request, bool(shown), notes)
        began = time.perf_counter()
        opened = [open_image(each.image) for each in shown if each.image is not None]
        opened_at = time.perf_counter()
        drawn = _drawn(opened, shown, notes)
        find = processor.find_marks
        if len(drawn) == 1 and not drawn[0].regions and find is not None:
            drawn = (replace(drawn[0], regions=_marks_on(find, opened[0], request, notes)),)
        drawn_at = time.perf_counter()
        regions = [region for each in drawn for region in each.regions]
        # Earlier turns of a person may name regions too; what a model said is left as it was said.
        earlier = [_expanded(message, regions) for message in history]
        own = len(request.images)
        asked = Message("user", expand(question, regions), own)
        messages = (*earlier, asked, Message("assistant", None))
        conversation = Conversation(messages=messages, images=drawn)
        prompt_tokens = len(processor.encode_one(conversation))
        prompt = processor.prompt_text(conversation)
        encoded = time.perf_counter()
        return cls(
            conversation=conversation,
            sampling=request.sampling or sampling,
            notes=tuple(notes),
            prompt=prompt,
            prompt_tokens=prompt_tokens,
            open_seconds=opened_at - began,
            draw_seconds=drawn_at - opened_at,
            encode_seconds=encoded - drawn_at,
        )


def _images(request: Request) -> tuple[list[Message], list[Shown]]:
    """The turns of the history with their counts of images, and all images in order."""
    history: list[Message] = []
    shown: list[Shown] = []
    for message, own in _turns(request.history):
        history.append(replace(message, images=len(own)) if own else message)
        shown += own
    shown += _shown(request.images)
    if request.image is not None:
        if shown:
            raise RequestError(
                "give either `image`, which is shown with the first question, or `images` of "
                "the question and of the history, not both"
            )
        return history, [Shown(request.image, request.regions)]
    if count := len(as_regions(request.regions)):
        raise RequestError(
            f"{count} regions were given without an image to draw them on"
            + ("; with `images` they belong to one of those" if shown else "")
        )
    return history, shown


def _encodable(field: str, text: str) -> None:
    """Refuse half of a surrogate pair, which no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{field}: character {error.start + 1} is half of a pair and stands for nothing"
        ) from None


def _shown(values: object) -> list[Shown]:
    """Images with their regions, from `Shown`s or from objects of that form."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence):
        raise RequestError(f"images: {values!r} is no list of images")
    found = []
    for value in values:
        if isinstance(value, Mapping) and "image" in value and set(value) <= _SHOWN:
            value = Shown(**value)
        if not isinstance(value, Shown) or value.image is None:
            raise RequestError(
                f'images: {value!r} is none; write {{"image": ..., "regions": [...]}}'
            )
        found.append(value)
    return found


def _drawn(
    opened: Sequence[Image.Image], shown: Sequence[Shown], notes: list[str]
) -> tuple[Drawn, ...]:
    """The images with their regions resolved and drawn; notes say what was changed."""
    pairs = [
        (as_regions(each.regions), image.size) for each, image in zip(shown, opened, strict=True)
    ]
    drawn = []
    for image, resolution in zip(opened, resolve_together(pairs), strict=True):
        notes += resolution.notes
        if resolution.regions:
            marked = draw_resolved(image, resolution.regions)
            drawn.append(Drawn(marked, resolution.regions, image))
        else:
            drawn.append(Drawn(image))
    return tuple(drawn)


def _question(request: Request, shown: bool, notes: list[str]) -> str:
    """The question without an image marker in front.

    Files and users of the original begin a question with "<image>\\n", where that program put the
    image. Here the template places the image and typed text never does, so one such line is
    left out, with a note; anywhere else `<image>` is text like any other.
    """
    question = request.question
    if not isinstance(question, str):
        raise RequestError(f"question: {question!r} is no text")
    _encodable("question", question)
    marker = f"{IMAGE_TEXT}\n"
    if shown and question.startswith(marker):
        question = question[len(marker) :]
        notes.append(f'a first line "{IMAGE_TEXT}" was left out: the image is placed by itself')
    if not question.strip():
        given = f"{len(as_regions(request.regions))} regions but " if request.regions else ""
        raise RequestError(f'question: {given}nothing is asked; try "What is <region:1>?"')
    return question


def _marks_on(
    find: MarkFinder, image: Image.Image, request: Request, notes: list[str]
) -> tuple[Region, ...]:
    """Marks that were drawn on the image by hand and that the texts name, for focal views.

    Nothing is drawn again. Notes say what was found.
    """
    asked = [m.text or "" for m in as_messages(request.history) if m.role == "user"]
    found = find(image, (*asked, request.question))
    for words, region in found:
        x1, y1, x2, y2 = region.bounds(image.size)
        notes.append(
            f"found on the image and looked at closely: the {words} "
            f"around {x1:.0f},{y1:.0f},{x2:.0f},{y2:.0f}"
        )
    return tuple(region for _, region in found)


def _expanded(message: Message, regions: Sequence[Region]) -> Message:
    if message.role != "user" or message.text is None:
        return message
    return replace(message, text=expand(message.text, regions))


def _region(value: RegionLike) -> Region:
    if isinstance(value, Region):
        return value
    if isinstance(value, Mapping):
        return region_from_json(dict(value))
    raise RequestError(f"regions: {value!r} is neither a Region nor a JSON object of one")


def as_regions(values: Sequence[RegionLike] | RegionLike) -> tuple[Region, ...]:
    """Regions from a list of them or of their JSON objects; a single one may stand alone."""
    if isinstance(values, Region | Mapping):
        values = (values,)
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise RequestError(f"regions: {values!r} is no list of regions")
    return tuple(_region(value) for value in values)


def as_messages(values: Sequence[MessageLike]) -> tuple[Message, ...]:
    """Turns from Messages or from objects {"role": ..., "text": ...}; each has its text."""
    return tuple(message for message, _ in _turns(values))


def _turns(values: Sequence[MessageLike]) -> list[tuple[Message, list[Shown]]]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence):
        raise RequestError(f"history: {values!r} is no list of messages")
    return [_turn(value) for value in values]


def _turn(value: MessageLike) -> tuple[Message, list[Shown]]:
    """A turn, and the images that come with it."""
    own: list[Shown] = []
    if isinstance(value, Message):
        message = value
    elif isinstance(value, Mapping) and {"role", "text"} <= set(value) <= _TURN:
        message = Message(value["role"], value["text"])
        own = _shown(value.get("images", ()))
    else:
        raise RequestError(f'history: {value!r} is no message; write {{"role": ..., "text": ...}}')
    if not isinstance(message.text, str):
        raise RequestError(f"history: a {message.role} message has no text")
    _encodable("history", message.text)
    if own and message.role != "user":
        raise RequestError(f"history: a {message.role} message can't have images")
    return message, own


def as_request(value: Request | Mapping[str, Any], sampling: SamplingParams) -> Request:
    """A Request, or one made from a mapping.

    A mapping may hold image, question, regions, history and any sampling parameter, which then
    replaces that one parameter of `sampling`. RequestError for an unknown key.
    """
    if isinstance(value, Request):
        return value
    if not isinstance(value, Mapping):
        raise RequestError(f"{value!r} is neither a Request nor a mapping")
    unknown = [key for key in value if key not in _KEYS and key not in _SAMPLING]
    if unknown:
        allowed = ", ".join((*_KEYS, *sorted(_SAMPLING)))
        raise RequestError(f"unknown key {unknown[0]!r}; allowed are {allowed}")
    if "question" not in value:
        raise RequestError("there is no question")
    own = {key: value[key] for key in value if key in _SAMPLING}
    return Request(
        **{key: value[key] for key in _KEYS if key in value},
        sampling=replace(sampling, **own) if own else None,
    )


@contextmanager
def naming(index: int | None) -> Iterator[None]:
    """Errors raised inside name the request of a batch that they belong to."""
    try:
        yield
    except VipLlavaError as error:
        if index is None:
            raise
        # The same kind of error, so that a caller may still tell a bad image from a bad region.
        raise type(error)(f"request {index}: {error}") from error
