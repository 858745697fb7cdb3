"""The base of benchmarks whose data is one file of the original's rows.

The published evaluation files hold rows of the same kinds as the training files, so marks and words
come from `data.tasks`, as in training. They depend on the seed and the row's id alone. It does not
know answers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from vip_llava.data.fields import DataRow
from vip_llava.data.reading import RowFile
from vip_llava.data.records import parse_row
from vip_llava.data.tasks import arrange
from vip_llava.data.tasks.common import PromptStyle
from vip_llava.errors import DataError
from vip_llava.evaluation.benchmark import Benchmark, BenchmarkItem, BenchmarkOptions, raising
from vip_llava.evaluation.paths import find_data_file, path_inside
from vip_llava.images import open_image
from vip_llava.prompting.prepare import Request
from vip_llava.regions.sampling import generator

__all__ = ["RowBenchmark"]


class RowBenchmark(Benchmark):
    """A benchmark whose data is one file of rows of one `kind`."""

    kind: ClassVar[str]
    file_patterns: ClassVar[tuple[str, ...]]
    """Patterns of the file's name, if the data is a folder."""

    def __init__(self, data: Path, options: BenchmarkOptions) -> None:
        super().__init__(data, options)
        self.file = find_data_file(data, self.file_patterns, self.name)
        self.images = options.images or self.file.parent
        self.rows = RowFile.open(self.file)

    def sources(self) -> Sequence[Path]:
        return [self.file]

    def items(self) -> list[BenchmarkItem]:
        counts: Counter[str] = Counter()
        items: list[BenchmarkItem] = []
        for index in range(len(self.rows)):
            for item in self._items_at(index):
                counts[item.id] += 1
                # A repeated id is another question; ids of items are unique.
                number = counts[item.id]
                unique = f"{item.id}#{number}" if number > 1 else item.id
                facts = {"question_id": item.id, **item.facts}
                items.append(replace(item, id=unique, facts=facts))
        return items

    def _items_at(self, index: int) -> list[BenchmarkItem]:
        raw: Mapping[str, Any] = {}
        try:
            raw = self.rows.raw(index)
            return list(self.items_of_row(self._row(index), index))
        except DataError as error:
            id = str(raw.get("id", "")) or f"row {index + 1}"
            image = str(raw.get("image", ""))
            return self.items_of_invalid_row(BenchmarkItem(id, "", None, raising(error), image))

    @abstractmethod
    def items_of_row(self, row: Any, index: int) -> Iterator[BenchmarkItem]:
        """The items of a valid row."""

    def items_of_invalid_row(self, item: BenchmarkItem) -> list[BenchmarkItem]:
        """The failing items of an invalid row, as many as a valid one has."""
        return [item]

    def request_builder(
        self, index: int, style: PromptStyle | None = None
    ) -> Callable[[], Request]:
        """The `build_request` of a row; its marks depend on the seed and the row's id."""

        def build() -> Request:
            row = self._row(index)
            photo = open_image(path_inside(self.images, row.images[0]))
            arranged = arrange(
                row,
                photo.size,
                generator(self.options.seed, "evaluation", row.id),
                images=self.images,
                alpha=self.options.alpha,
                style=style,
            )
            question = arranged.turns[0].text or ""
            return Request(image=photo, question=question, regions=arranged.regions)

        return build

    def _row(self, index: int) -> DataRow:
        where = self.rows.where(index)
        row = parse_row(self.rows.raw(index), where=where)
        if row.kind != self.kind:
            raise DataError(
                f"{where}: id {row.id!r} is a row of kind {row.kind}; "
                f"{self.name} needs rows of kind {self.kind} (ids like {self.kind}-1)"
            )
        if not row.images:
            raise DataError(f"{where}: id {row.id!r}: field image: missing")
        return row
