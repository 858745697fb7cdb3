"""Rows of training files as checked values: every kind of row, its fields and its rules.

`parse_row` tells the kinds apart the way the published files do: by `regions`, by the source that
begins the id ("vcr-17", "refcocog-gpt4v-3"), by boxes, else a plain conversation. What can be wrong
with a row by itself is found here; what depends on the image is found when it is arranged.

It deliberately does not know files, images, colours or the wording of questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any, ClassVar, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from vip_llava.data.fields import (
    BOX_PLACEHOLDER,
    Box,
    MarkedRow,
    Outlines,
    Row,
    RuleError,
    TalkRow,
    Turns,
    broken,
)
from vip_llava.data.sources import (
    SOURCES,
    Flickr30kRow,
    PointQaTwiceRow,
    RefcocogGpt4vRow,
    RefcocogRow,
    V7wRow,
    VcrRow,
    VcrToken,
    VgRelGpt4vRow,
    VgRelRow,
)
from vip_llava.errors import DataError, PhraseError
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
    "V7wRow",
    "VcrRow",
    "VcrToken",
    "VgRelGpt4vRow",
    "VgRelRow",
    "parse_row",
]


class ConversationRow(Row):
    """A LLaVA row: text with no, one or several images."""

    kind: ClassVar[str] = "conversation"
    turns: Turns = Field(
        validation_alias="conversations", serialization_alias="conversations", min_length=1
    )


class CustomRow(TalkRow):
    """One's own data in the original's form: boxes, outlines, `<bboxN>` in the text."""

    kind: ClassVar[str] = "custom"


class RegionsRow(MarkedRow):
    """This project's form: `regions` is a list of Region JSON, `<region:ID>` stands in the text."""

    kind: ClassVar[str] = "regions"
    regions: tuple[Region, ...]
    turns: Turns = Field(
        validation_alias="conversations", serialization_alias="conversations", min_length=1
    )

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
        known = _ids(self.regions)
        for turn in self.turns:
            try:
                unknown = [name for name in placeholders(turn.text or "") if name not in known]
            except PhraseError as error:
                broken("conversations", str(error))
            if unknown:
                listed = ", ".join(known) or "none"
                broken("conversations", f"<region:{unknown[0]}> names no region; ids: {listed}")
        return self


def _ids(regions: tuple[Region, ...]) -> list[str]:
    """The ids as `resolve` completes them: those without one get the lowest free numbers."""
    given = [region.id for region in regions if region.id is not None]
    free = (str(number) for number in count(1) if str(number) not in given)
    known = [region.id if region.id is not None else next(free) for region in regions]
    twice = next((name for name in known if known.count(name) > 1), None)
    if twice is not None:
        broken("regions", f"two regions have the id {twice!r}; ids must differ")
    return known


def _without_nulls(value: object) -> object:
    if not isinstance(value, dict):
        return value
    return {key: part for key, part in value.items() if part is not None}


#: Kind -> class of its rows.
KINDS: Mapping[str, type[Row]] = {
    "conversation": ConversationRow,
    **SOURCES,
    "custom": CustomRow,
    "regions": RegionsRow,
}
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
    kind = gpt4v if rest.partition("-")[0] == "gpt4v" and gpt4v in SOURCES else source
    marked = any(given.get(key) for key in _REGION_KEYS)
    if kind in SOURCES and (marked or "image" in given):
        if rest:
            return SOURCES[kind]
        if marked:
            raise DataError(f"{who}field id: a row of {kind} has an id like {kind}-1")
    if not given.get("conversations") and marked:
        known = ", ".join(SOURCES)
        raise DataError(
            f"{who}field conversations: missing; only rows of a known source have none "
            f"(ids that begin with one of {known}, then -NUMBER)"
        )
    return CustomRow if marked or _mentions_box(given) else ConversationRow


def _mentions_box(given: Mapping[str, Any]) -> bool:
    """A row with an image whose text says `<bboxN>` has lost its boxes, and must not pass for text."""
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
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, RuleError):
        field = cause.field
    else:
        steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"]]
        field = "".join(steps).lstrip(".") or "(row)"
    rule = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        rule = "missing"
    elif first["type"] not in ("value_error", "too_short", "too_long"):
        rule += f", not {brief(first['input'])}"
    more = f" (and {len(others)} more)" if others else ""
    return f"field {field}: {rule}{more}"
