"""METEOR (Banerjee and Lavie, 2005): matched words of a caption and a reference, and their order.

There are two implementations with different values, so each has a `method` that says which it is.
Papers on captions use METEOR 1.5, a Java program with paraphrase tables; it runs if pycocoevalcap
and Java are installed. Otherwise nltk computes METEOR: words match if they are the same, have the
same stem, or are synonyms in WordNet, if its data are installed.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from vip_llava.errors import MissingExtraError
from vip_llava.evaluation.metrics.tokenizer import tokenize

__all__ = ["JavaMeteor", "Meteor", "NltkMeteor", "find_meteor"]


class Meteor(Protocol):
    """`score_each` gives 0..1 for each answer, against one or more references."""

    name: str
    method: str

    def score_each(
        self, answers: Sequence[str], references: Sequence[Sequence[str]]
    ) -> list[float]: ...


def find_meteor() -> Meteor:
    """METEOR 1.5 if it can run, else nltk's. Raises MissingExtraError if neither is installed."""
    if find_spec("pycocoevalcap") is not None and shutil.which("java") is not None:
        return JavaMeteor()
    return NltkMeteor()


class JavaMeteor:
    """METEOR 1.5, run as the published evaluation of COCO captions runs it."""

    name = "METEOR"
    method = "METEOR 1.5 (Java, paraphrases)"

    def score_each(
        self, answers: Sequence[str], references: Sequence[Sequence[str]]
    ) -> list[float]:
        """Starts the program, and ends it when it has scored all answers."""
        from pycocoevalcap.meteor.meteor import Meteor as Program

        wrote = {
            i: [" ".join(tokenize(r)) for r in several] for i, several in enumerate(references)
        }
        said = {i: [" ".join(tokenize(answer))] for i, answer in enumerate(answers)}
        program = Program()
        try:
            _, scores = program.compute_score(wrote, said)
        finally:
            # It keeps reading from its pipe, even after this process has ended.
            process = program.meteor_p
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                pipe.close()
        return [float(score) for score in scores]


class _NoWordNet:
    """Stands for WordNet if it is not installed: no word has synonyms."""

    def synsets(self, word: str) -> list[Any]:
        return []


class NltkMeteor:
    """METEOR of 2007 as nltk computes it; the best of the references counts."""

    name = "METEOR (nltk)"

    def __init__(self) -> None:
        try:
            from nltk.corpus import wordnet
            from nltk.translate.meteor_score import meteor_score
        except ImportError as error:
            raise MissingExtraError("METEOR needs nltk: pip install 'vip-llava[eval]'") from error
        self._score = meteor_score
        self._wordnet: Any = wordnet
        matched = "same word, stem, WordNet"
        try:
            wordnet.synsets("dog")
        except LookupError:
            self._wordnet, matched = _NoWordNet(), "same word, stem, no WordNet"
        self.method = f"METEOR of nltk ({matched}); not comparable with METEOR 1.5"

    def score_each(
        self, answers: Sequence[str], references: Sequence[Sequence[str]]
    ) -> list[float]:
        """The score of each answer."""
        return [
            float(self._score([tokenize(r) for r in wrote], tokenize(said), wordnet=self._wordnet))
            for said, wrote in zip(answers, references, strict=True)
        ]
