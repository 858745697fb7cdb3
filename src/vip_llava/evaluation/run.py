"""Score a model on marked things: `python -m vip_llava.evaluation.run --data DIR`.

`DIR` holds `regions.jsonl` and its photos. By default only the validation photos are asked about
(`data.photos.is_validation`); `--all` takes every photo, for folders that were never trained on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vip_llava.api import Assistant, load
from vip_llava.data.photos import Photo, is_validation, read_regions
from vip_llava.errors import DataError
from vip_llava.evaluation.benchmarks.marked import VARIANTS, Score, items_of, score

_TOKENS = 8
_CHUNK = 512


def evaluate(
    assistant: Assistant,
    photos: Sequence[Photo],
    variant: str,
    *,
    most: int | None = None,
    batch_size: int = 8,
) -> tuple[Score, list[dict[str, Any]]]:
    """The score of one variant, and a row (id, label, answer) for each item."""
    items = items_of(photos, variant, most)
    said: list[str] = []
    for start in range(0, len(items), _CHUNK):
        requests = [dict(item.request) for item in items[start : start + _CHUNK]]
        answers = assistant.ask_many(requests, batch_size=batch_size, max_new_tokens=_TOKENS)
        said += [answer.text for answer in answers]
    rows = [
        {"id": item.id, "label": item.label, "answer": answer}
        for item, answer in zip(items, said, strict=True)
    ]
    return score(variant, items, said), rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with regions.jsonl")
    parser.add_argument("--model", help="name or folder; the default model if not given")
    parser.add_argument("--weights", type=Path, help="other trained parts for the default model")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--most", type=int, help="at most so many questions a variant")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--all", action="store_true", help="all photos, not the validation split")
    parser.add_argument("--out", type=Path, help="write scores and answers here, as JSON")
    given = parser.parse_args()
    photos = [p for p in read_regions(given.data) if given.all or is_validation(p.id)]
    if not photos:
        raise DataError(f"{given.data} has no photos to ask about")
    if given.weights is not None:
        from vip_llava.model.default import load_default

        dtype = getattr(torch, given.dtype)
        parts = load_default(dtype=dtype, device=given.device, weights=given.weights)
        assistant = Assistant(*parts, name=str(given.weights))
    else:
        assistant = load(given.model, device=given.device, dtype=given.dtype)
    found = {}
    for variant in given.variants:
        began = time.monotonic()
        result, rows = evaluate(
            assistant, photos, variant, most=given.most, batch_size=given.batch_size
        )
        found[variant] = {"score": result.row(), "answers": rows}
        print(f"{json.dumps(result.row())} {time.monotonic() - began:.0f} s", flush=True)
    if given.out is not None:
        given.out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
