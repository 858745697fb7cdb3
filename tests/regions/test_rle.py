"""Run-length masks: the codec against pixels, pycocotools, and broken input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vip_llava.errors import RegionError
from vip_llava.regions import Mask, Rle

masks = st.builds(
    lambda h, w, seed, share: np.random.default_rng(seed).random((h, w)) < share,
    st.integers(1, 40), st.integers(1, 40), st.integers(0, 10_000), st.sampled_from([0.03, 0.4, 0.97, 1.0]),
).filter(lambda mask: bool(mask.any()))  # fmt: skip


@given(masks)
def test_pixels_survive_both_spellings(mask: np.ndarray) -> None:
    rle = Rle.from_mask(mask)
    np.testing.assert_array_equal(rle.decode(), mask)
    assert rle.area() == mask.sum()
    plain = {"size": list(mask.shape), "counts": rle.runs().tolist()}
    assert Rle.parse(plain) == Rle.parse(rle.to_json()) == rle


@given(masks)
def test_bounds_and_crop_are_those_of_the_pixels(mask: np.ndarray) -> None:
    rle = Rle.from_mask(mask)
    rows, columns = np.nonzero(mask)
    x1, y1, x2, y2 = rle.bounds()
    assert (x1, y1, x2, y2) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    pixels, left, top = rle.crop()
    assert (left, top) == (x1, y1)
    np.testing.assert_array_equal(pixels, mask[y1:y2, x1:x2])
    wider, left, top = rle.crop(margin=2)
    assert (left, top) == (x1 - 2, y1 - 2)
    np.testing.assert_array_equal(wider, np.pad(pixels, 2))


@given(masks)
def test_cached_runs_are_not_part_of_the_value(mask: np.ndarray) -> None:
    """Equality, hash and repr depend on the text alone."""
    rle = Rle.from_mask(mask)
    bare = Rle(rle.size, rle.counts)
    assert bare == rle and hash(bare) == hash(rle) and repr(bare) == repr(rle)
    np.testing.assert_array_equal(bare.runs(), rle.runs())
    np.testing.assert_array_equal(bare.decode(), mask)
    with pytest.raises(ValueError, match="read-only"):
        bare.runs()[0] = 1


def test_empty_runs_in_a_text_are_ignored() -> None:
    """3 x 3 pixels, runs 1 1 4 0 3: the second foreground run has no length and lies outside the box."""
    rle = Rle((3, 3), "114OO")
    assert rle.runs().tolist() == [1, 1, 7]
    pixels, left, top = rle.crop()
    assert (pixels.tolist(), left, top) == ([[1]], 0, 1)


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # pycocotools' own
@given(masks)
def test_the_text_is_that_of_pycocotools(mask: np.ndarray) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    ours = Rle.from_mask(mask)
    assert ours.counts == theirs["counts"].decode()
    assert Rle.parse(theirs) == ours
    np.testing.assert_array_equal(coco.decode({**ours.to_json()}), mask)


def test_large_runs() -> None:
    mask = np.zeros((3000, 3000), dtype=bool)
    mask[:, 1500:] = True
    assert Rle.from_mask(mask).runs().tolist() == [4_500_000, 4_500_000]


def test_runs_of_length_zero_are_the_same_mask() -> None:
    a = Rle.parse({"size": [2, 3], "counts": [1, 0, 1, 2, 0, 1, 1, 0]})
    b = Rle.parse({"size": [2, 3], "counts": [2, 3, 1]})
    assert a == b
    assert a.decode().T.ravel().tolist() == [False, False, True, True, True, False]
    full = Rle.parse({"size": [2, 2], "counts": [0, 1, 0, 3]})
    assert full.decode().all()


GOOD = {"size": [2, 3], "counts": [2, 3, 1]}


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"counts": [2, 3]}, "add up to 5 pixels, but size 2 x 3 .* has 6"),
        ({"counts": [2, 3, 1, 1]}, "add up to 7"),
        ({"counts": [6]}, "empty"),
        ({"counts": []}, "add up to 0"),
        ({"counts": [2, -1, 5]}, "whole numbers"),
        ({"counts": [2, 3.0, 1]}, "whole numbers"),
        ({"counts": [2, True, 3]}, "whole numbers"),
        ({"counts": [2, float("nan"), 3]}, "whole numbers"),
        ({"counts": 7}, "text or a list"),
        ({"counts": ""}, "add up to 0"),
        ({"counts": "P"}, "cut off"),
        ({"counts": "2 1"}, "outside"),
        ({"counts": "é"}, "outside"),
        ({"counts": "oooooooo0"}, "too large"),
        ({"counts": "O31"}, "negative"),
        ({"size": [2]}, "size must be"),
        ({"size": [0, 3]}, "size must be"),
        ({"size": [2.0, 3]}, "size must be"),
        ({"size": "23"}, "size must be"),
        ({"size": [60_000, 60_000]}, "over the limit"),
        ({"order": "F"}, "unknown key 'order'"),
    ],
)
def test_broken_masks_are_errors_that_name_the_region(change: dict[str, Any], rule: str) -> None:
    with pytest.raises(RegionError, match=rf"region '7' \(mask\): rle: .*{rule}"):
        Mask(rle={**GOOD, **change}, id="7")  # type: ignore[arg-type]


def test_a_missing_key_and_no_mapping() -> None:
    with pytest.raises(RegionError, match="a key is missing"):
        Mask(rle={"size": [2, 3]})  # type: ignore[arg-type]
    with pytest.raises(RegionError, match="not list"):
        Mask(rle=[2, 3, 1])  # type: ignore[arg-type]


@given(st.text(max_size=20), st.integers(1, 9), st.integers(1, 9))
def test_any_text_is_a_mask_or_a_region_error(text: str, height: int, width: int) -> None:
    try:
        rle = Rle.parse({"size": [height, width], "counts": text})
    except RegionError:
        return
    assert rle.decode().shape == (height, width)
    assert rle.decode().any()
