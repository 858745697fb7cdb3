"""Recipe files: reading YAML, inheriting from another recipe, overriding single values.

`like: FILE` in a recipe inherits from another one (relative to its own folder) and overrides what
it names itself. `--set a.b=value` overrides one value. It does not know the meaning of any value.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vip_llava.errors import DataError, MissingExtraError
from vip_llava.training.recipes.recipe import Recipe

__all__ = ["is_rows", "load_recipe", "load_values"]

_SECTIONS = frozenset({"like", "model", "data", "train", "optimizer", "batch"})
_MAX_DEPTH = 8


def is_rows(path: Path) -> bool:
    """Whether a file is a recipe of this schema: it says `kind: rows` or has one of its sections.

    Raises DataError if the file can't be read.
    """
    values = _load(path)
    return values.get("kind") == "rows" or bool(_SECTIONS & values.keys())


def load_recipe(path: Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a YAML file, with the files it inherits from, and overrides by dotted keys.

    Strings in `overrides` are parsed as YAML: "3", "true" and "[projector]" mean what they mean in
    the file. Raises DataError with file and keys, MissingExtraError without pyyaml.
    """
    values = load_values(path)
    for key, value in (overrides or {}).items():
        _set(values, key, _parse(value, f"--set {key}") if isinstance(value, str) else value)
    data = values.get("data")
    root = data.get("root") if isinstance(data, Mapping) else None
    if isinstance(root, str) and "$recipe" in root:
        values["data"]["root"] = root.replace("$recipe", str(path.parent))
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_message(each) for each in error.errors(include_url=False))
        raise DataError(f"recipe {path}: {problems}") from error


def load_values(path: Path, depth: int = 0) -> dict[str, Any]:
    """The unchecked values of a file and of the files it inherits from.

    Raises DataError for an unreadable file, or a chain of `like` that is too long or circular.
    """
    values = _load(path)
    parent = values.pop("like", None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise DataError(f"recipe {path}: like must name one file, not {parent!r}")
    if depth == _MAX_DEPTH:
        raise DataError(f"recipe {path}: `like` chains more than {_MAX_DEPTH} files")
    return _merge(load_values(path.parent / parent, depth + 1), values)


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`: sections are merged, all other values replaced."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = _merge(old, value)
        merged[key] = value
    return merged


def _load(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"recipe {path} can't be read: {error}") from error
    values = _parse(text, f"recipe {path}")
    if not isinstance(values, dict):
        raise DataError(f"recipe {path} must contain keys and values, like `epochs: 1`")
    return values


def _parse(text: str, where: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError(
            "recipes are YAML files, which need pyyaml: pip install 'vip-llava[train]'"
        ) from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{where} can't be parsed as YAML: {error}") from error


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    section: Any = values
    *parents, last = key.split(".")
    for name in parents:
        if section.get(name) is None:
            section[name] = {}
        section = section[name]
        if not isinstance(section, dict):
            raise DataError(f"--set {key}: {name} is a value, not a section")
    section[last] = value


def _message(error: Any) -> str:
    key = ".".join(map(str, error["loc"]))
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "no such key"
    return f"{key}: {message}" if key else message
