"""Visual Commonsense Reasoning: a question about marked people and things, an answer, and why.

For training, question and reason are asked freely or with four options, in many wordings. The styles
"vcr_qa" and "vcr_qar" are those of the evaluations: points, four options, a letter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from vip_llava.data.records import VcrRow, VcrToken
from vip_llava.data.sources import VcrPlaces
from vip_llava.data.tasks import vcr_words as words
from vip_llava.data.tasks.common import ArrangedRow, Job, Marks, Thing, listed, mark, options, talk
from vip_llava.errors import DataError
from vip_llava.regions.sampling import find_policy

__all__ = ["arrange"]

Sentence = Sequence[VcrToken]
_CLOSING = re.compile(r"[,.;:!?%)]+|['’][a-z]+|n['’]t")


def arrange(row: VcrRow, job: Job) -> ArrangedRow:
    """Only things that the final text names are marked."""
    if job.style is not None:
        return _letters(row, job)
    asked, argued = job.chance(), job.chance()  # whether options are given
    answers = row.answer_choices if asked else [row.answer_choices[row.answer_label]]
    reasons = row.rationale_choices if argued else [row.rationale_choices[row.rationale_label]]
    speaker = _Speaker(row, job, [row.question, *answers, *reasons])
    question = f"{job.rng.choice(words.INTRODUCTIONS)} {speaker.say(row.question)}"
    why = job.rng.choice(words.WHY)
    told = [speaker.say(each) for each in answers]
    because = [speaker.say(each) for each in reasons]
    return ArrangedRow(
        speaker.marks.regions,
        talk(
            f"{question} {words.choices(told, job.rng)}" if asked else question,
            words.chosen(row.answer_label, told, job.rng) if asked else told[0],
            f"{why} {words.choices(because, job.rng)}" if argued else why,
            words.chosen(row.rationale_label, because, job.rng) if argued else because[0],
        ),
    )


def _letters(row: VcrRow, job: Job) -> ArrangedRow:
    """One question, answered with a letter: which answer ("vcr_qa"), or which reason ("vcr_qar")?"""
    answer = row.answer_choices[row.answer_label]
    if job.style == "vcr_qa":
        speaker = _Speaker(row, job, [row.question, *row.answer_choices], plain=True)
        question, choices, label = speaker.say(row.question), row.answer_choices, row.answer_label
    else:
        said = [row.question, answer, *row.rationale_choices]
        speaker = _Speaker(row, job, said, plain=True)
        question = words.WHICH_REASON.format(speaker.say(row.question), speaker.say(answer))
        choices, label = row.rationale_choices, row.rationale_label
    texts = [speaker.say(each) for each in choices]
    turns = talk(f"{question}\n{options(texts)}", "ABCD"[label])
    return ArrangedRow(speaker.marks.regions, turns)


class _Speaker:
    """Marks the things of some sentences and says the sentences.

    plain: things are called by their class alone; else by it or by "object" or "instance".
    """

    def __init__(
        self, row: VcrRow, job: Job, sentences: Sequence[Sentence], *, plain: bool = False
    ) -> None:
        self.row, self.job, self.plain = row, job, plain
        named = (token for said in sentences for token in said if not isinstance(token, str))
        things = sorted({number for token in named for number in token})
        self.place = {number: place for place, number in enumerate(things)}
        groups = [[thing] for thing in _places(row, things, job.images)]
        rule = find_policy(row.kind, job.style)
        self.marks: Marks = mark(job, rule, groups, field="boxes", numbers=things)

    def say(self, sentence: Sentence) -> str:
        """The sentence; punctuation and endings ("'s") stay with the word in front."""
        text = ""
        for token in sentence:
            glued = isinstance(token, str) and _CLOSING.fullmatch(token) is not None
            said = token if isinstance(token, str) else listed([self._name(n) for n in token])
            text += said if glued or not text else f" {said}"
        if not isinstance(sentence[0], str):
            text = text[0].upper() + text[1:]
        return text

    def _name(self, number: int) -> str:
        """ "the person within the red rectangle"; half of the mentions leave out the second "the"."""
        noun = self.row.class_names[number]
        if not self.plain and self.job.chance():
            noun = self.job.rng.choice(("object", "instance"))
        return f"the {noun} {self.marks.words(self.place[number], article=self.job.chance())}"


def _places(row: VcrRow, numbers: Sequence[int], images: Path | None) -> list[Thing]:
    """Box and outlines of some things, from the row or from the file that it names."""
    if not numbers:
        return []
    if row.boxes is not None:
        boxes, outlines = row.boxes, row.segms
    else:
        read = _read(row.meta_dir or "", images)
        boxes, outlines = read.boxes, read.segms
    if numbers[-1] >= len(boxes):
        raise DataError(
            f"field boxes: thing {numbers[-1]} has none; there are {len(boxes)} (from 0)"
        )
    outlines = outlines or ()
    return [(boxes[n], outlines[n] if n < len(outlines) else None) for n in numbers]


def _read(name: str, images: Path | None) -> VcrPlaces:
    """The file `meta_dir` names, below the folder of images ("./dataset" stands for it)."""
    if images is None:
        raise DataError(f"field meta_dir: {name!r} lies in the folder of images; name that folder")
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or parts[0] == "/" or ".." in parts or ":" in parts[0]:
        raise DataError(f"field meta_dir: {name!r} must lie in the folder of images")
    choices = [images.joinpath(*parts)]
    if parts[0] == "dataset":
        choices.insert(0, images.joinpath(*parts[1:]))
    path = next((each for each in choices if each.is_file()), None)
    if path is None:
        raise DataError(f"field meta_dir: there is no file {choices[0]}")
    try:
        return VcrPlaces.model_validate(json.loads(path.read_bytes()))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        step = ".".join(map(str, problem["loc"]))
        raise DataError(f"field meta_dir: {path}: {step}: {problem['msg']}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"field meta_dir: {path} can't be read: {error}") from None
