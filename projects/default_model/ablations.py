"""Ablations of the default model: the same short training without one of its parts.

Every variant starts from the published weights, is trained on the same number of questions in the
same order, and is evaluated on the same objects of validation photos. The runs are short, so their
scores are far below those of the default model and only compare variants with each other.

    python projects/default_model/ablations.py --data FOLDER --out RUNS [--variant NAME ...] [--steps 400]
    python projects/default_model/ablations.py --out RUNS --table     # of the runs so far
    python projects/default_model/ablations.py --data FOLDER --out RUNS --tiny   # checks that it runs

FOLDER holds `regions.jsonl` and its photos, as for `train.py`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from default_model.benchmarks.marked_questions import NAMING, marked_items
from default_model.scenes.marking import SHAPES
from default_model.scenes.mixture import MixtureRow, RegionMixture
from default_model.scenes.photos import Photo, read_regions
from default_model.scenes.questions import choosing, naming
from default_model.scenes.scene import Exchange, Scene, Task
from default_model.training.assembly import (
    focal_settings,
    mixture_config,
    read_training_photos,
    untrained,
)
from default_model.training.recipe import StageRecipe
from default_model.training.trainer import RegionTrainer
from vip_llava import Assistant
from vip_llava.backends.native import NativeBackend
from vip_llava.evaluation.benchmark import BenchmarkItem, limit_per_group
from vip_llava.evaluation.coco_annotations import is_validation
from vip_llava.evaluation.intervals import proportion
from vip_llava.models.default.build import default_processor, load_default
from vip_llava.prompting.prepare import Request
from vip_llava.prompting.turns import MarkedImage, Turn

SEEN = ("box", "ellipse", "contour", "scribble")
UNSEEN = tuple(shape for shape in SHAPES if shape not in SEEN)


@dataclass(frozen=True)
class Variant:
    """One variant. kind: of the batches; groups: of the questions in the evaluation."""

    what: str
    kind: str = "one"
    groups: tuple[str, ...] = ("box",)
    last_depth: bool = False
    in_words: bool = False
    weights: dict[str, float] = field(default_factory=dict)


VARIANTS = {
    "whole": Variant("four depths, close view, all shapes", groups=(*SHAPES, "control")),
    "one-depth": Variant("only the tower's last depth", last_depth=True),
    "no-close-view": Variant("the drawn image alone", kind="whole", groups=("drawn",)),
    "in-words": Variant(
        "nothing drawn, no close view: the box as numbers in the question",
        kind="whole", groups=("in-words",), in_words=True,
    ),
    "four-shapes": Variant(
        f"trained with {', '.join(SEEN)} only", groups=SHAPES, weights=dict.fromkeys(UNSEEN, 0.0)
    ),
}  # fmt: skip


def in_words(text: str, box: Sequence[float], size: tuple[int, int]) -> str:
    """The question with the box in hundredths of the image in place of the region's phrase."""
    hundredths = [round(100 * v / size[i % 2]) for i, v in enumerate(box)]
    return text.replace("<region:1>", f"the object at {hundredths}")


class Mix(RegionMixture):
    """Questions about one marked object, the same ones for every variant."""

    variant = Variant("")

    def tasks(self, kind: str, scene: Scene) -> list[Task]:
        if not scene.regions:
            return super().tasks(kind, scene)
        words = self.source.words
        rare = (naming.is_it, choosing.choose_word)
        return [*[naming.name_region] * 20, *(partial(task, others=words) for task in rare)]

    def _encoded(
        self, kind: str, scene: Scene, asked: Sequence[Exchange], rng: np.random.Generator
    ) -> MixtureRow | None:
        if not self.variant.in_words or not scene.regions:
            return super()._encoded(kind, scene, asked, rng)
        box, size = scene.regions[0].bounds(scene.image.size), scene.image.size
        question, answer = (in_words(text, box, size) for text in asked[0])
        marked = MarkedImage(scene.image, (), scene.image)
        turns = (Turn("user", question, (marked,)), Turn("assistant", answer))
        ids, labels = self.processor.encode_training(turns)
        if len(ids) > self._length(kind):
            return None
        return [self.processor.geometry.fit(scene.image)], ids, labels, [], []


def only_last_depth(tower: Any) -> None:
    """Set all features of the tower to 0, except those of the last depth."""
    kept = tower.config.head_channels

    def cut(_module: nn.Module, _given: Any, out: BaseModelOutputWithPooling) -> Any:
        assert out.hidden_states is not None
        tokens: Tensor = out.hidden_states[0]
        blank = torch.zeros_like(tokens[..., : tokens.shape[-1] - kept])
        tokens = torch.cat([blank, tokens[..., -kept:]], dim=-1)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, hidden_states=(tokens,))

    tower.register_forward_hook(cut)


