"""Rows of the original's region data: one class for each source, with its fields and rules.

The module does not know how a row becomes a question (`data.tasks`), nor files.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self, TypeAlias

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from vip_llava.data.fields import (
    BOX_PLACEHOLDER,
    Box,
    BoxesRow,
    DataRow,
    MarkedRow,
    Outlines,
    TalkRow,
    Text,
    check_boxes,
    reject,
)
from vip_llava.regions.geometry import brief

__all__ = [
    "REGION_ROWS",
    "Flickr30kRow",
    "PointQaTwiceRow",
    "RefcocogGpt4vRow",
    "RefcocogRow",
    "V7wRow",
    "VcrMetadata",
    "VcrRow",
    "VcrToken",
    "VgRelGpt4vRow",
    "VgRelRow",
]

#: A word, or the numbers (from 0) of objects in the image.
VcrToken: TypeAlias = str | tuple[int, ...]


def _without_score(value: object) -> object:
    """Drop the detector's score, which VCR appends to each box."""
    return value[:4] if isinstance(value, (list, tuple)) and len(value) == 5 else value


ScoredBox: TypeAlias = Annotated[Box, BeforeValidator(_without_score)]


class VcrMetadata(BaseModel):
    """The metadata file of a VCR image: boxes and outlines of its objects. Ignores other keys."""

    model_config = ConfigDict(frozen=True)

    boxes: tuple[ScoredBox, ...]
    segms: tuple[Outlines, ...] = ()


class RefcocogRow(BoxesRow):
    """RefCOCOg: `answer` describes the marked object."""

    kind: ClassVar[str] = "refcocog"
    answer: Text


class RefcocogGpt4vRow(TalkRow):
    """A GPT-4V conversation about a marked object of RefCOCOg."""

    kind: ClassVar[str] = "refcocog-gpt4v"


class VcrRow(MarkedRow):
    """Visual Commonsense Reasoning: a question, four answers, four reasons, as words and objects.

    An object is an index into `class_names`. Boxes [x1, y1, x2, y2] (a fifth number, the score, is
    dropped) and outlines are in the row (`boxes`, `segms`) or in the JSON file `meta_dir`.
    """

    kind: ClassVar[str] = "vcr"
    question: tuple[VcrToken, ...] = Field(min_length=1)
    answer_choices: tuple[tuple[VcrToken, ...], ...] = Field(min_length=4, max_length=4)
    answer_label: int = Field(ge=0, le=3)
    rationale_choices: tuple[tuple[VcrToken, ...], ...] = Field(min_length=4, max_length=4)
    rationale_label: int = Field(ge=0, le=3)
    class_names: tuple[Text, ...]
    meta_dir: Text | None = None
    boxes: tuple[ScoredBox, ...] | None = None
    segms: tuple[Outlines, ...] | None = None

    @field_validator("question", "answer_choices", "rationale_choices", mode="before")
    @classmethod
    def _tokens(cls, value: object, info: Any) -> object:
        nested = info.field_name != "question"
        for sentence in value if nested and isinstance(value, (list, tuple)) else [value]:
            if not isinstance(sentence, (list, tuple)) or not sentence:
                raise ValueError(
                    f"a sentence is a list of words and objects, not {brief(sentence)}"
                )
            for token in sentence:
                if not _is_vcr_token(token):
                    raise ValueError(
                        "a token is a word or a list of numbers of objects, "
                        f"for example [0, 2], not {brief(token)}"
                    )
        return value

    @property
    def named_objects(self) -> tuple[int, ...]:
        """The numbers of the objects that the texts name, sorted, without repeats."""
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
    def _objects_exist(self) -> Self:
        if self.named_objects and self.named_objects[-1] >= len(self.class_names):
            reject(
                "class_names",
                f"the texts name object {self.named_objects[-1]}, but there are "
                f"{len(self.class_names)} classes (objects count from 0)",
            )
        if self.boxes is None:
            if self.meta_dir is None:
                reject(
                    "meta_dir",
                    "missing: name the file with `boxes` and `segms`, or give those keys",
                )
            return self
        if self.named_objects and self.named_objects[-1] >= len(self.boxes):
            reject(
                "boxes",
                f"none for object {self.named_objects[-1]}; there are {len(self.boxes)} (from 0)",
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


class VgRelRow(BoxesRow):
    """Visual Genome relations: `answer` is "subject, relation, object" for the two boxes."""

    kind: ClassVar[str] = "vg_rel"
    answer: Text

    @model_validator(mode="after")
    def _two(self) -> Self:
        if len(self.bboxes) != 2:
            reject("bboxes", f"a relation is between 2 boxes, not {len(self.bboxes)}")
        return self


class VgRelGpt4vRow(TalkRow):
    """A GPT-4V conversation about objects of Visual Genome."""

    kind: ClassVar[str] = "vg_rel-gpt4v"


class Flickr30kRow(MarkedRow):
    """Flickr30k Entities: `grounding` is a caption with `<bboxN>` after each phrase.

    `bbox[N]` are the boxes of phrase N; a phrase without boxes gets no mark.
    """

    kind: ClassVar[str] = "flickr30k"
    bbox: tuple[tuple[Box, ...], ...] = Field(
        validation_alias=AliasChoices("bbox", "bboxes"), serialization_alias="bbox"
    )
    grounding: str

    @model_validator(mode="after")
    def _phrases_exist(self) -> Self:
        if not BOX_PLACEHOLDER.sub("", self.grounding).strip():
            reject("grounding", "the caption has no words")
        if "<bbox>" in self.grounding:
            reject("grounding", "write <bboxN>, from <bbox0>; <bbox> names no phrase")
        check_boxes([self.grounding], len(self.bbox), "grounding")
        return self


class V7wRow(BoxesRow):
    """Visual7W pointing: a question whose `answer` is one of four boxes."""

    kind: ClassVar[str] = "v7w"
    question: Text
    answer: Box

    @model_validator(mode="after")
    def _four(self) -> Self:
        if len(self.bboxes) != 4:
            reject("bboxes", f"the question has 4 options, not {len(self.bboxes)}")
        if self.answer not in self.bboxes:
            reject("answer", f"the answer {list(self.answer)} is none of the boxes")
        return self


class PointQaTwiceRow(BoxesRow):
    """PointQA LookTwice: a question about all objects of the same kind as the marked one."""

    kind: ClassVar[str] = "pointQA_twice"
    general_question: Text
    answer: Text

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.bboxes) != 1:
            reject("bboxes", f"the row has one box, the example, not {len(self.bboxes)}")
        return self


#: Kind, which is the prefix of the ids of its rows -> class. A new source adds a line here.
REGION_ROWS: dict[str, type[DataRow]] = {
    each.kind: each
    for each in (
        RefcocogRow,
        RefcocogGpt4vRow,
        VcrRow,
        VgRelRow,
        VgRelGpt4vRow,
        Flickr30kRow,
        V7wRow,
        PointQaTwiceRow,
    )
}
