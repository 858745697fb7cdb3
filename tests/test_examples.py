"""The example programs run, and the image of the README is what they make today."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PHOTO = ROOT / "examples" / "photos" / "coffee.jpg"


def test_the_image_of_the_eight_shapes_is_up_to_date(tmp_path: Path) -> None:
    program, target = ROOT / "examples" / "eight_shapes.py", tmp_path / "shapes.jpg"
    subprocess.run([sys.executable, str(program), str(PHOTO), str(target)], check=True)
    with Image.open(target) as made, Image.open(ROOT / "docs/images/shapes.jpg") as shown:
        assert made.size == shown.size
        difference = np.asarray(made, np.float32) - np.asarray(shown, np.float32)
    # another JPEG library or font version may differ by a little, another drawing by more
    assert float(np.abs(difference).mean()) < 1.0


def test_photos_name_their_licence() -> None:
    listed = (PHOTO.parent / "README.md").read_text("utf-8")
    photos = [path for path in PHOTO.parent.iterdir() if path.suffix != ".md"]
    assert photos
    for photo in photos:
        assert f"`{photo.name}`" in listed, f"{photo.name} has no line in examples/photos/README.md"


def test_the_example_rows_are_of_every_form_and_usable() -> None:
    from vip_llava.data.check import check
    from vip_llava.data.reading import RowFile

    rows = RowFile.open(ROOT / "examples" / "rows.jsonl")
    report = check(rows, PHOTO.parent, open_images=True)
    assert report.usable, report.problems
    assert set(report.kinds) == {"conversation", "regions", "custom", "refcocog"}
    assert report.text_only == 1


@pytest.mark.parametrize("photo", sorted(PHOTO.parent.glob("*.jpg")), ids=lambda path: path.name)
def test_photos_carry_no_metadata(photo: Path) -> None:
    """No place, camera or name of a person travels with a bundled photo."""
    with Image.open(photo) as image:
        assert not image.getexif()
