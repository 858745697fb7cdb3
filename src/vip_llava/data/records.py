"""Rows of training files as checked values: every kind of row, its fields and its rules.

`parse_row` tells the kinds apart the way the published files do: by `regions`, by the source that
begins the id ("vcr-17", "refcocog-gpt4v-3"), by boxes, else a plain conversation. What can be wrong
with a row by itself is found here; what depends on the picture is found when it is arranged.

It deliberately does not know files, pictures, colours or the wording of questions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NoReturn, Self, TypeAlias

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from vip_llava.errors import DataError
from vip_llava.regions.geometry import brief
from vip_llava.regions.phrases import placeholders
from vip_llava.regions.serialize import regions_from_json
from vip_llava.regions.shapes import Region

__all__ = [
    "KINDS",
    "Box",
    "ConversationRow",
    "CustomRow",
    "Flickr30kRow",
    "Outlines",
    "PointQaTwiceRow",
    "RefcocogGpt4vRow",
    "RefcocogRow",
    "RegionsRow",
    "Row",
    "Turn",
    "V7wRow",
    "VcrRow",
    "VcrToken",
    "VgRelGpt4vRow",
    "VgRelRow",
    "parse_row",
]

#: `<bboxN>` counts from 0; `<bbox>` stands for the only box.
BOX_PLACEHOLDER = re.compile(r"<bbox(\d*)>")
_SENDERS = {"user": "human", "assistant": "gpt"}


def _broken(field: str, rule: str) -> NoReturn:
    """A rule between fields is broken; `field` is the one to look at."""
    raise PydanticCustomError("rule", "{rule}", {"rule": rule, "field": field})


def _box(value: object) -> object:
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        raise ValueError(f"a box is [x1, y1, x2, y2] in pixels, not {brief(value)}")
    if not all(
        isinstance(part, (int, float)) and not isinstance(part, bool) and math.isfinite(part)
        for part in value
    ):
        raise ValueError(f"a box is four finite numbers x1, y1, x2, y2, not {brief(value)}")
    if value[0] >= value[2] or value[1] >= value[3]:
        raise ValueError(f"a box has x1 < x2 and y1 < y2, not {brief(value)}")
    return tuple(value)


def _outline(value: object) -> object:
    """[x, y, x, y, ...] or [[x, y], ...] -> (x, y, x, y, ...)."""
    if isinstance(value, dict):
        raise ValueError("an outline is [x, y, x, y, ...]; run-length masks are for `regions` rows")
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], (list, tuple)):
        if any(not isinstance(point, (list, tuple)) or len(point) != 2 for point in value):
            raise ValueError(f"points of an outline are [x, y], not {brief(value)}")
        value = [part for point in value for part in point]
    if isinstance(value, (list, tuple)) and len(value) % 2:
        raise ValueError(f"an outline has pairs x, y; this one has {len(value)} numbers")
    return value


Box: TypeAlias = Annotated[tuple[float, float, float, float], BeforeValidator(_box)]
_Number: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
Outline: TypeAlias = Annotated[tuple[_Number, ...], BeforeValidator(_outline)]
#: The outlines of one thing, in pixels, or None where they are not known.
Outlines: TypeAlias = tuple[Outline, ...] | None
#: A word, or the numbers (from 0) of things in the picture.
VcrToken: TypeAlias = str | tuple[int, ...]
Text: TypeAlias = Annotated[str, Field(min_length=1)]


class Turn(BaseModel):
    """One turn of a conversation. JSON: {"from": "human", "value": "..."}."""

    model_config = ConfigDict(frozen=True, coerce_numbers_to_str=True, populate_by_name=True)

    role: Literal["system", "human", "gpt"] = Field(alias="from")
    text: str = Field(alias="value")

    @field_validator("role", mode="before")
    @classmethod
    def _known_as(cls, value: object) -> object:
        return _SENDERS.get(value, value) if isinstance(value, str) else value


class Row(BaseModel):
    """What all rows share. Keys of the file that are no fields are kept in `model_extra`."""

    model_config = ConfigDict(
        frozen=True,
        extra="allow",
        coerce_numbers_to_str=True,
        populate_by_name=True,
        arbitrary_types_allowed=True,
    )
    kind: ClassVar[str] = ""

    id: str = ""
    pictures: tuple[Text, ...] = Field((), alias="image")
    turns: tuple[Turn, ...] = Field((), alias="conversations")

    @field_validator("pictures", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        names = value if isinstance(value, (list, tuple)) else (value,)
        for name in names:
            if not isinstance(name, str) or not name:
                raise ValueError(f"a picture is named by its file, not {brief(name)}")
            if re.match(r"[a-z]+://|data:", name):
                raise ValueError(f"pictures are files; {brief(name)} would have to be fetched")
        return tuple(names)


class ConversationRow(Row):
    """A LLaVA row: text with no, one or several pictures."""

    kind: ClassVar[str] = "conversation"
    turns: tuple[Turn, ...] = Field(alias="conversations", min_length=1)


class _MarkedRow(Row):
    """A row about marked things: one picture, and no other number of them."""

    pictures: tuple[Text, ...] = Field(alias="image", min_length=1, max_length=1)


class _BoxesRow(_MarkedRow):
    """Boxes in pixels of the picture, and the outlines of the things where they are known.

    After parsing, `segmentations` has one entry for each box.
    """

    bboxes: tuple[Box, ...] = Field(
        min_length=1, validation_alias=AliasChoices("bboxes", "bbox"), serialization_alias="bboxes"
    )
    segmentations: tuple[Outlines, ...] = ()

    @field_validator("bboxes", mode="before")
    @classmethod
    def _one_box(cls, value: object) -> object:
        """`bbox` may be one box alone."""
        plain = isinstance(value, (list, tuple)) and len(value) == 4
        return [value] if plain and not any(isinstance(x, (list, tuple)) for x in value) else value  # type: ignore[attr-defined]

    @model_validator(mode="after")
    def _outlines_fit(self) -> Self:
        if not self.segmentations:
            object.__setattr__(self, "segmentations", (None,) * len(self.bboxes))
        if len(self.segmentations) != len(self.bboxes):
            _broken(
                "segmentations",
                f"one entry for each box (or null where unknown): there are {len(self.bboxes)} "
                f"boxes and {len(self.segmentations)} entries",
            )
        return self


class _TalkRow(_BoxesRow):
    """A conversation with `<bboxN>` (or `<bbox>`, of the only box) where a thing is meant."""

    turns: tuple[Turn, ...] = Field(alias="conversations", min_length=1)

    @model_validator(mode="after")
    def _boxes_exist(self) -> Self:
        check_boxes([turn.text for turn in self.turns], len(self.bboxes), "conversations")
        return self


class RefcocogRow(_BoxesRow):
    """RefCOCOg: `answer` describes the marked thing."""

    kind: ClassVar[str] = "refcocog"
    answer: Text


class RefcocogGpt4vRow(_TalkRow):
    """A GPT-4V conversation about a marked thing of RefCOCOg."""

    kind: ClassVar[str] = "refcocog-gpt4v"


class VcrRow(_MarkedRow):
    """Visual Commonsense Reasoning: a question, four answers, four reasons, as words and things.

    A thing is its number in `class_names`. Boxes [x1, y1, x2, y2] (a fifth number, the score, is
    left out) and outlines come with the row (`boxes`, `segms`) or in the JSON file `meta_dir`.
    """

    kind: ClassVar[str] = "vcr"
    question: tuple[VcrToken, ...] = Field(min_length=1)
    answer_choices: tuple[tuple[VcrToken, ...], ...] = Field(min_length=4, max_length=4)
    answer_label: int = Field(ge=0, le=3)
    rationale_choices: tuple[tuple[VcrToken, ...], ...] = Field(min_length=4, max_length=4)
    rationale_label: int = Field(ge=0, le=3)
    class_names: tuple[Text, ...]
    meta_dir: Text | None = None
    boxes: tuple[Box, ...] | None = None
    segms: tuple[Outlines, ...] | None = None

    @field_validator("question", "answer_choices", "rationale_choices", mode="before")
    @classmethod
    def _tokens(cls, value: object, info: Any) -> object:
        nested = info.field_name != "question"
        for sentence in value if nested and isinstance(value, (list, tuple)) else [value]:
            if not isinstance(sentence, (list, tuple)) or not sentence:
                raise ValueError(f"a sentence is a list of words and things, not {brief(sentence)}")
            for token in sentence:
                if not _is_vcr_token(token):
                    raise ValueError(
                        "a token is a word or a list of numbers of things, "
                        f"for example [0, 2], not {brief(token)}"
                    )
        return value

    @field_validator("boxes", mode="before")
    @classmethod
    def _without_score(cls, value: object) -> object:
        if not isinstance(value, (list, tuple)):
            return value
        return [
            box[:4] if isinstance(box, (list, tuple)) and len(box) == 5 else box for box in value
        ]

    @property
    def things(self) -> tuple[int, ...]:
        """The numbers of the things that the texts name, in order, without repeats."""
        texts = (self.question, *self.answer_choices, *self.rationale_choices)
        named = {
            number
            for text in texts
            for token in text
            if isinstance(token, tuple)
            for number in token
        }
        return tuple(sorted(named))

    @model_validator(mode="after")
    def _things_exist(self) -> Self:
        if self.things and self.things[-1] >= len(self.class_names):
            _broken(
                "class_names",
                f"the texts name thing {self.things[-1]}, but there are {len(self.class_names)} "
                "classes (things count from 0)",
            )
        if self.boxes is None:
            if self.meta_dir is None:
                _broken("meta_dir", "missing: the file with `boxes` and `segms`, or those two keys")
            return self
        for name, entries in (("boxes", self.boxes), ("segms", self.segms)):
            if entries is not None and len(entries) != len(self.class_names):
                _broken(
                    name,
                    f"one entry for each of the {len(self.class_names)} classes, not {len(entries)}",
                )
        return self


def _is_vcr_token(token: object) -> bool:
    if isinstance(token, str):
        return True
    return (
        isinstance(token, (list, tuple))
        and bool(token)
        and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in token)
    )


class VgRelRow(_BoxesRow):
    """Visual Genome relations: `answer` is "subject, relation, object" of the two boxes."""

    kind: ClassVar[str] = "vg_rel"
    answer: Text

    @model_validator(mode="after")
    def _two(self) -> Self:
        if len(self.bboxes) != 2:
            _broken("bboxes", f"a relation is between 2 boxes, not {len(self.bboxes)}")
        return self


class VgRelGpt4vRow(_TalkRow):
    """A GPT-4V conversation about things of Visual Genome."""

    kind: ClassVar[str] = "vg_rel-gpt4v"


class Flickr30kRow(_MarkedRow):
    """Flickr30k Entities: `grounding` is a caption with `<bboxN>` behind a phrase.

    `bbox[N]` are the boxes of phrase N; without any, nothing is marked there.
    """

    kind: ClassVar[str] = "flickr30k"
    bbox: tuple[tuple[Box, ...], ...] = Field(
        validation_alias=AliasChoices("bbox", "bboxes"), serialization_alias="bbox"
    )
    grounding: str

    @model_validator(mode="after")
    def _phrases_exist(self) -> Self:
        if not BOX_PLACEHOLDER.sub("", self.grounding).strip():
            _broken("grounding", "the caption has no words")
        if "<bbox>" in self.grounding:
            _broken("grounding", "write <bboxN>, from <bbox0>; <bbox> names no phrase")
        check_boxes([self.grounding], len(self.bbox), "grounding")
        return self


class V7wRow(_BoxesRow):
    """Visual7W pointing: which of four boxes is the `answer`?"""

    kind: ClassVar[str] = "v7w"
    question: Text
    answer: Box

    @model_validator(mode="after")
    def _four(self) -> Self:
        if len(self.bboxes) != 4:
            _broken("bboxes", f"the question has 4 options, not {len(self.bboxes)}")
        if self.answer not in self.bboxes:
            _broken("answer", f"the answer {list(self.answer)} is none of the boxes")
        return self


class PointQaTwiceRow(_BoxesRow):
    """PointQA LookTwice: a question about all things that are like the marked one."""

    kind: ClassVar[str] = "pointQA_twice"
    general_question: Text
    answer: Text

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.bboxes) != 1:
            _broken("bboxes", f"one box shows the example, not {len(self.bboxes)}")
        return self


class CustomRow(_TalkRow):
    """One's own data in the original's form: boxes, outlines, `<bboxN>` in the text."""

    kind: ClassVar[str] = "custom"


class RegionsRow(_MarkedRow):
    """This project's form: `regions` is a list of Region JSON, `<region:ID>` stands in the text."""

    kind: ClassVar[str] = "regions"
    regions: tuple[Region, ...]
    turns: tuple[Turn, ...] = Field(alias="conversations", min_length=1)

    @field_validator("regions", mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"a list of regions is wanted, not {brief(value)}")
        if all(isinstance(each, Region) for each in value):
            return tuple(value)
        # A table has a null for every key that some other region has.
        return regions_from_json([_without_nulls(each) for each in value])

    @model_validator(mode="after")
    def _regions_exist(self) -> Self:
        known = [region.id or str(place) for place, region in enumerate(self.regions, 1)]
        for turn in self.turns:
            for name in placeholders(turn.text):
                if name not in known:
                    listed = ", ".join(known) or "none"
                    _broken("conversations", f"<region:{name}> names no region; ids: {listed}")
        return self


