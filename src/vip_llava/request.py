"""From what a person asks to what the processor takes.

One path for every way of asking: open the picture, resolve the regions to its pixels, draw them,
word the question. It knows no generation and no model weights.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from vip_llava.engine import SamplingParams
from vip_llava.errors import RequestError, VipLlavaError
from vip_llava.model.processor import Conversation, Drawn, Processor
from vip_llava.model.templates import IMAGE_TEXT, Message
from vip_llava.pictures import open_picture
from vip_llava.regions import Region, draw_resolved, region_from_json
from vip_llava.regions.find import find_mark, named_marks
from vip_llava.regions.phrases import expand
from vip_llava.regions.resolve import resolve_together

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    Picture = str | Path | bytes | Image.Image | NDArray[np.generic] | None
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
    """The sampling parameters as keywords; see `vip_llava.engine.SamplingParams`."""

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
_KEYS = ("picture", "question", "regions", "history", "pictures")
_TURN = frozenset({"role", "text", "pictures"})
_SHOWN = frozenset({"picture", "regions"})


@dataclass(frozen=True, slots=True)
class Shown:
    """One of several pictures, with the regions on it; each as for `Assistant.ask`."""

    picture: Picture
    regions: Sequence[RegionLike] | RegionLike = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One ask for `Assistant.ask_many`.

    picture: path, bytes, PIL image, numpy array, data address, or None to talk without one. It is
        shown with the first question of the conversation.
    regions: Region objects or their JSON objects, on that picture.
    history: earlier turns, oldest first, each a Message or an object {"role": ..., "text": ...}.
    pictures: in place of `picture`, several that are shown with this question: `Shown` or
        {"picture": ..., "regions": [...]}. Turns of the history may have such "pictures" too.
        The ids of regions differ over all of them.
    sampling: for this request alone; None takes what `ask_many` was given.
    """

    question: str
    picture: Picture = None
    regions: Sequence[RegionLike] | RegionLike = ()
    history: Sequence[MessageLike] = ()
    pictures: Sequence[Shown | Mapping[str, Any]] = ()
    sampling: SamplingParams | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request whose pictures are open and drawn and whose question is worded. Times: seconds."""

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
        history, shown = _pictures(request)
        question = _question(request, bool(shown), notes)
        began = time.perf_counter()
        opened = [open_picture(each.picture) for each in shown if each.picture is not None]
        opened_at = time.perf_counter()
        drawn = _drawn(opened, shown, notes)
        if len(drawn) == 1 and not drawn[0].regions and processor.focal is not None:
            drawn = (replace(drawn[0], regions=_marks_on(opened[0], request, notes)),)
        drawn_at = time.perf_counter()
        regions = [region for each in drawn for region in each.regions]
        # Earlier turns of a person may name regions too; what a model said is left as it was said.
        earlier = [_expanded(message, regions) for message in history]
        own = len(request.pictures)
        asked = Message("user", expand(question, regions), own)
        messages = (*earlier, asked, Message("assistant", None))
        conversation = Conversation(messages=messages, pictures=drawn)
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


def _pictures(request: Request) -> tuple[list[Message], list[Shown]]:
    """The turns of the history with their counts of pictures, and all pictures in order."""
    history: list[Message] = []
    shown: list[Shown] = []
    for message, own in _turns(request.history):
        history.append(replace(message, pictures=len(own)) if own else message)
        shown += own
    shown += _shown(request.pictures)
    if request.picture is not None:
        if shown:
            raise RequestError(
                "give either `picture`, which is shown with the first question, or `pictures` of "
                "the question and of the history, not both"
            )
        return history, [Shown(request.picture, request.regions)]
    if count := len(as_regions(request.regions)):
        raise RequestError(
            f"{count} regions were given without a picture to draw them on"
            + ("; with `pictures` they belong to one of those" if shown else "")
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
    """Pictures with their regions, from `Shown`s or from objects of that form."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence):
        raise RequestError(f"pictures: {values!r} is no list of pictures")
    found = []
    for value in values:
        if isinstance(value, Mapping) and "picture" in value and set(value) <= _SHOWN:
            value = Shown(**value)
        if not isinstance(value, Shown) or value.picture is None:
            raise RequestError(
                f'pictures: {value!r} is none; write {{"picture": ..., "regions": [...]}}'
            )
        found.append(value)
    return found


