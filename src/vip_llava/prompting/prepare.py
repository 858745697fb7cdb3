"""From a request to what a model reads: open, resolve, draw, word, tokenize - each step once.

Every entry point prepares its requests here. This module does not generate anything and knows no
model weights.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from vip_llava.errors import RequestError, VipLlavaError
from vip_llava.prompting.processor import MarkFinder, Processor
from vip_llava.prompting.templates import IMAGE_TEXT
from vip_llava.prompting.turns import (
    MarkedImage,
    Turn,
    as_regions,
    draw_images,
    images_of,
    open_images,
)
from vip_llava.regions.phrases import expand
from vip_llava.sampling_params import SamplingParams

if TYPE_CHECKING:
    import torch

    from vip_llava.prompting.turns import ImageInput, RegionLike
    from vip_llava.regions import Region

    AskedImage: TypeAlias = ImageInput | MarkedImage | None
    TurnLike: TypeAlias = Turn | Mapping[str, Any]

__all__ = ["Prepared", "Request", "Sampling", "as_request", "as_turns", "naming", "prepare"]


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
_TURN_KEYS = frozenset({"role", "text", "images"})
_IMAGE_KEYS = frozenset({"image", "regions"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request for `Assistant.ask_many`.

    Args:
        question: the question; `<region:1>` stands for the region with that id.
        image: path, bytes, PIL image, numpy array, data URL, `MarkedImage`, or None to talk
            without one. It is shown with the first question of the conversation.
        regions: Region objects or their JSON objects, on that image.
        history: earlier turns, oldest first: `Turn`s or objects {"role": ..., "text": ...}, which
            may have "images".
        images: in place of `image`, several images that are shown with this question:
            `MarkedImage`s or objects {"image": ..., "regions": [...]}. Region ids differ over all
            images of a conversation.
        sampling: for this request alone; None takes what `ask_many` was given.
    """

    question: str
    image: AskedImage = None
    regions: Sequence[RegionLike] | RegionLike = ()
    history: Sequence[TurnLike] = ()
    images: Sequence[MarkedImage | Mapping[str, Any]] = ()
    sampling: SamplingParams | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request as a model reads it.

    Args:
        turns: worded; their images opened, drawn, with resolved regions. The last turn is the
            question.
        notes: what was changed on the way (a clipped region, for example).
        input_ids: the prompt, each view as the model's number of image tokens; empty where the
            backend takes turns.
        pixel_values: all views, float32 [N, 3, S, S]; None without images.
        image_tokens: how many of `input_ids` stand for images.
        prompt: the prompt as text, with `<image>` for each view.
        open_seconds, draw_seconds, encode_seconds: time spent.
    """

    turns: tuple[Turn, ...]
    sampling: SamplingParams
    notes: tuple[str, ...] = ()
    input_ids: Sequence[int] = ()
    pixel_values: torch.Tensor | None = None
    image_tokens: int = 0
    prompt: str = ""
    open_seconds: float = 0.0
    draw_seconds: float = 0.0
    encode_seconds: float = 0.0

    @property
    def images(self) -> tuple[MarkedImage, ...]:
        """All images of the conversation, in order."""
        return images_of(self.turns)

    @property
    def question(self) -> str:
        """The question in the words that the model reads."""
        return self.turns[-1].text or ""


def prepare(
    request: Request, sampling: SamplingParams, processor: Processor | None = None
) -> Prepared:
    """Do everything up to the model's inputs.

    Args:
        processor: makes ids and pixels, and may find marks that were drawn by hand. Without one the
            result has turns with drawn images only.

    Raises:
        RequestError, ImageError, RegionError or PhraseError: what is wrong with the request.
    """
    notes: list[str] = []
    asked = _turns(request, notes)
    began = time.perf_counter()
    images = open_images(images_of(asked))
    opened_at = time.perf_counter()
    images, changes = draw_images(images)
    notes += changes
    find = None if processor is None else processor.find_marks
    if len(images) == 1 and not images[0].regions and find is not None:
        images = [_with_found_marks(find, images[0], asked, notes)]
    drawn_at = time.perf_counter()
    prepared = Prepared(
        turns=_worded(asked, images),
        sampling=request.sampling or sampling,
        notes=tuple(notes),
        open_seconds=opened_at - began,
        draw_seconds=drawn_at - opened_at,
    )
    if processor is None:
        return prepared
    input_ids, prompt = processor.encode(prepared.turns)
    return replace(
        prepared,
        input_ids=input_ids,
        pixel_values=processor.pixels(prepared.turns),
        image_tokens=input_ids.count(processor.image_token_id),
        prompt=prompt,
        encode_seconds=time.perf_counter() - drawn_at,
    )


def _turns(request: Request, notes: list[str]) -> list[Turn]:
    """History and question as turns that carry their images, nothing opened yet."""
    history = list(as_turns(request.history))
    own = _images(request.images)
    shown = own or images_of(history)
    image = request.image
    regions = as_regions(request.regions)
    if image is not None and shown:
        raise RequestError(
            "give either `image`, which is shown with the first question, or `images` of the "
            "question and of the history, not both"
        )
    if image is None and regions:
        raise RequestError(
            f"{len(regions)} regions were given without an image to draw them on"
            + ("; with `images` they belong to one of those" if shown else "")
        )
    question = _question(request, image is not None or bool(shown), len(regions), notes)
    turns = [*history, Turn("user", question, own)]
    if image is not None:
        marked = image if isinstance(image, MarkedImage) else MarkedImage(image, regions)
        if isinstance(image, MarkedImage) and regions:
            raise RequestError("a MarkedImage has its regions already; give no `regions` with it")
        first = next(index for index, turn in enumerate(turns) if turn.role == "user")
        turns[first] = replace(turns[first], images=(marked,))
    return turns


def _question(request: Request, shown: bool, regions: int, notes: list[str]) -> str:
    """The question without an image marker in front.

    Files and users of the original begin a question with "<image>\\n", where that program put the
    image. Here the template places the image and typed text never does, so one such line is
    dropped, with a note; anywhere else `<image>` is text like any other.
    """
    question = request.question
    if not isinstance(question, str):
        raise RequestError(f"question: must be a string, not {question!r}")
    _check_encodable("question", question)
    marker = f"{IMAGE_TEXT}\n"
    if shown and question.startswith(marker):
        question = question[len(marker) :]
        notes.append(f'dropped a leading "{IMAGE_TEXT}" line: the image is placed by the template')
    if not question.strip():
        given = f"{regions} regions but " if regions else ""
        raise RequestError(f'question: {given}nothing is asked; try "What is <region:1>?"')
    return question


def _check_encodable(field: str, text: str) -> None:
    """Refuse lone surrogates, which no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{field}: character {error.start + 1} is a lone surrogate, which is not text"
        ) from None