def _without_nulls(value: object) -> object:
    if not isinstance(value, dict):
        return value
    return {key: part for key, part in value.items() if part is not None}


def check_boxes(texts: list[str], count: int, field: str) -> None:
    """Every `<bboxN>` names one of `count` boxes; `<bbox>` needs exactly one."""
    for number in (match[1] for text in texts for match in BOX_PLACEHOLDER.finditer(text)):
        if not number and count != 1:
            _broken(field, f"<bbox> is for rows with one box; this has {count}: write <bboxN>")
        if number and int(number) >= count:
            last = f"the last is <bbox{count - 1}>" if count else "there are none"
            _broken(field, f"<bbox{number}> names no box: they count from 0, {last}")


_SOURCES: tuple[type[Row], ...] = (
    RefcocogRow,
    RefcocogGpt4vRow,
    VcrRow,
    VgRelRow,
    VgRelGpt4vRow,
    Flickr30kRow,
    V7wRow,
    PointQaTwiceRow,
)
#: Kind -> class of its rows.
KINDS: Mapping[str, type[Row]] = {
    "conversation": ConversationRow,
    **{each.kind: each for each in _SOURCES},
    "custom": CustomRow,
    "regions": RegionsRow,
}
_OF_SOURCE = {each.kind: each for each in _SOURCES}
_REGION_KEYS = frozenset({"bboxes", "bbox", "segmentations", "meta_dir", "boxes"})


