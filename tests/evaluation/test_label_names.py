"""Canonical class names, and the validation split of the default model's data."""

from __future__ import annotations

import pytest

from vip_llava.evaluation.coco_annotations import is_validation
from vip_llava.evaluation.label_names import canonical


@pytest.mark.parametrize(
    ("label", "word"),
    [
        ("sofa", "couch"),
        (" TV monitor ", "tv"),
        ("espresso", "cup"),
        ("mug", "cup"),
        ("pickup truck", "truck"),
        ("streetcar", "train"),
        ("mouse", "computer mouse"),
        ("pigeon", "bird"),
        ("hotdog", "hot dog"),
        ("zither", "zither"),
    ],
)
def test_synonyms(label: str, word: str) -> None:
    assert canonical(label) == word
    assert canonical(word) == word


def test_the_validation_split_depends_on_the_id_alone() -> None:
    ids = [f"coco_{number:012d}" for number in range(4000)]
    kept = [name for name in ids if is_validation(name)]
    assert kept == [name for name in reversed(ids) if is_validation(name)][::-1]
    assert 0.06 < len(kept) / len(ids) < 0.10
    # The split of the shipped model's training must never change.
    assert [n for n in range(60) if is_validation(f"photo {n}")] == [14, 17, 19, 42, 56]