def _with_found_marks(
    find: MarkFinder, image: MarkedImage, turns: Sequence[Turn], notes: list[str]
) -> MarkedImage:
    """The image with regions for marks that were drawn on it by hand and that the texts name.

    The regions choose focal views only: nothing is drawn again. Notes say what was found.
    """
    texts = [turn.text or "" for turn in turns if turn.role == "user"]
    found = find(image.shown, texts)
    for words, region in found:
        x1, y1, x2, y2 = region.bounds(image.shown.size)
        notes.append(
            f"found on the image and looked at closely: the {words} "
            f"around {x1:.0f},{y1:.0f},{x2:.0f},{y2:.0f}"
        )
    return replace(image, regions=tuple(region for _, region in found))


def _worded(turns: Sequence[Turn], images: Sequence[MarkedImage]) -> tuple[Turn, ...]:
    """The turns with their drawn images, and `<region:ID>` of the user's turns in trained words."""
    regions: list[Region] = [region for image in images for region in image.regions]
    remaining = iter(images)
    worded = []
    for turn in turns:
        text = turn.text
        if turn.role == "user" and text is not None:
            text = expand(text, regions)
        worded.append(Turn(turn.role, text, tuple(next(remaining) for _ in turn.images)))
    return tuple(worded)


def _images(values: object) -> tuple[MarkedImage, ...]:
    """Images with their regions, from `MarkedImage`s or objects of that form."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence):
        raise RequestError(f"images: must be a list of images, not {values!r}")
    found = []
    for value in values:
        if isinstance(value, Mapping) and "image" in value and set(value) <= _IMAGE_KEYS:
            value = MarkedImage(**value)
        if not isinstance(value, MarkedImage):
            raise RequestError(
                f'images: must be {{"image": ..., "regions": [...]}} objects, not {value!r}'
            )
        found.append(value)
    return tuple(found)


def as_turns(values: Sequence[TurnLike]) -> tuple[Turn, ...]:
    """Turns from Turns or from objects {"role": ..., "text": ..., "images": [...]}.

    Raises:
        RequestError: another form, or a turn without text.
    """
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence):
        raise RequestError(f"history: must be a list of turns, not {values!r}")
    return tuple(_turn(value) for value in values)


def _turn(value: TurnLike) -> Turn:
    if isinstance(value, Turn):
        turn = value
    elif isinstance(value, Mapping) and {"role", "text"} <= set(value) <= _TURN_KEYS:
        images = _images(value.get("images", ()))
        if images and value["role"] != "user":
            raise RequestError(f"history: a turn of role {value['role']!r} can't carry images")
        turn = Turn(value["role"], value["text"], images)
    else:
        raise RequestError(f'history: a turn must be {{"role": ..., "text": ...}}, not {value!r}')
    if not isinstance(turn.text, str):
        raise RequestError(f"history: a turn of role {turn.role!r} has no text")
    _check_encodable("history", turn.text)
    return turn


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
