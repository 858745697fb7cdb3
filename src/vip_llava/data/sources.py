"""Rows of the original's region data: one class for each source, with its fields and rules.

It deliberately does not know how such a row becomes a question (`data.tasks`), nor files.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    MarkedRow,
    Outlines,
    Row,
    TalkRow,
    Text,
    broken,
    check_boxes,
)
from vip_llava.regions.geometry import brief

__all__ = [
    "SOURCES",
    "Flickr30kRow",
    "PointQaTwiceRow",
    "RefcocogGpt4vRow",
    "RefcocogRow",
    "V7wRow",
    "VcrPlaces",
    "VcrRow",
    "VcrToken",
    "VgRelGpt4vRow",
    "VgRelRow",
]

#: A word, or the numbers (from 0) of things in the image.
VcrToken: TypeAlias = str | tuple[int, ...]


def _without_score(value: object) -> object:
    """VCR has the detector's score behind each box."""
    return value[:4] if isinstance(value, (list, tuple)) and len(value) == 5 else value


ScoredBox: TypeAlias = Annotated[Box, BeforeValidator(_without_score)]


class VcrPlaces(BaseModel):
    """The file beside a VCR image: boxes and outlines of its things. Other keys are left out."""

    model_config = ConfigDict(frozen=True)

    boxes: tuple[ScoredBox, ...]
    segms: tuple[Outlines, ...] = ()


class RefcocogRow(BoxesRow):
    """RefCOCOg: `answer` describes the marked thing."""

    kind: ClassVar[str] = "refcocog"
    answer: Text


class RefcocogGpt4vRow(TalkRow):
    """A GPT-4V conversation about a marked thing of RefCOCOg."""

    kind: ClassVar[str] = "refcocog-gpt4v"


class VcrRow(MarkedRow):
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
    boxes: tuple[ScoredBox, ...] | None = None
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
            broken(
                "class_names",
                f"the texts name thing {self.things[-1]}, but there are {len(self.class_names)} "
                "classes (things count from 0)",
            )
        if self.boxes is None:
            if self.meta_dir is None:
                broken("meta_dir", "missing: the file with `boxes` and `segms`, or those two keys")
            return self
        if self.things and self.things[-1] >= len(self.boxes):
            broken(
                "boxes", f"none for thing {self.things[-1]}; there are {len(self.boxes)} (from 0)"
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
    """Visual Genome relations: `answer` is "subject, relation, object" of the two boxes."""

    kind: ClassVar[str] = "vg_rel"
    answer: Text

    @model_validator(mode="after")
    def _two(self) -> Self:
        if len(self.bboxes) != 2:
            broken("bboxes", f"a relation is between 2 boxes, not {len(self.bboxes)}")
        return self


class VgRelGpt4vRow(TalkRow):
    """A GPT-4V conversation about things of Visual Genome."""

    kind: ClassVar[str] = "vg_rel-gpt4v"


class Flickr30kRow(MarkedRow):
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
            broken("grounding", "the caption has no words")
        if "<bbox>" in self.grounding:
            broken("grounding", "write <bboxN>, from <bbox0>; <bbox> names no phrase")
        check_boxes([self.grounding], len(self.bbox), "grounding")
        return self


class V7wRow(BoxesRow):
    """Visual7W pointing: which of four boxes is the `answer`?"""

    kind: ClassVar[str] = "v7w"
    question: Text
    answer: Box

    @model_validator(mode="after")
    def _four(self) -> Self:
        if len(self.bboxes) != 4:
            broken("bboxes", f"the question has 4 options, not {len(self.bboxes)}")
        if self.answer not in self.bboxes:
            broken("answer", f"the answer {list(self.answer)} is none of the boxes")
        return self


class PointQaTwiceRow(BoxesRow):
    """PointQA LookTwice: a question about all things that are like the marked one."""

    kind: ClassVar[str] = "pointQA_twice"
    general_question: Text
    answer: Text

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.bboxes) != 1:
            broken("bboxes", f"one box shows the example, not {len(self.bboxes)}")
        return self


#: Kind, which begins the ids of its rows -> class.
SOURCES: Mapping[str, type[Row]] = {
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
