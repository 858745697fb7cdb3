"""Reading the bytes of a file from paths, bytes and `data:` URLs."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from vip_llava.errors import ImageError
from vip_llava.images.sources import read_source

# Its base64 uses both characters in which the alphabets differ, and padding.
DATA = b"\xfb\xff\xbe image!"
PLAIN = base64.b64encode(DATA).decode()
LIMIT = 1000


@pytest.mark.parametrize(
    "address",
    [
        f"data:image/png;base64,{PLAIN}",
        f"  DATA:image/png;charset=utf-8;BASE64,{PLAIN}\n",
        f"data:text/html;base64,{PLAIN}",
        f"data:;base64,{PLAIN}",
        f"data:image/png;base64,{PLAIN.rstrip('=')}",
        f"data:image/png;base64,{PLAIN}====",
        "data:image/png;base64," + "\r\n ".join(PLAIN),
        "data:image/png;base64," + base64.urlsafe_b64encode(DATA).decode(),
        "data:image/png;base64,"
        + PLAIN.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
        "data:image/png," + "".join(f"%{byte:02x}" for byte in DATA),
    ],
)
def test_data_urls(address: str) -> None:
    assert read_source(address, LIMIT) == DATA


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("data:image/png;base64", "comma"),
        ("data:", "comma"),
        ("data:image/png;base64,", "0 bytes"),
        ("data:image/png;base64,====", "0 bytes"),
        ("data:image/png;base64,AAAAA", "truncated"),
        ("data:image/png;base64,AA!A", "not base64"),
        ("data:image/png;base64,AA=A", "not base64"),
        ("data:image/png;base64,A\u00e4AA", "not base64"),
        ("data:image/png;base64," + "A" * 1400, "max_bytes"),
        ("data:image/png," + "A" * 1001, "max_bytes"),
        ("data:" + "x" * 5000 + ";base64,AAAA", "comma"),
    ],
)
def test_broken_data_urls(address: str, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        read_source(address, LIMIT)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "address",
    [
        "http://user:secret@example.com/a.png",
        "https://example.com/secret.png",
        " HTTPS://example.com/secret.png",
        "ftp://example.com/secret.png",
        "gopher://secret",
        "file:///secret.png",
    ],
)
def test_web_addresses_are_neither_fetched_nor_shown(address: str) -> None:
    with pytest.raises(ImageError, match="not fetched") as caught:
        read_source(address, LIMIT)
    assert "secret" not in str(caught.value)


def test_paths(tmp_path: Path) -> None:
    path = tmp_path / "a b.png"
    path.write_bytes(DATA)
    assert read_source(path, LIMIT) == read_source(str(path), LIMIT) == DATA
    assert read_source(path, len(DATA)) == DATA
    with pytest.raises(ImageError, match="at most 5 are read"):
        read_source(path, 5)
    with pytest.raises(ImageError, match="is a folder"):
        read_source(tmp_path, LIMIT)
    with pytest.raises(ImageError, match=r"image file .* does not exist"):
        read_source(tmp_path / "b.png", LIMIT)
    empty = tmp_path / "empty.png"
    empty.touch()
    with pytest.raises(ImageError, match="0 bytes"):
        read_source(empty, LIMIT)


@pytest.mark.parametrize("source", ["", "a\0b.png", "\udcff.png", PLAIN * 2000])
def test_texts_that_are_not_paths(source: str) -> None:
    with pytest.raises(ImageError) as caught:
        read_source(source, LIMIT)
    assert len(str(caught.value)) < 500


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in its folders")
def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    with pytest.raises(ImageError, match="not a regular file"):
        read_source(pipe, LIMIT)
