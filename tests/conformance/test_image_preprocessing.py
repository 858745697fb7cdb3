"""Pixels of the model's input against the recorded ones, for any image and aspect mode."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vip_llava.images import open_image
from vip_llava.prompting.geometry import ImageGeometry, aspect_mode

from .conftest import Tally, recorded_cases, skip_without

pytestmark = pytest.mark.conformance

OPAQUE_8_BIT = {"1", "L", "RGB", "CMYK", "YCbCr"}


@pytest.fixture(scope="module")
def recorded(family: Callable[[str], Path]) -> tuple[Path, dict[str, Any], list[dict[str, Any]]]:
    folder = family("image_preprocessing")
    config = json.loads((folder / "processor.json").read_text(encoding="utf-8"))
    return folder, config, list(recorded_cases(folder / "cases.jsonl"))


def _right_records(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records that say what a right program does: it turns the image into RGB first.

    Those made from the opened image itself differ for modes that pad or resize wrongly; there
    the image's record after conversion says what is right.
    """
    return [
        record
        for record in records
        if "error" not in record
        and (
            record["converted_to_rgb_first"]
            or record["mode"] is None
            or record["pil_mode"] == "RGB"
        )
    ]


def _rgb(folder: Path, record: dict[str, Any]) -> Image.Image:
    with Image.open(folder / record["file"]) as image:
        return image.convert("RGB")


def _differences(geometry: ImageGeometry, image: Image.Image, record: dict[str, Any]) -> list[str]:
    pixels = geometry.pixels(image)
    square = np.ascontiguousarray(np.asarray(geometry.fit(image)).transpose(2, 0, 1))
    rows = np.array(record["grid_index"])
    exact = not record["file"].endswith((".jpg", ".jpeg"))
    found = {
        "shape": list(pixels.shape) == record["shape"],
        # One level of an 8-bit channel is at most 0.0151; a JPEG may decode one step apart.
        "grid": np.allclose(
            pixels[:, rows][:, :, rows], record["grid"], atol=2e-6 if exact else 0.031, rtol=0
        ),
        "mean": abs(float(pixels.mean()) - record["mean"]) < (1e-5 if exact else 0.01),
    }
    if exact:
        found["uint8"] = hashlib.sha256(square.tobytes()).hexdigest() == record["sha256_uint8_chw"]
        little = pixels.astype("<f4").tobytes()
        found["float32"] = hashlib.sha256(little).hexdigest() == record["sha256_float32"]
    return [name for name, same in found.items() if not same]


def test_pixels_are_the_recorded_ones(
    recorded: tuple[Path, dict[str, Any], list[dict[str, Any]]], tally: Tally
) -> None:
    folder, config, records = recorded
    right = _right_records(records)
    skip_without(len(right), "comparable image")
    for record in records:
        kind = "compared" if record in right else "not compared, the original converts to RGB late"
        failed = "not compared, the original raised an error"
        tally("image_preprocessing", failed if "error" in record else kind)
    wrong = {}
    for record in right:
        geometry = ImageGeometry.from_config(config, aspect_mode(record["mode"]))
        differences = _differences(geometry, _rgb(folder, record), record)
        if differences:
            wrong[record["id"]] = differences
    assert not wrong


def test_what_the_original_refuses_has_pixels_too(
    recorded: tuple[Path, dict[str, Any], list[dict[str, Any]]],
) -> None:
    folder, config, records = recorded
    for record in (record for record in records if "error" in record):
        geometry = ImageGeometry.from_config(config, aspect_mode(record["mode"]))
        pixels = geometry.pixels(_rgb(folder, record))
        assert pixels.shape == (3, geometry.size, geometry.size), record["id"]
        assert np.isfinite(pixels).all(), record["id"]


def test_the_opener_gives_the_colours_that_pillow_gives(
    recorded: tuple[Path, dict[str, Any], list[dict[str, Any]]],
) -> None:
    """For images without transparency and with 8 bits; the others are better here on purpose."""
    folder, _, records = recorded
    files = {record["file"]: record for record in records if record["pil_mode"] in OPAQUE_8_BIT}
    for file, record in files.items():
        with Image.open(folder / file) as image:
            if image.has_transparency_data or image.getexif().get(0x0112, 1) != 1:
                continue
        opened = open_image(folder / file)
        assert opened.mode == "RGB"
        assert opened.tobytes() == _rgb(folder, record).tobytes(), file


def test_every_input_opens(
    recorded: tuple[Path, dict[str, Any], list[dict[str, Any]]],
) -> None:
    folder, config, records = recorded
    for record in records:
        image = open_image(folder / record["file"])
        assert image.size == tuple(record["size"]) or image.size == tuple(record["size"][::-1])
        geometry = ImageGeometry.from_config(config, aspect_mode(record["mode"]))
        assert geometry.fit(image).size == (geometry.size, geometry.size)