def parse_row(value: Mapping[str, Any], *, where: str = "") -> Row:
    """The checked row of a JSON object; `where` (file and row number) begins every message.

    Keys with null count as missing. Raises DataError that names where, id, field and rule.
    """
    if not isinstance(value, Mapping):
        raise DataError(f"{_at(where)}a row must be a JSON object, not {type(value).__name__}")
    given = {str(key): part for key, part in value.items() if part is not None}
    name = given.get("id", "")
    if not isinstance(name, (str, int)) or isinstance(name, bool):
        raise DataError(f"{_at(where)}field id: must be text or a whole number, not {brief(name)}")
    kind = _kind(given, str(name), f"{_at(where)}id {str(name)!r}: ")
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise DataError(f"{_at(where)}id {str(name)!r}: {_told(error)}") from None


def _at(where: str) -> str:
    return f"{where}: " if where else ""


def _kind(given: Mapping[str, Any], name: str, who: str) -> type[Row]:
    if "regions" in given:
        return RegionsRow
    source, _, rest = name.partition("-")
    gpt4v = f"{source}-gpt4v"
    kind = gpt4v if rest.partition("-")[0] == "gpt4v" and gpt4v in _OF_SOURCE else source
    marked = any(given.get(key) for key in _REGION_KEYS)
    if kind in _OF_SOURCE and (marked or "image" in given):
        if rest:
            return _OF_SOURCE[kind]
        if marked:
            raise DataError(f"{who}field id: a row of {kind} has an id like {kind}-1")
    if not given.get("conversations") and marked:
        known = ", ".join(_OF_SOURCE)
        raise DataError(
            f"{who}field conversations: missing; only rows of a known source have none "
            f"(ids that begin with one of {known}, then -NUMBER)"
        )
    return CustomRow if marked or _mentions_box(given) else ConversationRow


def _mentions_box(given: Mapping[str, Any]) -> bool:
    """A row with a picture whose text says `<bboxN>` has lost its boxes, and must not pass for text."""
    turns = given.get("conversations")
    return (
        "image" in given
        and isinstance(turns, (list, tuple))
        and any(
            isinstance(turn, Mapping)
            and isinstance(turn.get("value"), str)
            and BOX_PLACEHOLDER.search(turn["value"]) is not None
            for turn in turns
        )
    )


def _told(error: ValidationError) -> str:
    """The first broken rule in words, and how many more there are."""
    first, *others = error.errors(include_url=False)
    field = str(first.get("ctx", {}).get("field", ""))
    if not field:
        steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"]]
        field = "".join(steps).lstrip(".") or "(row)"
    rule = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        rule = "missing"
    elif first["type"] not in ("rule", "value_error", "too_short", "too_long"):
        rule += f", not {brief(first['input'])}"
    more = f" (and {len(others)} more)" if others else ""
    return f"field {field}: {rule}{more}"
