"""What the benchmarks over the original's row files share: the file, its images, rows to requests.

The published evaluation files hold rows of the same kinds as the training files; so marks and words
come from `data.tasks`, as in training, from one generator that depends on seed and row alone. It
deliberately does not know answers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from vip_llava.data.reading import RowFile
from vip_llava.data.fields import DataRow
from vip_llava.data.records import parse_row
from vip_llava.data.tasks import arrange
from vip_llava.data.tasks.common import PromptStyle
from vip_llava.errors import DataError
from vip_llava.evaluation.items import Benchmark, Item, Options
from vip_llava.images import open_image
from vip_llava.prompting.prepare import Request
from vip_llava.regions.sampling import generator

__all__ = ["RowBenchmark", "failing", "found_file", "inside"]


class RowBenchmark(Benchmark):
    """A benchmark whose data is one file of rows of one `kind`."""

    kind: ClassVar[str]
    files_of: ClassVar[tuple[str, ...]]
    """Patterns of the file's name, where the data is a folder."""

    def __init__(self, data: Path, options: Options) -> None:
        super().__init__(data, options)
        self.file = found_file(data, self.files_of, self.name)
        self.images = options.images or self.file.parent
        self.rows = RowFile.open(self.file)

    def sources(self) -> Sequence[Path]:
        return [self.file]

    def items(self) -> list[Item]:
        times: Counter[str] = Counter()
        found: list[Item] = []
        for index in range(len(self.rows)):
            raw: Mapping[str, Any] = {}
            try:
                raw = self.rows.raw(index)
                row = self._row(index)
            except DataError as error:
                name = str(raw.get("id", "")) or f"row {index + 1}"
                broken = Item(name, "", None, failing(error), str(raw.get("image", "")))
                several = self.of_broken(broken)
            else:
                several = list(self.of_row(row, index))
            # An id that comes again is another question all the same.
            for item in several:
                times[item.id] += 1
                again = f"{item.id}#{times[item.id]}" if times[item.id] > 1 else item.id
                facts = {"question_id": item.id, **item.facts}
                found.append(Item(again, item.group, item.expected, item.make, item.image, facts))
        return found

    @abstractmethod
    def of_row(self, row: Any, index: int) -> Iterator[Item]:
        """The items of one checked row."""

    def of_broken(self, item: Item) -> list[Item]:
        """The items of a row that can't be used; as many as it would have had."""
        return [item]

    def make(self, index: int, style: PromptStyle | None = None) -> Callable[[], Request]:
        """A request of a row, with its marks drawn by lot from seed and id."""

        def build() -> Request:
            row = self._row(index)
            photo = open_image(inside(self.images, row.images[0]))
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
        row = parse_row(self.rows.raw(index), where=self.rows.where(index))
        if row.kind != self.kind:
            raise DataError(
                f"{self.rows.where(index)}: id {row.id!r} is a row of kind {row.kind}; "
                f"{self.name} asks rows of kind {self.kind} (ids like {self.kind}-1)"
            )
        if not row.images:
            raise DataError(f"{self.rows.where(index)}: id {row.id!r}: field image: missing")
        return row


def failing(error: Exception) -> Callable[[], Request]:
    """A `make` of an item that is known to be unusable."""

    def build() -> Request:
        raise error

    return build


def found_file(data: Path, patterns: Sequence[str], name: str) -> Path:
    """The one file of a folder that fits the first pattern that any fits; a file is itself.

    Raises DataError where none fits, or several do.
    """
    if data.is_file():
        return data
    for pattern in patterns:
        several = sorted(path for path in data.glob(pattern) if path.is_file())
        if len(several) == 1:
            return several[0]
        if several:
            names = ", ".join(path.name for path in several[:5])
            raise DataError(f"{data} holds {names}; name the file that {name} is to ask")
    raise DataError(f"{data} holds no {' or '.join(patterns)}, which {name} needs")


def inside(folder: Path, name: str) -> Path:
    """An image's path; DataError for a name that leads out of its folder."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if not name or parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
        raise DataError(f"the image {name!r} leads out of the folder of images")
    return folder / parts
