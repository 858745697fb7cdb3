"""Published checkpoints and their published scores as data, beside what was measured with this program.

`zoo.json` is the data, `docs/model_zoo.md` is made of it by `page`. A measured score is entered only with
the run that it comes from. It opens no model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Checkpoint", "Measured", "checkpoints", "page"]

_DATA = Path(__file__).with_name("zoo.json")

_HEAD = """# Model zoo

Published checkpoints that `--model NAME` opens (`vip-llava models` lists what is on this machine), with their published scores
as data: `vip_llava.evaluation.zoo.checkpoints()`. This page is made from `src/vip_llava/evaluation/zoo.json` and a test holds that
it is the same.

**Published** figures were taken from the source named below; they were not checked here. **Ours, measured** is empty where no
run of this program stands behind it: these checkpoints have not been run with their real weights on the published data here. The
default model is measured in its own [card](model_card.md). ViP-Bench figures are those of the paper's judge and prompt.
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """A score that this program measured: in percent with its interval, and the run it comes from."""

    value: float
    low: float
    high: float
    run: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One published checkpoint. Scores are as published: percent, but MME, which is a sum."""

    name: str
    base: str
    kind: str
    stage: str
    published: Mapping[str, float]
    source: str
    measured: Mapping[str, Measured]


def checkpoints() -> list[Checkpoint]:
    """All checkpoints, those with published scores first."""
    found = []
    for value in json.loads(_DATA.read_text("utf-8"))["models"]:
        measured = {name: Measured(**each) for name, each in value["measured"].items()}
        found.append(Checkpoint(**{**value, "measured": measured}))
    return found


def page() -> str:
    """The text of `docs/model_zoo.md`."""
    data = json.loads(_DATA.read_text("utf-8"))
    found = checkpoints()
    scored = [each for each in found if each.published]
    parts = [_HEAD, "## Region benchmarks\n", *_table(scored, data["region"], ours=True)]
    parts += ["\n## Image-level benchmarks\n", *_table(scored, data["image"], ours=False)]
    parts += ["\n## Other checkpoints\n", "| checkpoint | language model | what |", "|---|---|---|"]
    parts += [f"| {_link(c)} | {c.base} | {c.stage} |" for c in found if not c.published]
    parts.append("\n## Sources\n")
    parts += [f"- {name}: {text}" for name, text in data["sources"].items()]
    return "\n".join([*parts, ""])


def _table(found: Sequence[Checkpoint], names: Sequence[str], *, ours: bool) -> list[str]:
    """A line for each checkpoint that has any of the scores."""
    kept = [each for each in found if any(name in each.published for name in names)]
    head = ["checkpoint", "language model", *names, *(["ours, measured"] if ours else [])]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for each in kept:
        cells = [_link(each), each.base]
        cells += [f"{each.published[n]:g}" if n in each.published else "" for n in names]
        if ours:
            cells.append("; ".join(_told(name, m) for name, m in each.measured.items()))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _link(checkpoint: Checkpoint) -> str:
    return f"[{checkpoint.name}](https://huggingface.co/{checkpoint.name})"


def _told(name: str, measured: Measured) -> str:
    return f"{name} {measured.value:g} [{measured.low:g}, {measured.high:g}] ({measured.run})"
