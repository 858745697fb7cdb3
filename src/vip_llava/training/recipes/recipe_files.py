"""Recipes in YAML files: reading, building one on another, changing values from the command line.

`like: FILE` in a recipe takes over another one (relative to its own folder) and changes what it
names itself. `--set a.b=value` changes one value. It knows no meaning of any value.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vip_llava.errors import DataError, MissingExtraError
from vip_llava.training.recipes.recipe import Recipe

__all__ = ["is_rows", "read", "read_values"]

#: Keys of which one tells a recipe on rows from the default model's.
_ROWS_KEYS = frozenset({"like", "model", "data", "train", "optimizer", "batch"})
_DEEPEST = 8


def is_rows(path: Path) -> bool:
    """Whether the file is a recipe on rows: it says `kind: rows`, or has one of its sections.

    Raises DataError if the file can't be read.
    """
    values = _load(path)
    return values.get("kind") == "rows" or bool(_ROWS_KEYS & values.keys())


def read(path: Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a YAML file with its `like` chain, and overrides by dotted keys.

    Texts in `overrides` are read as YAML, so "3", "true" and "[projector]" mean what they would in
    the file. Raises DataError that names file and keys, MissingExtraError without pyyaml.
    """
    values = read_values(path)
    for key, value in (overrides or {}).items():
        _put(values, key, _load_text(value, f"--set {key}") if isinstance(value, str) else value)
    root = _at(values, "data", "root")
    if isinstance(root, str) and "$recipe" in root:
        values["data"]["root"] = root.replace("$recipe", str(path.parent))
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(_told(each) for each in error.errors(include_url=False))
        raise DataError(f"recipe {path}: {wrong}") from error


def read_values(path: Path, depth: int = 0) -> dict[str, Any]:
    """The values of a file as they are written, those of its `like` chain below them.

    Raises DataError for a file that can't be read or a chain that does not end.
    """
    values = _load(path)
    parent = values.pop("like", None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise DataError(f"recipe {path}: like names one file, not {parent!r}")
    if depth == _DEEPEST:
        raise DataError(f"recipe {path}: `like` leads on for more than {_DEEPEST} files")
    return merged(read_values(path.parent / parent, depth + 1), values)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` changed by `above`: sections are merged, all other values replaced."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def _load(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"recipe {path} can't be read: {error}") from error
    values = _load_text(text, f"recipe {path}")
    if not isinstance(values, dict):
        raise DataError(f"recipe {path} must hold keys and values, like `epochs: 1`")
    return values


def _load_text(text: str, where: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError(
            "a recipe is a YAML file, which needs pyyaml: pip install 'vip-llava[train]'"
        ) from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{where} can't be read: {error}") from error


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    place: Any = values
    *sections, last = key.split(".")
    for section in sections:
        inner = place.get(section)
        if inner is None:
            inner = place[section] = {}
        if not isinstance(inner, dict):
            raise DataError(f"--set {key}: {section} is a value and has nothing inside")
        place = inner
    place[last] = value


def _at(values: Mapping[str, Any], *keys: str) -> Any:
    place: Any = values
    for key in keys:
        place = place.get(key) if isinstance(place, Mapping) else None
    return place


def _told(error: Any) -> str:
    place = ".".join(map(str, error["loc"]))
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "no such key (Extra inputs are not permitted)"
    return f"{place}: {message}" if place else message
