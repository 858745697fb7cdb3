"""METEOR (Banerjee and Lavie, 2005): matched words of a caption and a reference, and their order.

There are two implementations with different values, so each result says which it is. Papers on
captions use METEOR 1.5, a Java program with paraphrase tables; it runs if pycocoevalcap and Java
are installed. Otherwise nltk computes METEOR: words match if they are the same, have the same stem,
or are synonyms in WordNet, if its data are installed.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from vip_llava.errors import MissingExtraError
from vip_llava.evaluation.metrics.tokenizer import tokenize

__all__ = ["MeteorScores", "java_meteor", "meteor", "nltk_meteor"]


@dataclass(frozen=True, slots=True)
class MeteorScores:
    """A score 0..1 for each answer; name and method: the implementation."""

    name: str
    method: str
    values: list[float]


def meteor(answers: Sequence[str], references: Sequence[Sequence[str]]) -> MeteorScores:
    """METEOR 1.5 if it can run, else nltk's; with one or more references for each answer.

    Raises MissingExtraError if neither is installed.
    """
    if find_spec("pycocoevalcap") is not None and shutil.which("java") is not None:
        return java_meteor(answers, references)
    return nltk_meteor(answers, references)


def java_meteor(answers: Sequence[str], references: Sequence[Sequence[str]]) -> MeteorScores:
    """METEOR 1.5, run as the published evaluation of COCO captions runs it."""
    from pycocoevalcap.meteor.meteor import Meteor

    wrote = {i: [" ".join(tokenize(r)) for r in several] for i, several in enumerate(references)}
    said = {i: [" ".join(tokenize(answer))] for i, answer in enumerate(answers)}
    program = Meteor()
    try:
        _, scores = program.compute_score(wrote, said)
    finally:
        # It keeps reading from its pipe, even after this process has ended.
        process = program.meteor_p
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()
    return MeteorScores("METEOR", "METEOR 1.5 (Java, paraphrases)", [float(s) for s in scores])


class _NoWordNet:
    """Stands for WordNet if its data are not installed: no word has synonyms."""

    def synsets(self, word: str) -> list[Any]:
        return []


def nltk_meteor(answers: Sequence[str], references: Sequence[Sequence[str]]) -> MeteorScores:
    """METEOR of 2007 as nltk computes it; the best of the references counts."""
    try:
        from nltk.corpus import wordnet
        from nltk.translate.meteor_score import meteor_score
    except ImportError as error:
        raise MissingExtraError("METEOR needs nltk: pip install 'vip-llava[eval]'") from error
    synonyms, matched = wordnet, "same word, stem, WordNet"
    try:
        wordnet.synsets("dog")
    except LookupError:
        synonyms, matched = _NoWordNet(), "same word, stem, no WordNet"
    values = [
        float(meteor_score([tokenize(r) for r in wrote], tokenize(said), wordnet=synonyms))
        for said, wrote in zip(answers, references, strict=True)
    ]
    method = f"METEOR of nltk ({matched}); not comparable with METEOR 1.5"
    return MeteorScores("METEOR (nltk)", method, values)