def train(variant: Variant, given: argparse.Namespace, device: str, out: Path) -> None:
    """A short run from the published weights."""
    settings = StageRecipe(
        steps=given.steps,
        warmup=min(40, given.steps // 4 + 1),
        smoothing=0.05,
        drop_view=0.1,
        drop_token=0.05,
        fine_marks=True,
        auxiliary=0.0,
        average=0.99,
        shares={variant.kind: 1.0},
        shape_weights=variant.weights,
        workers=given.workers,
    )
    torch.manual_seed(0)
    read = read_training_photos(given.data, given.limit_photos)
    model, language_model = untrained(given.tower)
    if variant.last_depth:
        only_last_depth(model.model.vision_tower)
    focal = focal_settings(settings)
    chosen = replace(mixture_config(settings), rows={variant.kind: given.rows})
    mix = Mix(read.photos, read.singles, default_processor(language_model, focal), focal, chosen)
    mix.variant = variant
    mix.source.captioned = []  # only questions about marked objects
    mix.source.decode_all()
    trainer = RegionTrainer(model, mix, settings, device, compiled=device == "cuda")
    trainer.run(out, seconds=given.seconds, report=lambda row: print(json.dumps(row), flush=True))


def items(photos: Sequence[Photo], group: str, limit: int) -> list[BenchmarkItem]:
    """Questions about objects that are not people, at most `limit`, evenly spaced."""
    found = in_words_items(photos) if group == "in-words" else marked_items(photos, group)
    others = [item for item in found if item.facts["label"] != "person"]
    return limit_per_group(others, limit)


def in_words_items(photos: Sequence[Photo]) -> list[BenchmarkItem]:
    """An item for each object, with its box in words."""
    made = []
    for photo in (p for p in photos if p.is_coco):
        for index, each in enumerate(photo.objects):
            question = in_words(NAMING, each.box, photo.size)
            build = partial(Request, image=photo.jpeg, question=question)
            facts = {"label": each.label}
            made.append(
                BenchmarkItem(f"{photo.id}/{index}", "in-words", each.label, build, facts=facts)
            )
    return made


def ask(variant: Variant, given: argparse.Namespace, device: str, out: Path) -> dict[str, Any]:
    """The number of right answers and of questions in each group."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model, processor = load_default(dtype=dtype, device=device, weights=out)
    if variant.last_depth:
        only_last_depth(model.model.vision_tower)
    if variant.kind == "whole":
        processor.focal = None
    photos = [photo for photo in read_regions(given.data) if is_validation(photo.id)]
    assistant = Assistant(NativeBackend(model, processor))
    found = {}
    for group in variant.groups:
        asked = items(photos, group, given.questions)
        requests = [item.build_request() for item in asked]
        answers = assistant.ask_many(requests, batch_size=32, max_new_tokens=12)
        pairs = zip(answers, asked, strict=True)
        right = sum(answer.text.strip().lower() == item.expected for answer, item in pairs)
        found[group] = [right, len(asked)]
        print(f"{group}: {right} of {len(asked)}", flush=True)
    return found


def run(name: str, given: argparse.Namespace) -> None:
    """Train and evaluate one variant, and write its counts to `NAME.json`."""
    device = "cuda" if torch.cuda.is_available() and not given.tiny else "cpu"
    began = time.perf_counter()
    out = given.out / name
    train(VARIANTS[name], given, device, out)
    trained = time.perf_counter() - began
    counts = ask(VARIANTS[name], given, device, out)
    log = json.loads((out / "log.json").read_text("utf-8"))
    facts = {
        "steps": log[-1]["step"] + 1,
        "rows": log[-1]["rows"],
        "loss": log[-1]["loss"],
        "seconds": round(trained),
        "groups": counts,
    }
    (given.out / f"{name}.json").write_text(json.dumps(facts), encoding="utf-8")


def table(folder: Path) -> str:
    """The runs so far as a Markdown table."""
    lines = ["| variant | steps, rows | asked with | exact answers |", "|---|---|---|---|"]
    for name, variant in VARIANTS.items():
        path = folder / f"{name}.json"
        if not path.is_file():
            continue
        facts = json.loads(path.read_text("utf-8"))
        for number, (group, (right, count)) in enumerate(facts["groups"].items()):
            value, low, high = proportion(right, count)
            size = f"{facts['steps']:,}, {facts['rows']:,}"
            start = f"| {variant.what} | {size} " if number == 0 else "| | "
            trained = "" if variant.weights.get(group, 1.0) else " (not trained with)"
            lines.append(f"{start}| {group}{trained} | {value:.3f} [{low:.3f}, {high:.3f}] |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run variants, or print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with regions.jsonl and its photos")
    parser.add_argument("--out", type=Path, required=True, help="where runs and counts go")
    parser.add_argument("--variant", action="append", choices=list(VARIANTS), help="(all)")
    parser.add_argument("--tower", type=Path, help="published tower (fetched without it)")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rows", type=int, default=128, help="questions of a step")
    parser.add_argument("--seconds", type=float, default=600, help="a training stops after")
    parser.add_argument("--questions", type=int, default=300, help="of each group, at most")
    parser.add_argument("--workers", type=int, default=8, help="processes that make batches")
    parser.add_argument("--tiny", action="store_true", help="a few rows, on a CPU")
    parser.add_argument("--table", action="store_true", help="print the table of what was run")
    given = parser.parse_args(arguments)
    given.limit_photos = None
    if given.tiny:
        given.steps, given.rows, given.questions, given.workers = 2, 4, 4, 0
        given.limit_photos = 40
    if not given.table:
        if given.data is None:
            parser.error("--data is needed: a folder with regions.jsonl and its photos")
        given.out.mkdir(parents=True, exist_ok=True)
        for name in given.variant or VARIANTS:
            run(name, given)
    print(table(given.out))


if __name__ == "__main__":
    main()
