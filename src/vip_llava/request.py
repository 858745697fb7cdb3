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
from vip_llava.model.processor import Conversation, Processor
from vip_llava.model.templates import IMAGE_TEXT, Message
from vip_llava.pictures import open_picture
from vip_llava.regions import Region, draw_resolved, region_from_json, resolve
from vip_llava.regions.find import find_mark, named_marks
from vip_llava.regions.phrases import expand

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    Picture = str | Path | bytes | Image.Image | NDArray[np.generic] | None
    RegionLike = Region | Mapping[str, Any]
    MessageLike = Message | Mapping[str, Any]

__all__ = ["Prepared", "Request", "Sampling", "as_messages", "as_regions", "as_request", "naming"]


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


_SAMPLING = frozenset(field.name for field in fields(SamplingParams))
_KEYS = ("picture", "question", "regions", "history")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One ask for `Assistant.ask_many`.

    picture: path, bytes, PIL image, numpy array, data address, or None to talk without one.
    regions: Region objects or their JSON objects; history: earlier turns, oldest first,
        each a Message or an object {"role": ..., "text": ...}.
    sampling: for this request alone; None takes what `ask_many` was given.
    """

    question: str
    picture: Picture = None
    regions: Sequence[RegionLike] | RegionLike = ()
    history: Sequence[MessageLike] = ()
    sampling: SamplingParams | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request whose picture is open and drawn and whose question is worded. Times: seconds."""

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
        question = _question(request, notes)
        regions = as_regions(request.regions)
        if regions and request.picture is None:
            raise RequestError(
                f"{len(regions)} regions were given without a picture to draw them on"
            )
        began = time.perf_counter()
        picture = None if request.picture is None else open_picture(request.picture)
        opened = time.perf_counter()
        seen: tuple[Region, ...] = ()
        bare: Image.Image | None = None
        if picture is not None and regions:
            resolution = resolve(regions, picture.size)
            regions = resolution.regions
            notes += resolution.notes
            bare = picture
            picture = draw_resolved(picture, regions)
            seen = regions
        elif picture is not None and processor.focal is not None:
            seen = _marks_on(picture, request, notes)
        drawn = time.perf_counter()
        # Earlier turns of a person may name regions too; what a model said is left as it was said.
        history = [_expanded(message, regions) for message in as_messages(request.history)]
        asked = Message("user", expand(question, regions))
        messages = (*history, asked, Message("assistant", None))
        conversation = Conversation(messages=messages, picture=picture, regions=seen, bare=bare)
        prompt_tokens = len(processor.encode_one(conversation))
        prompt = processor.prompt_text(conversation)
        encoded = time.perf_counter()
        return cls(
            conversation=conversation,
            sampling=request.sampling or sampling,
            notes=tuple(notes),
            prompt=prompt,
            prompt_tokens=prompt_tokens,
            open_seconds=opened - began,
            draw_seconds=drawn - opened,
            encode_seconds=encoded - drawn,
        )


def _question(request: Request, notes: list[str]) -> str:
    """The question without a picture marker in front.

    Files and users of the original begin a question with "<image>\\n", where that program put the
    picture. Here the template places the picture and typed text never does, so one such line is
    left out, with a note; anywhere else `<image>` is text like any other.
    """
    question = request.question
    if not isinstance(question, str):
        raise RequestError(f"question: {question!r} is no text")
    marker = f"{IMAGE_TEXT}\n"
    if request.picture is not None and question.startswith(marker):
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
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence):
        raise RequestError(f"history: {values!r} is no list of messages")
    return tuple(_message(value) for value in values)


def _message(value: MessageLike) -> Message:
    if isinstance(value, Message):
        message = value
    elif isinstance(value, Mapping) and set(value) == {"role", "text"}:
        message = Message(value["role"], value["text"])
    else:
        raise RequestError(f'history: {value!r} is no message; write {{"role": ..., "text": ...}}')
    if not isinstance(message.text, str):
        raise RequestError(f"history: a {message.role} message has no text")
    return message


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
