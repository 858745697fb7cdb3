"""Damaged files give an image or an `ImageError` within a time limit."""

from __future__ import annotations

import time

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vip_llava.errors import ImageError
from vip_llava.images import open_image
from vip_llava.images.sources import read_source

NAMES = [
    "jpeg",
    "progressive",
    "cmyk",
    "png",
    "palette",
    "rgba",
    "webp",
    "lossless",
    "bmp",
    "gif",
    "tiff",
    "lzw",
]
SECONDS = 5.0
fuzz = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

share = st.floats(0, 1, allow_nan=False, exclude_max=True)
# The header is where lies do harm: half of the places are among the first bytes.
place = st.one_of(share, share.map(lambda value: value * 0.05))
edits = st.lists(st.tuples(place, st.binary(min_size=1, max_size=8)), max_size=6)


def survives(data: bytes) -> None:
    started = time.perf_counter()
    try:
        image = open_image(data, max_pixels=4_000_000)
    except ImageError as error:
        assert str(error)
    else:
        assert image.mode == "RGB"
        assert 0 < image.width * image.height <= 4_000_000
    assert time.perf_counter() - started < SECONDS


@fuzz
@given(name=st.sampled_from(NAMES), changes=edits, cut=st.one_of(st.just(1.0), share))
def test_mutated_and_truncated_files(
    files: dict[str, bytes], name: str, changes: list[tuple[float, bytes]], cut: float
) -> None:
    data = bytearray(files[name])
    for where, content in changes:
        position = int(where * len(data))
        data[position : position + len(content)] = content
    survives(bytes(data[: int(cut * len(data))]))


@fuzz
@given(
    name=st.sampled_from(NAMES),
    other=st.sampled_from(NAMES),
    begin=share,
    length=st.integers(0, 200),
    at=share,
)
def test_spliced_files(
    files: dict[str, bytes], name: str, other: str, begin: float, length: int, at: float
) -> None:
    start = int(begin * len(files[other]))
    position = int(at * len(files[name]))
    piece = files[other][start : start + length]
    survives(files[name][:position] + piece + files[name][position:])


@fuzz
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    survives(data)


@fuzz
@given(
    head=st.sampled_from(["data:", "data:image/png;base64,", "data:image/png,", "data:;base64,%"]),
    text=st.text(max_size=80),
)
def test_any_data_url(head: str, text: str) -> None:
    try:
        assert read_source(head + text, 1000)
    except ImageError as error:
        assert str(error)


@fuzz
@given(st.text(max_size=60))
def test_any_text(text: str) -> None:
    try:
        open_image(text)
    except ImageError as error:
        assert str(error)
