"""The benchmarks as documents of lmms-eval's tasks: drawn images, final words, the same scores.

The data of benchmark NAME is in `VIP_LLAVA_EVAL_DATA`/NAME. Marks are drawn before lmms-eval gets
an image, so that every model sees the same. A question that cannot be asked is shown as a grey
image with the reason as its text, and counts as wrong.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from vip_llava.errors import DataError, VipLlavaError
from vip_llava.evaluation.benchmark import BenchmarkItem
from vip_llava.evaluation.benchmarks import benchmark_class, open_benchmark
from vip_llava.evaluation.results import ResultRow
from vip_llava.evaluation.run import select_items
from vip_llava.prompting.turns import MarkedImage, as_regions, draw_images, open_images
from vip_llava.regions.phrases import expand

__all__ = ["DATA_VARIABLE", "SEED_FILE", "Task"]

DATA_VARIABLE = "VIP_LLAVA_EVAL_DATA"
#: A file of one row: lmms-eval needs a data set to load, whose rows `Task.docs` replaces.
SEED_FILE = str(Path(__file__).with_name("tasks") / "seed.jsonl")


class Task:
    """The functions that the task file of one benchmark names."""

    def __init__(self, name: str) -> None:
        self.name = name

    @functools.cached_property
    def items(self) -> Mapping[str, BenchmarkItem]:
        """Id -> item. Raises DataError if the data is missing."""
        folder = os.environ.get(DATA_VARIABLE)
        if not folder:
            raise DataError(
                f"set {DATA_VARIABLE} to a folder with the data of {self.name} in {self.name}/"
            )
        benchmark = open_benchmark(self.name, Path(folder).expanduser() / self.name)
        return {item.id: item for item in select_items(benchmark)}

    def docs(self, _seed: object) -> Any:
        """`process_docs`: a data set of the items; the right answer as JSON text."""
        import datasets

        rows = [
            {"id": item.id, "group": item.group, "expected": json.dumps(item.expected)}
            for item in self.items.values()
        ]
        return datasets.Dataset.from_list(rows)

    def prepare(self, doc: Mapping[str, Any]) -> tuple[Image.Image, str, str | None]:
        """The drawn image, the final question, and why it cannot be asked, if so."""
        try:
            request = self.items[doc["id"]].build_request()
            assert request.image is not None  # the requests of all benchmarks have one
            image = request.image
            if not isinstance(image, MarkedImage):
                image = MarkedImage(image, as_regions(request.regions))
            [drawn], _ = draw_images(open_images([image]))
            return drawn.shown, expand(request.question, drawn.regions), None
        except VipLlavaError as error:
            grey = Image.new("RGB", (64, 64), (128, 128, 128))
            return grey, f"This question can't be asked: {error}", str(error)

    def visual(self, doc: Mapping[str, Any]) -> list[Image.Image]:
        """`doc_to_visual`."""
        return [self.prepare(doc)[0]]

    def text(self, doc: Mapping[str, Any], lmms_eval_specific_kwargs: object = None) -> str:
        """`doc_to_text`."""
        return self.prepare(doc)[1]

    def messages(
        self, doc: Mapping[str, Any], lmms_eval_specific_kwargs: object = None
    ) -> list[dict[str, Any]]:
        """`doc_to_messages`: one user turn."""
        image, text, _ = self.prepare(doc)
        content = [{"type": "image", "url": image}, {"type": "text", "text": text}]
        return [{"role": "user", "content": content}]

    def results(self, doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
        """`process_results`: the scored row under the name of the metric."""
        item, reason = self.items[doc["id"]], self.prepare(doc)[2]
        if reason is not None:
            row = item.failed_row(reason)
        else:
            row = benchmark_class(self.name).scored_row(item, str(results[0]))
        return {"vip_llava_score": asdict(row)}

    def score(self, rows: Sequence[Mapping[str, Any]]) -> float:
        """The aggregation: the benchmark's first score, in percent."""
        kind = benchmark_class(self.name)
        value = kind.aggregate([ResultRow(**row) for row in rows])[0].value
        return float("nan") if value is None else 100 * value

    def functions(self) -> dict[str, Callable[..., Any]]:
        """The functions by their names in a task file."""
        stem = self.name.replace("-", "_")
        names = ("docs", "visual", "text", "messages", "results", "score")
        return {f"{stem}_{name}": getattr(self, name) for name in names}
