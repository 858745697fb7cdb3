"""Caption scores equal those of the published evaluation, recorded from its own programs."""

from __future__ import annotations

import shutil
from importlib.util import find_spec

import pytest

from vip_llava.evaluation.metrics.cider import cider
from vip_llava.evaluation.metrics.meteor import java_meteor, nltk_meteor
from vip_llava.evaluation.metrics.tokenizer import tokenize

# Answer, its words, CIDEr-D, METEOR 1.5: recorded from pycocoevalcap 1.2 (PTBTokenizer, Cider, Meteor).
RECORDED = [
    (
        "A man riding a wave on top of a surfboard.",
        "a man riding a wave on top of a surfboard",
        0.851071,
        0.24686,
    ),
    (
        "the woman's t-shirt isn't red, it's blue",
        "the woman 's t-shirt is n't red it 's blue",
        0.601037,
        0.329277,
    ),
    (
        "Two dogs can't play at 10:30 a.m. in the U.S.",
        "two dogs ca n't play at 10:30 a.m. in the u.s.",
        0.565992,
        0.18284,
    ),
    (
        "a man in a red-and-white jacket (left side)",
        "a man in a red-and-white jacket -lrb- left side -rrb-",
        1.130627,
        0.4429,
    ),
    (
        "don't know, maybe 3,000 people; the 1980's car!",
        "do n't know maybe 3,000 people the 1980 's car",
        0.331463,
        0.155619,
    ),
    (
        'A couple of kids\' bikes near the "stop" sign...',
        "a couple of kids bikes near the stop sign",
        1.135666,
        0.343952,
    ),
    (
        "the guy who’s wearing glasses & a hat",
        "the guy who 's wearing glasses & a hat",
        1.036717,
        0.268156,
    ),
    ("7-up bottle on the 2nd shelf", "7-up bottle on the 2nd shelf", 1.978239, 0.391825),
    ("white van behind the bus", "white van behind the bus", 2.730855, 0.465163),
    ("girl in pink", "girl in pink", 2.264878, 0.300687),
]
REFERENCES = [
    ["a surfer rides a big wave", "man on a surfboard in the water"],
    ["woman in a blue t-shirt", "the lady with blue shirt"],
    ["two dogs playing", "a pair of dogs play outside"],
    ["man on the left in a red and white jacket"],
    ["an old car in a crowd", "crowd around a car from the 1980s"],
    ["bikes by the sign", "two children's bikes by a stop sign"],
    ["man with glasses and a hat", "guy in hat"],
    ["bottle of 7-up", "a soda bottle on the second shelf"],
    ["a white van behind a bus", "the van"],
    ["the girl wearing pink clothes", "girl in a pink dress"],
]
ANSWERS = [answer for answer, *_ in RECORDED]


def test_words_equal_the_reference() -> None:
    for answer, wanted, *_ in RECORDED:
        assert " ".join(tokenize(answer)) == wanted


def test_cider_equals_the_reference() -> None:
    assert cider(ANSWERS, REFERENCES) == pytest.approx([row[2] for row in RECORDED], abs=1e-6)


def test_cider_of_nothing_and_of_the_reference_itself() -> None:
    same = cider(["a red bus", "two dogs", ""], [["a red bus"], ["two dogs"], ["a cat"]])
    # Two words have no trigrams, so two of the four lengths cannot match.
    assert same == pytest.approx([7.5, 5.0, 0.0])
    assert cider([], []) == []


def test_nltk_meteor_of_the_published_example() -> None:
    """The example of nltk's own documentation and of Lavie and Agarwal's exact matches."""
    said = (
        "It is a guide to action which ensures that the military always obeys the commands "
        "of the party"
    )
    told = [
        "It is a guide to action that ensures that the military will forever heed Party commands",
        "It is the guiding principle which guarantees the military forces always being under the "
        "command of the Party",
        "It is the practical guide for the army always to heed the directions of the party",
    ]
    found = nltk_meteor([said], [told])
    if "no WordNet" in found.method:
        assert found.values == [pytest.approx(0.6944, abs=5e-5)]
    assert nltk_meteor(["non matching"], [["this is a cat"]]).values == [0.0]
    [all_of_it] = nltk_meteor(["this is a small cat"], [["this is a small cat"]]).values
    assert all_of_it == pytest.approx(1 - 0.5 / 5**3)  # one chunk of five words
    assert "not comparable" in found.method


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("pycocoevalcap") is None or shutil.which("java") is None,
    reason="METEOR 1.5 needs pycocoevalcap and Java",
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_meteor_1_5_is_the_program_itself() -> None:
    found = java_meteor(ANSWERS, REFERENCES).values
    assert found == pytest.approx([row[3] for row in RECORDED], abs=1e-6)
