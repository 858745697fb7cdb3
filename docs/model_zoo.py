"""Generates `docs/model_zoo.md` from `docs/model_zoo.json`: published checkpoints and their scores.

    python docs/model_zoo.py

A measured score in the JSON file needs the run that it comes from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DATA = Path(__file__).with_name("model_zoo.json")
PAGE = DATA.with_suffix(".md")

_HEAD = """# Model zoo

`--model NAME` opens each of these published checkpoints; `vip-llava models` lists those on this machine. The scores as data are
in [model_zoo.json](model_zoo.json); `python docs/model_zoo.py` generates this page from it, and a test compares the two.

**Published** scores come from the sources at the end of this page and were not reproduced here. **Ours, measured** is empty
without a run of this project: these checkpoints have not been evaluated here with their real weights on the published data.
The [model card](model_card.md) has the measured scores of the default model. ViP-Bench scores are those of the paper's judge
and prompt.
"""


Checkpoint = Mapping[str, Any]
"""Name, base, kind and stage; `published` and `measured` scores in percent (MME is a sum)."""


def render_page() -> str:
    """The text of the page."""
    data = json.loads(DATA.read_text("utf-8"))
    scored = [each for each in data["models"] if each["published"]]
    parts = [_HEAD, "## Region benchmarks\n", *_table(scored, data["region"], ours=True)]
    parts += ["\n## Image-level benchmarks\n", *_table(scored, data["image"], ours=False)]
    parts += ["\n## Other checkpoints\n", "| checkpoint | language model | what |", "|---|---|---|"]
    parts += [
        f"| {_link(each)} | {each['base']} | {each['stage']} |"
        for each in data["models"]
        if not each["published"]
    ]
    parts.append("\n## Sources\n")
    parts += [f"- {name}: {text}" for name, text in data["sources"].items()]
    return "\n".join([*parts, ""])


def _table(checkpoints: Sequence[Checkpoint], names: Sequence[str], *, ours: bool) -> list[str]:
    """A line for each checkpoint with any of the scores."""
    head = ["checkpoint", "language model", *names, *(["ours, measured"] if ours else [])]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for each in checkpoints:
        published = each["published"]
        if not any(name in published for name in names):
            continue
        cells = [_link(each), each["base"]]
        cells += [f"{published[name]:g}" if name in published else "" for name in names]
        if ours:
            cells.append("; ".join(_measured(name, m) for name, m in each["measured"].items()))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _link(checkpoint: Checkpoint) -> str:
    return f"[{checkpoint['name']}](https://huggingface.co/{checkpoint['name']})"


def _measured(name: str, score: Mapping[str, Any]) -> str:
    return f"{name} {score['value']:g} [{score['low']:g}, {score['high']:g}] ({score['run']})"


if __name__ == "__main__":
    PAGE.write_text(render_page(), encoding="utf-8")