def _drawn(
    opened: Sequence[Image.Image], shown: Sequence[Shown], notes: list[str]
) -> tuple[Drawn, ...]:
    """The pictures with their regions resolved and drawn; notes say what was changed."""
    pairs = [
        (as_regions(each.regions), picture.size)
        for each, picture in zip(shown, opened, strict=True)
    ]
    drawn = []
    for picture, resolution in zip(opened, resolve_together(pairs), strict=True):
        notes += resolution.notes
        if resolution.regions:
            image = draw_resolved(picture, resolution.regions)
            drawn.append(Drawn(image, resolution.regions, picture))
        else:
            drawn.append(Drawn(picture))
    return tuple(drawn)


def _question(request: Request, shown: bool, notes: list[str]) -> str:
    """The question without a picture marker in front.

    Files and users of the original begin a question with "<image>\\n", where that program put the
    picture. Here the template places the picture and typed text never does, so one such line is
    left out, with a note; anywhere else `<image>` is text like any other.
    """
    question = request.question
    if not isinstance(question, str):
        raise RequestError(f"question: {question!r} is no text")
    _encodable("question", question)
    marker = f"{IMAGE_TEXT}\n"
    if shown and question.startswith(marker):
        question = question[len(marker) :]
        notes.append(f'a first line "{IMAGE_TEXT}" was left out: the picture is placed by itself')
    if not question.strip():
        given = f"{len(as_regions(request.regions))} regions but " if request.regions else ""
        raise RequestError(f'question: {given}nothing is asked; try "What is <region:1>?"')
    return question


def _marks_on(picture: Image.Image, request: Request, notes: list[str]) -> tuple[Region, ...]:
    """Marks that the person drew on the picture and speaks of, so that they are looked at closely.

    They are where they are: nothing is drawn again. Notes say what was found.
    """
    asked = [m.text or "" for m in as_messages(request.history) if m.role == "user"]
    found: list[Region] = []
    for mark in named_marks("\n".join((*asked, request.question))):
        region = find_mark(picture, mark.shape, mark.color)
        if region is not None:
            found.append(region.changed(id=str(len(found) + 1)))
            x1, y1, x2, y2 = region.bounds(picture.size)
            notes.append(
                f"found on the picture and looked at closely: the {mark.words} "
                f"around {x1:.0f},{y1:.0f},{x2:.0f},{y2:.0f}"
            )
    return tuple(found)


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
    """A turn, and the pictures that come with it."""
    own: list[Shown] = []
    if isinstance(value, Message):
        message = value
    elif isinstance(value, Mapping) and {"role", "text"} <= set(value) <= _TURN:
        message = Message(value["role"], value["text"])
        own = _shown(value.get("pictures", ()))
    else:
        raise RequestError(f'history: {value!r} is no message; write {{"role": ..., "text": ...}}')
    if not isinstance(message.text, str):
        raise RequestError(f"history: a {message.role} message has no text")
    _encodable("history", message.text)
    if own and message.role != "user":
        raise RequestError(f"history: a {message.role} message can't have pictures")
    return message, own


def as_request(value: Request | Mapping[str, Any], sampling: SamplingParams) -> Request:
    """A Request, or one made from a mapping.

    A mapping may hold picture, question, regions, history and any sampling parameter, which then
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
        # The same kind of error, so that a caller may still tell a bad picture from a bad region.
        raise type(error)(f"request {index}: {error}") from error
