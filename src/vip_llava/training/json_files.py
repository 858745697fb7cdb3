"""JSON files as this package writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["write_json"]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an indented JSON file; sets become sorted lists and other objects strings."""

    def plain(value: object) -> object:
        return sorted(value) if isinstance(value, set | frozenset) else str(value)

    path.write_text(json.dumps(content, indent=2, default=plain) + "\n", encoding="utf-8")
