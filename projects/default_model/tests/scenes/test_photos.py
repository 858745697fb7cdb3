"""Readers of labelled photos; errors name file and line."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from default_model.scenes.photos import Photo, read_labelled_photos, read_pack, read_regions
from default_model.scenes.words import COCO80
from vip_llava.errors import DataError


@pytest.fixture
def own(labelled_folder: Path, tmp_path: Path) -> Path:
    """A copy of the made photos that a test may change."""
    return Path(shutil.copytree(labelled_folder, tmp_path / "own"))


def rewrite(folder: Path, number: int, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "regions.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    change(rows[number])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_regions_are_read(labelled_folder: Path) -> None:
    photos = list(read_regions(labelled_folder))
    assert len(photos) == 4
    assert [thing.label for thing in photos[0].objects] == ["cat", "couch", "dog", "person"]
    assert photos[0].objects[0].box == (4.0, 6.0, 30.0, 32.0)
    assert photos[0].exhaustive_for == frozenset(COCO80) and photos[0].is_coco
    assert photos[3].exhaustive_for == {"person"} and not photos[3].is_coco
    assert photos[2].objects[1].polygons == ((56, 4, 92, 4, 92, 28, 56, 28),)
    image = photos[0].open()
    assert (image.mode, image.size) == ("RGB", photos[0].size)
    red, green, _ = image.getpixel((17, 19))
    assert red > 150 > 80 > green


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda row: row.pop("width"), "'width' is missing"),
        (lambda row: row["objects"][0].pop("label"), "'label' is missing"),
        (lambda row: row["objects"][0].update(box=[1, 2, 3]), "values to unpack"),
        (lambda row: row["objects"][0].update(box=[9, 9, 2, 20]), "not left, top, right, bottom"),
        (lambda row: row["objects"][0].update(box=[1, 2, float("nan"), 4]), "not left, top"),
        (lambda row: row["objects"][0].update(label=7), ""),
        (lambda row: row.update(objects=None), ""),
        (lambda row: row.update(image="images/none.jpg"), "none.jpg"),
    ],
)
def test_a_bad_row_is_named(
    own: Path, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    rewrite(own, 2, change)
    with pytest.raises(DataError) as caught:
        list(read_regions(own))
    assert str(caught.value).startswith(f"{own / 'regions.jsonl'}, line 3: ")
    assert reason in str(caught.value)


def test_a_line_that_is_not_json_is_named(own: Path) -> None:
    with (own / "regions.jsonl").open("a", encoding="utf-8") as listing:
        listing.write("{broken\n")
    with pytest.raises(DataError, match=r"regions\.jsonl, line 5: "):
        list(read_regions(own))


def test_a_folder_without_a_listing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"regions\.jsonl does not exist"):
        list(read_regions(tmp_path))
    with pytest.raises(DataError, match=r"labels\.jsonl does not exist"):
        list(read_labelled_photos(tmp_path))
    with pytest.raises(DataError, match=r"none\.npz does not exist"):
        list(read_pack(tmp_path / "none.npz"))


def test_a_damaged_photo_is_named() -> None:
    photo = Photo("photo 7", "made", b"\xff\xd8\xff\xe0 nothing", (4, 4), ())
    with pytest.raises(DataError, match="photo 7 of made"):
        photo.open()


def jpeg(color: tuple[int, int, int], size: tuple[int, int] = (20, 10)) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", size, color).save(held, format="JPEG")
    return held.getvalue()


def write_pack(path: Path, **more: Any) -> Path:
    files = [jpeg((200, 0, 0)), jpeg((0, 200, 0), (8, 30))]
    arrays = {
        "jpeg": np.frombuffer(b"".join(files), np.uint8),
        "offset": np.cumsum([0, *map(len, files)]),
        "label": np.array([1, 0]),
        "box": np.array([[-2, 0, 25, 10], [1, 2, 6, 20]], np.float32),
        "filename": np.array(["a.jpg", "b.jpg"]),
        "name": np.array(["sofa", "golden retriever"]),
        **more,
    }
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def test_packs_are_read(tmp_path: Path) -> None:
    ids = np.array(["n04256520", "n02099601"])
    first, second = read_pack(write_pack(tmp_path / "pack.npz", wnid=ids))
    assert (first.id, first.source, first.size) == ("pack/a.jpg", "pack", (20, 10))
    assert first.objects[0].label == "dog" and first.objects[0].box == (0.0, 0.0, 20.0, 10.0)
    assert second.objects[0].label == "couch" and second.open().size == (8, 30)
    first, _ = read_pack(write_pack(tmp_path / "plain.npz"))
    assert first.objects[0].label == "golden retriever"


def test_a_bad_pack_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pack\.npz lacks the arrays \['box'\]"):
        list(read_pack(write_pack(tmp_path / "pack.npz", box=None)))
    broken = write_pack(tmp_path / "broken.npz", offset=np.array([0, 5, 90]))
    with pytest.raises(DataError, match=r"broken\.npz, photo 0 \(a\.jpg\)"):
        list(read_pack(broken))
    (tmp_path / "text.npz").write_text("no pack")
    with pytest.raises(DataError, match=r"text\.npz can't be read"):
        list(read_pack(tmp_path / "text.npz"))


def test_a_pack_can_hold_no_code(tmp_path: Path) -> None:
    path = write_pack(tmp_path / "pack.npz", name=np.array([{"a": 1}, None], dtype=object))
    with pytest.raises(DataError, match="file of plain arrays"):
        list(read_pack(path))


def test_whole_labelled_photos(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(jpeg((1, 2, 3)))
    row = {"image": "samples/a.jpg", "wnid": "n02123045", "label": "tabby", "width": 20}
    (folder / "labels.jsonl").write_text(json.dumps({**row, "height": 10}) + "\n")
    [photo] = read_labelled_photos(folder)
    assert photo.objects[0].label == "cat" and photo.objects[0].box == (0.0, 0.0, 20.0, 10.0)
    (folder / "labels.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"labels\.jsonl, line 1: 'height' is missing"):
        list(read_labelled_photos(folder))
