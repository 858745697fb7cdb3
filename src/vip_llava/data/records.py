"""Parse rows of training files into validated objects.

`parse_row` determines the kind of a row like the published files: by the key `regions`, by the source
that is the prefix of the id ("vcr-17", "refcocog-gpt4v-3"), by boxes, else a plain conversation. It
checks what depends on the row alone; `tasks.arrange` checks what depends on the image. This module
does not know files, images, colours or the wording of questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any, ClassVar, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from vip_llava.data.fields import (
    BOX_PLACEHOLDER,
    DataRow,
    MarkedRow,
    RuleError,
    TalkRow,
    Turns,
    reject,
)
from vip_llava.data.region_rows import REGION_ROWS
from vip_llava.errors import DataError, PhraseError
from vip_llava.regions.geometry import brief
from vip_llava.regions.phrases import placeholders
from vip_llava.regions.serialize import regions_from_json
from vip_llava.regions.shapes import Region

__all__ = ["KINDS", "ConversationRow", "CustomRow", "RegionsRow", "parse_row"]


class ConversationRow(DataRow):
    """A LLaVA row: a conversation with any number of images."""

    kind: ClassVar[str] = "conversation"
    turns: Turns = Field(
        validation_alias="conversations", serialization_alias="conversations", min_length=1
    )


class CustomRow(TalkRow):
    """Custom data in the original's form: boxes, outlines, `<bboxN>` in the text."""

    kind: ClassVar[str] = "custom"


class RegionsRow(MarkedRow):
    """This project's form: `regions` is a list of Region JSON, named by `<region:ID>` in the text."""

    kind: ClassVar[str] = "regions"
    regions: tuple[Region, ...]
    turns: Turns = Field(
        validation_alias="conversations", serialization_alias="conversations", min_length=1
    )

    @field_validator("regions", mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"regions must be a list, not {brief(value)}")
        if all(isinstance(each, Region) for each in value):
            return tuple(value)
        # A table stores a null for every key that another region has.
        return regions_from_json([_without_nulls(each) for each in value])

    @model_validator(mode="after")
    def _regions_exist(self) -> Self:
        known = _ids(self.regions)
        for turn in self.turns:
            try:
                unknown = [name for name in placeholders(turn.text or "") if name not in known]
            except PhraseError as error:
                reject("conversations", str(error))
            if unknown:
                listed = ", ".join(known) or "none"
                reject("conversations", f"<region:{unknown[0]}> names no region; ids: {listed}")
        return self


def _ids(regions: tuple[Region, ...]) -> list[str]:
    """The ids that `resolve` gives: missing ones become the lowest free numbers."""
    given = [region.id for region in regions if region.id is not None]
    free = (str(number) for number in count(1) if str(number) not in given)
    known = [region.id if region.id is not None else next(free) for region in regions]
    twice = next((name for name in known if known.count(name) > 1), None)
    if twice is not None:
        reject("regions", f"two regions have the id {twice!r}; ids must differ")
    return known


def _without_nulls(value: object) -> object:
    if not isinstance(value, dict):
        return value
    return {key: part for key, part in value.items() if part is not None}


#: Kind -> class of its rows.
KINDS: Mapping[str, type[DataRow]] = {
    "conversation": ConversationRow,
    **REGION_ROWS,
    "custom": CustomRow,
    "regions": RegionsRow,
}
_REGION_KEYS = frozenset({"bboxes", "bbox", "segmentations", "meta_dir", "boxes"})


def parse_row(value: Mapping[str, Any], *, where: str = "") -> DataRow:
    """The validated row of a JSON object. `where` (file and row number) begins every message.

    Keys with null count as missing. Raises DataError that names where, id, field and rule.
    """
    if not isinstance(value, Mapping):
        raise DataError(f"{_at(where)}a row must be a JSON object, not {type(value).__name__}")
    given = {str(key): part for key, part in value.items() if part is not None}
    name = given.get("id", "")
    if not isinstance(name, (str, int)) or isinstance(name, bool):
        raise DataError(
            f"{_at(where)}field id: must be a string or a whole number, not {brief(name)}"
        )
    kind = _kind(given, str(name), f"{_at(where)}id {str(name)!r}: ")
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise DataError(f"{_at(where)}id {str(name)!r}: {_describe(error)}") from None


def _at(where: str) -> str:
    return f"{where}: " if where else ""


def _kind(given: Mapping[str, Any], name: str, who: str) -> type[DataRow]:
    if "regions" in given:
        return RegionsRow
    source, _, rest = name.partition("-")
    gpt4v = f"{source}-gpt4v"
    kind = gpt4v if rest.partition("-")[0] == "gpt4v" and gpt4v in REGION_ROWS else source
    marked = any(given.get(key) for key in _REGION_KEYS)
    if kind in REGION_ROWS and (marked or "image" in given):
        if rest:
            return REGION_ROWS[kind]
        if marked:
            raise DataError(f"{who}field id: a row of {kind} has an id like {kind}-1")
    if not given.get("conversations") and marked:
        known = ", ".join(REGION_ROWS)
        raise DataError(
            f"{who}field conversations: missing; only rows of a known source have none "
            f"(ids that begin with one of {known}, then -NUMBER)"
        )
    return CustomRow if marked or _mentions_box(given) else ConversationRow


def _mentions_box(given: Mapping[str, Any]) -> bool:
    """Whether a row with an image has `<bboxN>` in its text: its boxes are missing then."""
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


def _describe(error: ValidationError) -> str:
    """The first violated rule in words, and the number of others."""
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
