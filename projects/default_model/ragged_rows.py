"""Lengths of real conversations about regions, for the case `ragged` of `benchmarks/training_step.py`.

    python projects/default_model/ragged_rows.py FOLDER

FOLDER holds `regions.jsonl`. Each of 96 photos, evenly spaced over its training part, becomes a
conversation: a caption, if there is one, and the label of each of up to twelve objects, in Vicuna's
template. `benchmarks/ragged_rows.json` gets the number of text tokens of each, and of supervised
tokens. They are counted with the default model's tokenizer (49,152 tokens; Llama's, with 32,000,
needs somewhat more for the same text).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from default_model.scenes.photos import Photo, read_regions
from default_model.scenes.scene import pick
from vip_llava.evaluation.coco_annotations import is_validation
from vip_llava.models.default.build import default_processor
from vip_llava.models.default.language_model import ensure_language_model
from vip_llava.prompting.templates import get_template
from vip_llava.prompting.tokenization import encode_training
from vip_llava.prompting.turns import MarkedImage, Turn
from vip_llava.regions import PALETTE, Box, resolve
from vip_llava.regions.phrases import expand

LENGTHS = Path(__file__).parents[2] / "benchmarks" / "ragged_rows.json"
ROWS, MOST = 96, 12
QUESTIONS = ("What is {}?", "Name {}.", "What is the object {}?", "Can you tell me what {} is?")


def conversation(photo: Photo, rng: np.random.Generator) -> list[Turn]:
    """The turns about a photo; the first one has the image."""
    objects = photo.objects[:MOST]
    colors = [*PALETTE] * MOST
    boxes = [Box(*thing.box, id=str(i), color=colors[i]) for i, thing in enumerate(objects)]
    regions = resolve(boxes, photo.size).regions
    said = [("Describe the image.", pick(rng, photo.captions))] if photo.captions else []
    for thing, region in zip(objects, regions, strict=True):
        said.append((pick(rng, QUESTIONS).format(f"<region:{region.id}>"), thing.label))
    messages = []
    for question, answer in said:
        messages.append(Turn("user", expand(question, regions)))
        messages.append(Turn("assistant", answer))
    first = messages[0]
    return [Turn(first.role, first.text, (MarkedImage(photo.jpeg),)), *messages[1:]]


def lengths(folder: Path) -> list[tuple[int, int]]:
    """Text tokens of each row, without its image, and how many of them are supervised."""
    photos = [p for p in read_regions(folder) if p.objects and not is_validation(p.id)]
    tokenizer = default_processor(ensure_language_model()).tokenizer
    template = get_template("vicuna_v1")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(ROWS):
        messages = conversation(photos[number * len(photos) // ROWS], rng)
        ids, labels = encode_training(tokenizer, template, messages)
        rows.append((len(ids) - 1, sum(label != -100 for label in labels)))
    return rows


def main() -> None:
    """Write the lengths, and print their range and median."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    rows = lengths(Path(sys.argv[1]))
    LENGTHS.write_text(json.dumps(rows) + "\n", encoding="utf-8")
    for name, values in zip(("tokens", "learned"), zip(*rows, strict=True), strict=True):
        low, middle, high = np.percentile(values, (0, 50, 100))
        print(f"{name}: {low:.0f} to {high:.0f}, half of the rows up to {middle:.0f}")


if __name__ == "__main__":
    main()
