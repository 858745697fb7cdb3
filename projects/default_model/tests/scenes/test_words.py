"""Class names, articles, plurals."""

from __future__ import annotations

import pytest

from default_model.scenes.words import COCO80, plain_noun, plural, with_article
from vip_llava.evaluation.label_names import canonical


def test_there_are_eighty_coco_words_and_they_stay_as_they_are() -> None:
    assert len(set(COCO80)) == 80
    assert [word for word in COCO80 if canonical(word) != word] == []


@pytest.mark.parametrize(
    ("wnid", "label", "word"),
    [
        ("n02099712", "Labrador retriever", "dog"),
        ("n01608432", "kite", "bird"),  # the bird, not the toy
        ("n02412080", "ram", "sheep"),
        ("n03832673", "notebook", "laptop"),
        ("n10148035", "groom", "person"),
        ("n03126707", "crane (machine)", "crane"),
        ("n03954731", "plane", "plane"),  # a carpenter's
        ("n04099969", "rocking chair", "chair"),
    ],
)
def test_fine_classes_have_a_common_noun(wnid: str, label: str, word: str) -> None:
    assert plain_noun(wnid, label) == word


@pytest.mark.parametrize(
    ("label", "article", "many"),
    [
        ("dog", "a dog", "dogs"),
        ("apple", "an apple", "apples"),
        ("person", "a person", "people"),
        ("bench", "a bench", "benches"),
        ("knife", "a knife", "knives"),
        ("bus", "a bus", "buses"),
        ("skis", "skis", "skis"),
        ("wine glass", "a wine glass", "wine glasses"),
        ("teddy bear", "a teddy bear", "teddy bears"),
        ("unicycle", "a unicycle", "unicycles"),
        ("hourglass", "an hourglass", "hourglasses"),
        ("toy", "a toy", "toys"),
        ("puppy", "a puppy", "puppies"),
    ],
)
def test_articles_and_plurals(label: str, article: str, many: str) -> None:
    assert (with_article(label), plural(label)) == (article, many)
