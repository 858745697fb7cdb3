"""The model card of a run: its model, data, settings and limits, as Markdown.

The card is filled in from the recipe and the summary of the run. This module opens no files and no
network connections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vip_llava.training.recipes.recipe import Recipe

__all__ = ["RunSummary", "model_card"]

# A part of a base model's name -> its licence, as the Hub spells it.
_LICENCES = {"vicuna": "llama2", "llava-7b": "llama2", "llava-13b": "llama2"}
_LICENCES |= {"llama-3": "llama3", "phi-3": "mit", "smollm2": "apache-2.0"}


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a run did.

    Args:
        result: "model", "adapter" or "projector": what was exported.
        trainable: the number of trainable parameters of each part.
        failures: the report of the bad rows.
    """

    result: str
    steps: int
    rows: int
    loss: float | None = None
    trainable: Mapping[str, int] = field(default_factory=dict)
    failures: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


def licence_of(name: str) -> str:
    """The licence of a known base model, else "other"."""
    lowered = name.lower()
    return next((licence for part, licence in _LICENCES.items() if part in lowered), "other")


def model_card(recipe: Recipe, summary: RunSummary, name: str) -> str:
    """The card as Markdown with the Hub's metadata header; `name` is the model's name."""
    sections = (
        _header(recipe, summary),
        f"# {name}",
        _intro(recipe, summary),
        _use(recipe, summary, name),
        _data(recipe, summary),
        _training(recipe, summary),
        _limits(recipe),
    )
    return "\n\n".join(sections) + "\n"


def _header(recipe: Recipe, summary: RunSummary) -> str:
    base = recipe.model.name
    lines = ["---", "pipeline_tag: image-text-to-text", f"license: {licence_of(base)}"]
    whole = summary.result == "model"
    lines.append(f"library_name: {'transformers' if whole else 'vip-llava'}")
    if "/" in base and not base.startswith((".", "/", "~", "runs/")):
        lines.append(f"base_model: {base}")
    lines += ["tags:", "- vip-llava", "- visual-prompting"]
    if summary.result == "adapter":
        lines.append("- lora")
    return "\n".join([*lines, "---"])


def _intro(recipe: Recipe, summary: RunSummary) -> str:
    what = {
        "model": "A multimodal model",
        "adapter": "A LoRA adapter with its projector",
        "projector": "A projector",
    }[summary.result]
    about = f" ({recipe.about})" if recipe.about else ""
    base = "a small random model" if recipe.model.tiny else f"`{recipe.model.name}`"
    return (
        f"{what}, trained with vip-llava from {base}{about}. It answers questions about marked "
        "regions of an image (box, ellipse, arrow, point, scribble, triangle, outline, mask); the "
        "mark is drawn on the image that the model sees."
    )


def _use(recipe: Recipe, summary: RunSummary, name: str) -> str:
    base = "" if summary.result == "model" else f', base="{recipe.model.name}"'
    tower = recipe.model.tower if summary.result != "model" else None
    place = f', vision_tower="{tower}"' if tower else ""
    if summary.result == "projector":
        return (
            "## Use\n\nThe projector is the input of stage 2: name this folder as "
            "`model.projector` of a recipe."
        )
    return (
        "## Use\n\n```python\nfrom vip_llava import Box, load\n\n"
        f'model = load("{name}"{base}{place})\n'
        'answer = model.ask("photo.jpg", "What is <region:1>?", '
        "regions=[Box(100, 80, 260, 300)])\nprint(answer.text)\n```"
    )


def _data(recipe: Recipe, summary: RunSummary) -> str:
    lines = ["## Data", "", f"{summary.rows:,} rows from:", ""]
    lines += [f"- `{name}`" for name in recipe.data.files]
    failed = int(summary.failures.get("failed", 0))
    lines += ["", f"Bad rows: {failed:,}. They were skipped and not replaced."]
    for reason, count in list(summary.failures.get("reasons", {}).items())[:5]:
        lines.append(f"- {count:,} x {reason}")
    return "\n".join(lines)


def _training(recipe: Recipe, summary: RunSummary) -> str:
    optimizer, adapter = recipe.optimizer, recipe.train.adapter
    how = ", ".join(recipe.train.parts)
    if adapter is not None:
        bits = f", on a {adapter.bits}-bit base" if adapter.kind == "qlora" else ""
        how += f"; LoRA on the language model, rank {adapter.rank}, alpha {adapter.alpha:g}{bits}"
    rows = [
        ("trained", how),
        ("steps", f"{summary.steps:,}"),
        ("rows per step", f"{recipe.batch.size}"),
        (
            "learning rate",
            f"{optimizer.lr:g}, {optimizer.schedule}, {optimizer.warmup_ratio:.0%} warm-up",
        ),
        ("weight decay", f"{optimizer.weight_decay:g}"),
        ("maximum length", f"{recipe.data.max_length} tokens"),
        ("precision", recipe.precision),
        ("seed", f"{recipe.seed}"),
    ]
    if optimizer.projector_lr is not None:
        rows.insert(4, ("projector's learning rate", f"{optimizer.projector_lr:g}"))
    rows += [(f"trainable parameters, {part}", f"{n:,}") for part, n in summary.trainable.items()]
    if summary.loss is not None:
        rows.append(("final loss", f"{summary.loss:.4f}"))
    rows += [(name, version) for name, version in summary.versions.items()]
    table = ["## Training", "", "| setting | value |", "|---|---|"]
    return "\n".join(table + [f"| {key} | {value} |" for key, value in rows])


def _limits(recipe: Recipe) -> str:
    licence = licence_of(recipe.model.name)
    text = (
        "## Limits and licence\n\n"
        "Answers can be wrong even if they sound certain, and nothing was filtered for safety. "
        "The model was not scored on a benchmark unless this card says so; `vip-llava eval` does. "
    )
    if licence == "other":
        return text + "Check the licences of the base model and of the data before sharing it."
    return text + f"The licence of the base model ({licence}) and those of the data apply."
