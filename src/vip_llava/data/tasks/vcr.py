"""Visual Commonsense Reasoning: a question about marked people and objects, an answer, and a reason.

In training, answer and reason are requested openly or with four options, in many wordings. The styles
"vcr_qa" and "vcr_qar" are those of the evaluations: points, four options, a letter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from vip_llava.data.fields import Box, Outlines
from vip_llava.data.region_rows import VcrMetadata, VcrRow, VcrToken
from vip_llava.data.tasks import vcr_words as words
from vip_llava.data.tasks.common import (
    ArrangedRow,
    TaskContext,
    alternate,
    join_phrases,
    mark,
    options,
)
from vip_llava.errors import DataError
from vip_llava.regions.sampling import find_policy

__all__ = ["arrange"]

Sentence = Sequence[VcrToken]
_CLOSING = re.compile(r"[,.;:!?%)]+|['’][a-z]+|n['’]t")


def arrange(row: VcrRow, context: TaskContext) -> ArrangedRow:
    """Marks only the objects that the final text names."""
    if context.style is not None:
        return _arrange_evaluation(row, context)
    choose_answer, choose_reason = context.coin(), context.coin()  # whether options are given
    answers = row.answer_choices if choose_answer else [row.answer_choices[row.answer_label]]
    reasons = (
        row.rationale_choices if choose_reason else [row.rationale_choices[row.rationale_label]]
    )
    writer = _Writer(row, context, [row.question, *answers, *reasons])
    question = f"{context.rng.choice(words.INTRODUCTIONS)} {writer.write(row.question)}"
    why = context.rng.choice(words.WHY)
    answer_texts = [writer.write(each) for each in answers]
    reason_texts = [writer.write(each) for each in reasons]
    return ArrangedRow(
        writer.marks.regions,
        alternate(
            f"{question} {words.choices(answer_texts, context.rng)}" if choose_answer else question,
            words.chosen(row.answer_label, answer_texts, context.rng)
            if choose_answer
            else answer_texts[0],
            f"{why} {words.choices(reason_texts, context.rng)}" if choose_reason else why,
            words.chosen(row.rationale_label, reason_texts, context.rng)
            if choose_reason
            else reason_texts[0],
        ),
    )


def _arrange_evaluation(row: VcrRow, context: TaskContext) -> ArrangedRow:
    """One question, answered with the letter of the answer ("vcr_qa") or reason ("vcr_qar")."""
    answer = row.answer_choices[row.answer_label]
    if context.style == "vcr_qa":
        writer = _Writer(row, context, [row.question, *row.answer_choices], plain=True)
        question, choices, label = writer.write(row.question), row.answer_choices, row.answer_label
    else:
        sentences = [row.question, answer, *row.rationale_choices]
        writer = _Writer(row, context, sentences, plain=True)
        question = words.WHICH_REASON.format(writer.write(row.question), writer.write(answer))
        choices, label = row.rationale_choices, row.rationale_label
    texts = [writer.write(each) for each in choices]
    turns = alternate(f"{question}\n{options(texts)}", "ABCD"[label])
    return ArrangedRow(writer.marks.regions, turns)


class _Writer:
    """Marks the objects of some sentences and writes the sentences.

    plain: names objects by their class; otherwise by it or by "object" or "instance".
    """

    def __init__(
        self,
        row: VcrRow,
        context: TaskContext,
        sentences: Sequence[Sentence],
        *,
        plain: bool = False,
    ) -> None:
        self.row, self.context, self.plain = row, context, plain
        tokens = (token for sentence in sentences for token in sentence)
        objects = sorted({n for token in tokens if not isinstance(token, str) for n in token})
        self.groups = {number: group for group, number in enumerate(objects)}
        groups = [[each] for each in _located(row, objects, context.images)]
        policy = find_policy(row.kind, context.style)
        self.marks = mark(context, policy, groups, field="boxes", numbers=objects)

    def write(self, sentence: Sentence) -> str:
        """The sentence as text. Punctuation and endings ("'s") are attached to the preceding word."""
        text = ""
        for token in sentence:
            if isinstance(token, str):
                attached, word = _CLOSING.fullmatch(token) is not None, token
            else:
                attached, word = False, join_phrases([self._name(number) for number in token])
            text += word if attached or not text else f" {word}"
        if not isinstance(sentence[0], str):
            text = text[0].upper() + text[1:]
        return text

    def _name(self, number: int) -> str:
        """ "the person within the red rectangle"; half of the mentions omit the second "the"."""
        noun = self.row.class_names[number]
        if not self.plain and self.context.coin():
            noun = self.context.rng.choice(("object", "instance"))
        return f"the {noun} {self.marks.phrase(self.groups[number], article=self.context.coin())}"


def _located(
    row: VcrRow, numbers: Sequence[int], images: Path | None
) -> list[tuple[Box, Outlines]]:
    """Box and outlines of some objects, from the row or its metadata file."""
    if not numbers:
        return []
    if row.boxes is not None:
        boxes, outlines = row.boxes, row.segms
    else:
        metadata = _read_metadata(row.meta_dir or "", images)
        boxes, outlines = metadata.boxes, metadata.segms
    if numbers[-1] >= len(boxes):
        raise DataError(
            f"field boxes: object {numbers[-1]} has none; there are {len(boxes)} (from 0)"
        )
    outlines = outlines or ()
    return [(boxes[n], outlines[n] if n < len(outlines) else None) for n in numbers]


def _read_metadata(name: str, images: Path | None) -> VcrMetadata:
    """The file that `meta_dir` names, below the folder of images (also called "./dataset")."""
    if images is None:
        raise DataError(f"field meta_dir: reading {name!r} needs the folder of images")
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or parts[0] == "/" or ".." in parts or ":" in parts[0]:
        raise DataError(f"field meta_dir: {name!r} must be inside the folder of images")
    choices = [images.joinpath(*parts)]
    if parts[0] == "dataset":
        choices.insert(0, images.joinpath(*parts[1:]))
    path = next((each for each in choices if each.is_file()), None)
    if path is None:
        raise DataError(f"field meta_dir: the file {choices[0]} does not exist")
    try:
        return VcrMetadata.model_validate(json.loads(path.read_bytes()))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        step = ".".join(map(str, problem["loc"]))
        raise DataError(f"field meta_dir: {path}: {step}: {problem['msg']}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"field meta_dir: {path} can't be read: {error}") from None
