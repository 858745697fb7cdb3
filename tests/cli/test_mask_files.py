"""Mask files: images and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vip_llava.cli.mask_files import outline_from_file, read_json
from vip_llava.errors import ImageError, RegionError
from vip_llava.regions import Mask, draw

SIZE = (12, 8)


def inside() -> np.ndarray:
    mask = np.zeros((8, 12), dtype=bool)
    mask[2:5, 3:9] = True
    mask[6, 0] = True
    return mask


def drawn(outline: dict[str, Any]) -> np.ndarray:
    """Where a Mask with this outline colours a black image."""
    image = draw(Image.new("RGB", SIZE), [Mask(**outline, color="red", alpha=255)])
    return np.asarray(np.asarray(image)[..., 0] == 255)


def write(path: Path, kind: str) -> Path:
    mask = inside()
    if kind == "L":
        image = Image.fromarray(mask.astype(np.uint8))  # 1 is inside, as in label maps
    elif kind == "1":
        image = Image.fromarray(mask)
    elif kind == "I;16":
        image = Image.fromarray(mask.astype(np.uint16) * 256)
    elif kind == "RGB":
        image = Image.fromarray(np.stack([mask * 0, mask * 0, mask * 255], 2).astype(np.uint8))
    elif kind == "RGBA":
        pixels = np.full((8, 12, 4), 77, dtype=np.uint8)
        pixels[..., 3] = mask * 255
        image = Image.fromarray(pixels)
    elif kind == "RGBA opaque":
        pixels = np.repeat(mask[..., None] * 255, 4, axis=2).astype(np.uint8)
        pixels[..., 3] = 255
        image = Image.fromarray(pixels)
    else:
        image = Image.fromarray(mask.astype(np.uint8))
        image.putpalette([9, 9, 9, 200, 0, 0])
        assert image.mode == "P"
    image.save(path)
    return path


@pytest.mark.parametrize("kind", ["L", "1", "I;16", "RGB", "RGBA", "RGBA opaque", "P"])
def test_mask_images_of_all_modes(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "mask.png", kind)
    outline = outline_from_file(path, SIZE, "--mask")
    assert np.array_equal(drawn(outline), inside())


def test_a_mask_that_includes_the_first_pixel(tmp_path: Path) -> None:
    full = np.full((8, 12), 255, dtype=np.uint8)
    full[:, 11] = 0
    Image.fromarray(full).save(tmp_path / "mask.png")
    outline = outline_from_file(tmp_path / "mask.png", SIZE, "--mask")
    assert np.array_equal(drawn(outline), full != 0)


def test_an_empty_mask_is_refused(tmp_path: Path) -> None:
    Image.new("L", SIZE).save(tmp_path / "mask.png")
    with pytest.raises(RegionError, match=r"mask.png: the mask is empty"):
        outline_from_file(tmp_path / "mask.png", SIZE, "--mask")


def test_a_mask_of_another_size_is_refused_with_both_sizes(tmp_path: Path) -> None:
    path = write(tmp_path / "mask.png", "L")
    with pytest.raises(RegionError, match="12x8, the photo 20x20"):
        outline_from_file(path, (20, 20), "--mask")


def test_a_file_that_is_not_an_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (tmp_path / "text.txt").write_text("hello")
    whole = write(tmp_path / "whole.png", "RGB").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    for name in ("mask.png", "text.txt", "cut.png"):
        with pytest.raises(ImageError, match=f"--mask .*{name}: not a mask image"):
            outline_from_file(tmp_path / name, SIZE, "--mask")


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RegionError, match="no such file"):
        outline_from_file(tmp_path / "none.png", SIZE, "--mask")
    with pytest.raises(RegionError, match="no such file"):
        read_json(tmp_path / "none.json", "--regions")


POLYGON = [3, 2, 9, 2, 9, 5, 3, 5]


@pytest.mark.parametrize(
    "content",
    [
        POLYGON,
        [POLYGON],
        {"polygons": [POLYGON]},
        {"segmentation": [POLYGON], "id": 7, "bbox": [0] * 4},
    ],
)
def test_polygons_in_json(tmp_path: Path, content: object) -> None:
    (tmp_path / "mask.json").write_text(json.dumps(content))
    outline = outline_from_file(tmp_path / "mask.json", SIZE, "--mask")
    assert outline == {"polygons": [POLYGON]}


@pytest.mark.parametrize("key", [None, "rle", "segmentation"])
def test_rle_in_json(tmp_path: Path, key: str | None) -> None:
    rle = {"size": [8, 12], "counts": [8, 8, 80]}
    (tmp_path / "mask.json").write_text(json.dumps(rle if key is None else {key: rle}))
    pixels = drawn(outline_from_file(tmp_path / "mask.json", SIZE, "--mask"))
    assert pixels[:, 1].all() and pixels.sum() == 8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("{}", "expected polygons"),
        ('"x"', "expected polygons"),
        ("[" * 10**5, "JSON"),
    ],
)
def test_json_without_an_outline_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "mask.json").write_text(content)
    with pytest.raises(RegionError, match=f"--mask .*mask.json: .*{message}"):
        outline_from_file(tmp_path / "mask.json", SIZE, "--mask")
