"""Field types and base classes of the rows of training files: turns, boxes, outlines.

A validator's message states the rule; `records.parse_row` adds field, row and file. This module does
not know files, data sources or images.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, NoReturn, Self, TypeAlias

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PlainSerializer,
    field_validator,
    model_validator,
)

from vip_llava.prompting.turns import Role, Turn
from vip_llava.regions.geometry import MAX_COORDINATE, brief

__all__ = [
    "BOX_PLACEHOLDER",
    "Box",
    "BoxesRow",
    "DataRow",
    "MarkedRow",
    "Outline",
    "Outlines",
    "RuleError",
    "TalkRow",
    "Text",
    "Turns",
    "check_boxes",
    "reject",
]

#: `<bboxN>` counts from 0; `<bbox>` stands for the only box.
BOX_PLACEHOLDER = re.compile(r"<bbox(\d*)>")
_SENDERS: dict[Role, str] = {"system": "system", "user": "human", "assistant": "gpt"}
_ROLES: dict[str, Role] = {
    **{sender: role for role, sender in _SENDERS.items()},
    "user": "user",
    "assistant": "assistant",
}


class RuleError(ValueError):
    """A rule between fields is violated; `field` is the one to correct."""

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(rule)
        self.field = field


def reject(field: str, rule: str) -> NoReturn:
    """Raise RuleError."""
    raise RuleError(field, rule)


def _box(value: object) -> object:
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        raise ValueError(f"a box is [x1, y1, x2, y2] in pixels, not {brief(value)}")
    if not all(
        isinstance(part, (int, float)) and not isinstance(part, bool) and math.isfinite(part)
        for part in value
    ):
        raise ValueError(f"a box is four finite numbers x1, y1, x2, y2, not {brief(value)}")
    if max(map(abs, value)) > MAX_COORDINATE:
        raise ValueError(f"box coordinates are at most {MAX_COORDINATE:.0f}, not {brief(value)}")
    if value[0] >= value[2] or value[1] >= value[3]:
        raise ValueError(f"a box has x1 < x2 and y1 < y2, not {brief(value)}")
    return tuple(value)


def _outline(value: object) -> object:
    """[x, y, x, y, ...] or [[x, y], ...] -> (x, y, x, y, ...)."""
    if isinstance(value, dict):
        raise ValueError(
            "an outline is [x, y, x, y, ...]; only `regions` rows take run-length masks"
        )
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], (list, tuple)):
        if any(not isinstance(point, (list, tuple)) or len(point) != 2 for point in value):
            raise ValueError(f"points of an outline are [x, y], not {brief(value)}")
        value = [part for point in value for part in point]
    if isinstance(value, (list, tuple)) and len(value) % 2:
        raise ValueError(f"an outline has pairs x, y; this one has {len(value)} numbers")
    return value


Box: TypeAlias = Annotated[tuple[float, float, float, float], BeforeValidator(_box)]
_Number: TypeAlias = Annotated[
    float, Field(ge=-MAX_COORDINATE, le=MAX_COORDINATE, allow_inf_nan=False)
]
Outline: TypeAlias = Annotated[tuple[_Number, ...], BeforeValidator(_outline)]
#: The outlines of one object, in pixels, or None if unknown.
Outlines: TypeAlias = tuple[Outline, ...] | None
Text: TypeAlias = Annotated[str, Field(min_length=1)]


def _turn(value: object) -> Turn:
    """{"from": "human", "value": "..."} -> Turn."""
    if isinstance(value, Turn):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(
            f'a turn is {{"from": "human" or "gpt", "value": "..."}}, not {brief(value)}'
        )
    for key in ("from", "value"):
        if key not in value:
            raise ValueError(f'a turn has "from" and "value"; {key!r} is missing')
    sender, text = value["from"], value["value"]
    role = _ROLES.get(sender) if isinstance(sender, str) else None
    if role is None:
        raise ValueError(f'a turn is from "human", "gpt" or "system", not {brief(sender)}')
    if isinstance(text, int | float) and not isinstance(text, bool):
        text = str(text)
    if not isinstance(text, str):
        raise ValueError(f"the value of a turn must be a string, not {brief(text)}")
    return Turn(role, text)


def _turn_json(turn: Turn) -> dict[str, str]:
    return {"from": _SENDERS[turn.role], "value": turn.text or ""}


Turns: TypeAlias = tuple[
    Annotated[InstanceOf[Turn], BeforeValidator(_turn), PlainSerializer(_turn_json)], ...
]


class DataRow(BaseModel):
    """The fields of all rows. `model_extra` keeps the other keys of the file."""

    model_config = ConfigDict(
        frozen=True,
        extra="allow",
        coerce_numbers_to_str=True,
        populate_by_name=True,
        arbitrary_types_allowed=True,
    )
    kind: ClassVar[str] = ""

    id: str = ""
    images: tuple[Text, ...] = Field((), validation_alias="image", serialization_alias="image")
    turns: Turns = Field((), validation_alias="conversations", serialization_alias="conversations")

    @field_validator("images", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        names = value if isinstance(value, (list, tuple)) else (value,)
        for name in names:
            if not isinstance(name, str) or not name:
                raise ValueError(f"an image is named by its file, not {brief(name)}")
            if re.match(r"[a-z]+://|data:", name):
                raise ValueError(f"images are files; {brief(name)} would have to be fetched")
        return tuple(names)


class MarkedRow(DataRow):
    """A row about marked objects, with exactly one image."""

    images: tuple[Text, ...] = Field(
        validation_alias="image", serialization_alias="image", min_length=1, max_length=1
    )


class BoxesRow(MarkedRow):
    """Boxes in pixels of the image, and the outlines of the objects if known.

    After parsing, `segmentations` has one entry for each box.
    """

    bboxes: tuple[Box, ...] = Field(
        min_length=1, validation_alias=AliasChoices("bboxes", "bbox"), serialization_alias="bboxes"
    )
    segmentations: tuple[Outlines, ...] = ()

    @field_validator("bboxes", mode="before")
    @classmethod
    def _one_box(cls, value: object) -> object:
        """`bbox` may be a single box."""
        parts = value if isinstance(value, (list, tuple)) else ()
        single = len(parts) == 4 and not any(isinstance(part, (list, tuple)) for part in parts)
        return [value] if single else value

    @model_validator(mode="after")
    def _outlines_fit(self) -> Self:
        if not self.segmentations:
            object.__setattr__(self, "segmentations", (None,) * len(self.bboxes))
        if len(self.segmentations) != len(self.bboxes):
            reject(
                "segmentations",
                f"needs one entry for each box (null if unknown): there are {len(self.bboxes)} "
                f"boxes and {len(self.segmentations)} entries",
            )
        return self

    @property
    def objects(self) -> list[tuple[Box, Outlines]]:
        """Each box with its outlines."""
        return list(zip(self.bboxes, self.segmentations, strict=True))


class TalkRow(BoxesRow):
    """A conversation in which `<bboxN>` (or `<bbox>`, with a single box) stands for an object."""

    turns: Turns = Field(
        validation_alias="conversations", serialization_alias="conversations", min_length=1
    )

    @model_validator(mode="after")
    def _boxes_exist(self) -> Self:
        check_boxes([turn.text or "" for turn in self.turns], len(self.bboxes), "conversations")
        return self


def check_boxes(texts: list[str], count: int, field: str) -> None:
    """Reject a `<bboxN>` that is none of `count` boxes, and a `<bbox>` unless there is one box."""
    for number in (match[1] for text in texts for match in BOX_PLACEHOLDER.finditer(text)):
        if not number and count != 1:
            reject(field, f"<bbox> needs a row with one box; this has {count}: write <bboxN>")
        if number and int(number) >= count:
            last = f"the last is <bbox{count - 1}>" if count else "there are none"
            reject(field, f"<bbox{number}> names no box: they count from 0, {last}")
