"""Our region benchmarks as documents of lmms-eval's tasks: images drawn, words final, scores ours.

The data of benchmark NAME are where the environment says: `VIP_LLAVA_EVAL_DATA`/NAME. Marks are drawn
before an image is handed over, so that every model sees the same; models that take coordinates lose
nothing but the geometry. A question that can't be asked is shown as a grey image with the reason as its
text, and counts as wrong whatever is answered.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vip_llava.errors import DataError, VipLlavaError
from vip_llava.evaluation.benchmarks import benchmark_class, open_benchmark
from vip_llava.evaluation.items import Benchmark, Item, Row
from vip_llava.evaluation.run import items_of
from vip_llava.prompting.turns import MarkedImage, as_regions, draw_images, open_images
from vip_llava.regions.phrases import expand

__all__ = ["SEED_FILE", "VARIABLE", "Task"]

VARIABLE = "VIP_LLAVA_EVAL_DATA"
#: A file of one row: lmms-eval wants a data set to begin with, whose rows `Task.docs` replaces.
SEED_FILE = str(Path(__file__).with_name("tasks") / "seed.jsonl")


class Task:
    """The functions that the task file of one benchmark names."""

    def __init__(self, name: str) -> None:
        self.name = name

    @functools.cached_property
    def items(self) -> Mapping[str, Item]:
        """Id -> item. Raises DataError where the data are not."""
        return {item.id: item for item in items_of(self._benchmark())}

    def _benchmark(self) -> Benchmark:
        folder = os.environ.get(VARIABLE)
        if not folder:
            raise DataError(
                f"set {VARIABLE} to a folder that holds the data of {self.name} in {self.name}/"
            )
        return open_benchmark(self.name, Path(folder).expanduser() / self.name)

    def docs(self, _seed: object) -> Any:
        """A data set of the items; facts and the right answer as JSON text."""
        import datasets

        return datasets.Dataset.from_list(
            [
                {
                    "id": item.id,
                    "group": item.group,
                    "expected": json.dumps(item.expected),
                    "facts": json.dumps(dict(item.facts)),
                }
                for item in self.items.values()
            ]
        )

    def asked(self, doc: Mapping[str, Any]) -> tuple[Image.Image, str, str | None]:
        """The drawn image, the question in its words, and why it can't be asked."""
        try:
            request = self.items[doc["id"]].make()
            assert request.image is not None  # all of these benchmarks show one
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
        return [self.asked(doc)[0]]

    def text(self, doc: Mapping[str, Any], lmms_eval_specific_kwargs: object = None) -> str:
        """`doc_to_text`."""
        return self.asked(doc)[1]

    def messages(
        self, doc: Mapping[str, Any], lmms_eval_specific_kwargs: object = None
    ) -> list[dict[str, Any]]:
        """`doc_to_messages`: one user turn."""
        image, text, _ = self.asked(doc)
        content = [{"type": "image", "url": image}, {"type": "text", "text": text}]
        return [{"role": "user", "content": content}]

    def results(self, doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
        """`process_results`: the judged row under the name of the metric."""
        expected, facts = json.loads(doc["expected"]), json.loads(doc["facts"])
        known: dict[str, Any] = {"id": doc["id"], "group": doc["group"], "expected": expected}
        known |= {"facts": facts, "image": self.items[doc["id"]].image}
        failed = self.asked(doc)[2]
        if failed is not None:
            return {"vip_llava_score": Row(**known, failed=failed, score=0.0).to_json()}
        answer = str(results[0])
        verdict = benchmark_class(self.name).judge(expected, facts, answer)
        row = Row(
            **known, answer=answer, score=verdict.score, right=verdict.right, read=verdict.read
        )
        return {"vip_llava_score": row.to_json()}

    def score(self, rows: Sequence[Mapping[str, Any]]) -> float:
        """The aggregation: the benchmark's first score, in percent."""
        scores = benchmark_class(self.name).scores([Row.from_json(row) for row in rows])
        value = scores[0].value
        return float("nan") if value is None else 100 * value

    def functions(self) -> dict[str, Callable[..., Any]]:
        """Name in a task file -> function."""
        stem = self.name.replace("-", "_")
        wanted = ("docs", "visual", "text", "messages", "results", "score")
        return {f"{stem}_{name}": getattr(self, name) for name in wanted}
