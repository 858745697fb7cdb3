"""The public face is a list that changes on purpose only."""

from __future__ import annotations

import importlib
import inspect

import pytest

import vip_llava

PUBLIC = [
    "Answer",
    "Arrow",
    "Assistant",
    "Box",
    "Chat",
    "Contour",
    "Ellipse",
    "Mask",
    "Point",
    "Region",
    "Scribble",
    "Triangle",
    "VipLlavaError",
    "__version__",
    "draw",
    "load",
    "open_image",
]
ERRORS = [
    "CheckpointError",
    "DataError",
    "DownloadError",
    "ImageError",
    "MissingExtraError",
    "PhraseError",
    "QuantizationError",
    "RegionError",
    "RequestError",
    "ServingError",
    "TemplateError",
    "VipLlavaError",
]
ARGUMENTS_OF_LOAD = ["name_or_folder", "dtype", "device", "device_map", "quantization", "base"]
ARGUMENTS_OF_ASK = ["image", "question", "regions", "max_new_tokens", "temperature", "seed"]


def test_the_list_is_frozen() -> None:
    assert sorted(vip_llava.__all__) == PUBLIC
    assert dir(vip_llava) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_resolves(name: str) -> None:
    value = getattr(vip_llava, name)
    if name != "__version__":
        assert value.__name__ == name
        assert inspect.getdoc(value), f"{name} has no docstring"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Boxx'"):
        vip_llava.Boxx  # noqa: B018


def test_the_error_tree_is_frozen() -> None:
    errors = importlib.import_module("vip_llava.errors")
    assert sorted(errors.__all__) == ERRORS
    for name in ERRORS:
        error = getattr(errors, name)
        assert issubclass(error, vip_llava.VipLlavaError)
        assert inspect.getdoc(error)


def test_the_two_main_signatures_keep_their_names() -> None:
    load = inspect.signature(vip_llava.load).parameters
    assert [name for name in ARGUMENTS_OF_LOAD if name not in load] == []
    ask = inspect.signature(vip_llava.Assistant.ask).parameters
    assert list(ask)[1:4] == ARGUMENTS_OF_ASK[:3]
    assert "sampling" in ask or [name for name in ARGUMENTS_OF_ASK if name not in ask] == []
