"""CIDEr-D (Vedantam et al., CVPR 2015): similarity of a caption to references, rare words most.

As in the published evaluation of COCO captions: n-grams of one to four words, weighted by tf-idf
over the references of all images, clipped counts, a Gaussian penalty on length (sigma 6), times
ten.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from vip_llava.evaluation.metrics.tokenizer import tokenize

__all__ = ["cider"]

_N, _SIGMA, _FACTOR = 4, 6.0, 10.0
NGrams = Counter[tuple[str, ...]]
Vector = tuple[list[dict[tuple[str, ...], float]], list[float], int]
"""tf-idf weights and norms for each length of n-gram, and the number of bigrams."""


def cider(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """The score of each answer, 0..10, against one or more references; their mean is CIDEr-D."""
    counted = [[_ngrams(tokenize(each)) for each in several] for several in references]
    frequency: NGrams = Counter()
    for several in counted:
        frequency.update({gram for grams in several for gram in grams})
    log_images = math.log(len(references)) if references else 0.0
    scores = []
    for answer, several in zip(answers, counted, strict=True):
        said = _vector(_ngrams(tokenize(answer)), frequency, log_images)
        similar = [_similarity(said, _vector(each, frequency, log_images)) for each in several]
        scores.append(_FACTOR * sum(similar) / len(similar))
    return scores


def _ngrams(words: Sequence[str]) -> NGrams:
    return Counter(
        tuple(words[i : i + n]) for n in range(1, _N + 1) for i in range(len(words) - n + 1)
    )


def _vector(grams: NGrams, frequency: NGrams, log_images: float) -> Vector:
    """The reference takes the number of bigrams as the length of a caption."""
    weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(_N)]
    for gram, times in grams.items():
        idf = log_images - math.log(max(1, frequency[gram]))
        weights[len(gram) - 1][gram] = times * idf
    norms = [math.sqrt(sum(w * w for w in each.values())) for each in weights]
    return weights, norms, sum(times for gram, times in grams.items() if len(gram) == 2)


def _similarity(said: Vector, wrote: Vector) -> float:
    penalty = math.exp(-((said[2] - wrote[2]) ** 2) / (2 * _SIGMA**2))
    total = 0.0
    for ours, theirs, norm, other in zip(said[0], wrote[0], said[1], wrote[1], strict=True):
        dot = sum(min(w, theirs.get(gram, 0.0)) * theirs.get(gram, 0.0) for gram, w in ours.items())
        total += (dot / (norm * other) if norm and other else dot) * penalty
    return total / _N
