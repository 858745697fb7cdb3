"""The model card of a run: what was trained, from what, on what, with which numbers and limits.

Text only: it is filled from the recipe and from what the run reported, and says plainly what is not
known. It opens no files and no network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vip_llava.training.recipes.recipe import Recipe

__all__ = ["Outcome", "model_card"]

#: Part of a base's name -> licence that it hands on, as the hub spells it.
_LICENCES = {"vicuna": "llama2", "llava-7b": "llama2", "llava-13b": "llama2"}
_LICENCES |= {"llama-3": "llama3", "phi-3": "mit", "smollm2": "apache-2.0"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to.

    Args:
        result: "model", "adapter" or "projector": what the folder holds.
        learned: how many numbers learned in each part.
        failures: the report of the rows that could not be used.
    """

    result: str
    steps: int
    rows: int
    loss: float | None = None
    learned: Mapping[str, int] = field(default_factory=dict)
    failures: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


def licence_of(name: str) -> str:
    """The licence of a known base, "other" for one that is not known."""
    lowered = name.lower()
    return next((licence for part, licence in _LICENCES.items() if part in lowered), "other")


def model_card(recipe: Recipe, outcome: Outcome, name: str) -> str:
    """The card as Markdown with the hub's header. `name`: what the model is called."""
    sections = (
        _header(recipe, outcome),
        f"# {name}",
        _what(recipe, outcome),
        _use(recipe, outcome, name),
        _data(recipe, outcome),
        _training(recipe, outcome),
        _limits(recipe),
    )
    return "\n\n".join(sections) + "\n"


def _header(recipe: Recipe, outcome: Outcome) -> str:
    base = recipe.model.name
    lines = ["---", "pipeline_tag: image-text-to-text", f"license: {licence_of(base)}"]
    whole = outcome.result == "model"
    lines.append(f"library_name: {'transformers' if whole else 'vip-llava'}")
    if "/" in base and not base.startswith((".", "/", "~", "runs/")):
        lines.append(f"base_model: {base}")
    lines += ["tags:", "- vip-llava", "- visual-prompting"]
    if outcome.result == "adapter":
        lines.append("- lora")
    return "\n".join([*lines, "---"])


def _what(recipe: Recipe, outcome: Outcome) -> str:
    what = {
        "model": "A whole model",
        "adapter": "A LoRA adapter with its projector",
        "projector": "A projector",
    }[outcome.result]
    about = f" ({recipe.about})" if recipe.about else ""
    base = "a small random model" if recipe.model.tiny else f"`{recipe.model.name}`"
    return (
        f"{what}, trained with vip-llava from {base}{about}. A person marks something in an image "
        "(box, ellipse, arrow, point, scribble, triangle, outline, mask) and asks about it in words; "
        "the mark is drawn on the image that the model sees."
    )


def _use(recipe: Recipe, outcome: Outcome, name: str) -> str:
    base = "" if outcome.result == "model" else f', base="{recipe.model.name}"'
    tower = recipe.model.tower if outcome.result != "model" else None
    place = f', vision_tower="{tower}"' if tower else ""
    if outcome.result == "projector":
        return (
            "## Use\n\nA projector alone answers nothing yet: it is the start of stage 2. Name its "
            "folder as `model.projector` of a recipe."
        )
    return (
        "## Use\n\n```python\nfrom vip_llava import Box, load\n\n"
        f'model = load("{name}"{base}{place})\n'
        'answer = model.ask("photo.jpg", "What is <region:1>?", '
        "regions=[Box(100, 80, 260, 300)])\nprint(answer.text)\n```"
    )


def _data(recipe: Recipe, outcome: Outcome) -> str:
    lines = ["## Data", "", f"{outcome.rows:,} rows were read from:", ""]
    lines += [f"- `{name}`" for name in recipe.data.files]
    failed = int(outcome.failures.get("failed", 0))
    lines += ["", f"Rows that could not be used: {failed:,}. None was replaced by another."]
    for reason, count in list(outcome.failures.get("reasons", {}).items())[:5]:
        lines.append(f"- {count:,} x {reason}")
    return "\n".join(lines)


def _training(recipe: Recipe, outcome: Outcome) -> str:
    optimizer, adapter = recipe.optimizer, recipe.train.adapter
    how = ", ".join(recipe.train.parts)
    if adapter is not None:
        bits = f" on a base of {adapter.bits} bits" if adapter.kind == "qlora" else ""
        how += f"; LoRA on the language model, rank {adapter.rank}, alpha {adapter.alpha:g}{bits}"
    rows = [
        ("what learned", how),
        ("steps", f"{outcome.steps:,}"),
        ("rows a step", f"{recipe.batch.size}"),
        ("rate", f"{optimizer.lr:g}, {optimizer.schedule}, {optimizer.warmup_ratio:.0%} warm-up"),
        ("weight decay", f"{optimizer.weight_decay:g}"),
        ("longest row", f"{recipe.data.max_length} tokens"),
        ("computed in", recipe.precision),
        ("seed", f"{recipe.seed}"),
    ]
    if optimizer.projector_lr is not None:
        rows.insert(4, ("the projector's rate", f"{optimizer.projector_lr:g}"))
    rows += [(f"numbers learned, {part}", f"{n:,}") for part, n in outcome.learned.items()]
    if outcome.loss is not None:
        rows.append(("loss at the end", f"{outcome.loss:.4f}"))
    rows += [(name, version) for name, version in outcome.versions.items()]
    table = ["## Training", "", "| what | value |", "|---|---|"]
    return "\n".join(table + [f"| {key} | {value} |" for key, value in rows])


def _limits(recipe: Recipe) -> str:
    licence = licence_of(recipe.model.name)
    text = (
        "## Limits and licence\n\n"
        "Answers can be wrong, also when they sound sure; nothing was filtered for safety. No score "
        "on a benchmark belongs to this card unless it stands here: `vip-llava eval` gives one. "
    )
    if licence == "other":
        return (
            text + "The licence of the base and of the data apply; look them up before you share."
        )
    return text + f"The base's licence ({licence}) and those of the data apply."
