"""METEOR (Banerjee and Lavie, 2005): words of a caption matched with a reference's, and in what order.

Two ways, and `method` says which, since their values differ. Caption papers use METEOR 1.5, a Java
program with paraphrase tables; where pycocoevalcap and Java are installed it is run as it is. Elsewhere
nltk does it: words match if they are the same, have the same stem, or are synonyms in WordNet, if its
data are there.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from vip_llava.errors import MissingExtraError
from vip_llava.evaluation.metrics.words import words

__all__ = ["JavaMeteor", "Meteor", "NltkMeteor", "meteor"]


class Meteor(Protocol):
    """`each(answers, references)`: 0..1 for every answer, beside one or more references each."""

    name: str
    method: str

    def each(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]: ...


def meteor() -> Meteor:
    """METEOR 1.5 where it can run, else nltk's. Raises MissingExtraError where there is neither."""
    if find_spec("pycocoevalcap") is not None and shutil.which("java") is not None:
        return JavaMeteor()
    return NltkMeteor()


class JavaMeteor:
    """METEOR 1.5 as the published evaluation of COCO captions runs it."""

    name = "METEOR"
    method = "METEOR 1.5 (Java, paraphrases)"

    def each(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """The scores; starts the program and ends it."""
        from pycocoevalcap.meteor.meteor import Meteor as Program

        told = {i: [" ".join(words(r)) for r in several] for i, several in enumerate(references)}
        said = {i: [" ".join(words(answer))] for i, answer in enumerate(answers)}
        program = Program()
        try:
            _, scores = program.compute_score(told, said)
        finally:
            _end(program.meteor_p)
        return [float(score) for score in scores]


def _end(process: Any) -> None:
    """The program waits for more to do until it is told otherwise, also when this one has ended."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        pipe.close()


class _NoThesaurus:
    """WordNet where it is not installed: no word has a synonym."""

    def synsets(self, word: str) -> list[Any]:
        return []


class NltkMeteor:
    """METEOR of 2007 as nltk computes it, the best over the references."""

    name = "METEOR (nltk)"

    def __init__(self) -> None:
        try:
            from nltk.corpus import wordnet
            from nltk.translate.meteor_score import meteor_score
        except ImportError as error:
            raise MissingExtraError("METEOR needs nltk: pip install 'vip-llava[eval]'") from error
        self._score = meteor_score
        self._thesaurus: Any = wordnet
        matched = "same word, stem, WordNet"
        try:
            wordnet.synsets("dog")
        except LookupError:
            self._thesaurus, matched = _NoThesaurus(), "same word, stem, no WordNet"
        self.method = f"METEOR of nltk ({matched}); not comparable with METEOR 1.5"

    def each(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """The scores."""
        return [
            float(self._score([words(r) for r in told], words(said), wordnet=self._thesaurus))
            for said, told in zip(answers, references, strict=True)
        ]
