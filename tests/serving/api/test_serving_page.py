"""The page on serving tells the truth about limits."""

from __future__ import annotations

from pathlib import Path

from vip_llava.serving.settings import Limits

PAGE = Path(__file__).parents[3] / "docs" / "serving.md"


def test_the_page_names_every_limit_with_its_default() -> None:
    text = PAGE.read_text("utf-8")
    for name, field in Limits.model_fields.items():
        assert f"| `{name}` | {field.default:,} | {field.description} |" in text
