"""Tables of other libraries as rows by number: Parquet files and Hugging Face datasets.

Both libraries are optional. It deliberately does not know what a row means.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

from vip_llava.errors import DataError, MissingExtraError

__all__ = ["HubTable", "ParquetTable"]

_BATCH = 512  # rows that are unpacked together when one of them is wanted


class ParquetTable:
    """The rows of a Parquet file.

    Parquet can only unpack whole groups of rows. So the file is unpacked once, batch by batch, into
    a temporary file that is mapped into memory; it goes when the table goes.
    """

    def __init__(self, path: Path) -> None:
        arrow, parquet = _arrow("a Parquet file")
        handle, name = tempfile.mkstemp(prefix="vip-llava-rows-", suffix=".arrow")
        os.close(handle)
        self._unpacked = name
        self._owner = os.getpid()
        self._reader: Any = None
        weakref.finalize(self, _remove, name, self._owner)
        sizes = []
        try:
            with (
                parquet.ParquetFile(path) as file,
                arrow.OSFile(name, "wb") as sink,
                arrow.ipc.new_file(sink, file.schema_arrow) as writer,
            ):
                for batch in file.iter_batches(batch_size=_BATCH):
                    writer.write_batch(batch)
                    sizes.append(batch.num_rows)
        except (arrow.ArrowException, OSError) as error:
            raise DataError(f"{path} can't be read: {error}") from error
        self._ends = list(accumulate(sizes))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int, /) -> Any:
        if self._reader is None:
            arrow, _ = _arrow("a Parquet file")
            self._reader = arrow.ipc.open_file(arrow.memory_map(self._unpacked))
        batch = bisect_right(self._ends, index)
        first = self._ends[batch - 1] if batch else 0
        return self._reader.get_batch(batch).slice(index - first, 1).to_pylist()[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}


def _remove(name: str, owner: int) -> None:
    if os.getpid() == owner:  # not when a forked worker ends
        Path(name).unlink(missing_ok=True)


def _arrow(what: str) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(f"{what} needs pyarrow: pip install 'vip-llava[train]'") from error
    return pyarrow, pyarrow.parquet


class HubTable:
    """The rows of a Hugging Face dataset with known length."""

    def __init__(self, dataset: Any) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise DataError(
                f"rows are taken by number, which a {type(dataset).__name__} can't give; "
                "a datasets.Dataset is wanted"
            )
        if hasattr(dataset, "keys"):
            splits = ", ".join(map(str, dataset))
            raise DataError(f"this dataset has parts; choose one of them: {splits}")
        self._dataset = dataset.with_format(None) if hasattr(dataset, "with_format") else dataset

    @staticmethod
    def name_of(dataset: Any) -> str:
        """A name for messages: that of the dataset, or of its type."""
        name = getattr(getattr(dataset, "info", None), "dataset_name", None)
        return str(name or type(dataset).__name__)

    @classmethod
    def from_folder(cls, path: Path) -> HubTable:
        """A dataset that `save_to_disk` wrote. Raises DataError where it has several parts."""
        if (path / "dataset_dict.json").is_file():
            parts = sorted(each.name for each in path.iterdir() if each.is_dir())
            raise DataError(f"{path} has parts; name one of their folders: {', '.join(parts)}")
        try:
            import datasets
        except ImportError as error:
            raise MissingExtraError(
                "a Hugging Face dataset needs datasets: pip install 'vip-llava[train]'"
            ) from error
        try:
            return cls(datasets.load_from_disk(str(path)))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} can't be read as a dataset: {error}") from error

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int, /) -> Any:
        return self._dataset[index]
