"""Tables of the `datasets` library as rows by number: Parquet files and Hugging Face datasets.

The library is optional. The module does not know what a row means.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

from vip_llava.errors import DataError, MissingExtraError

__all__ = ["DatasetTable"]


class DatasetTable:
    """The rows of a Hugging Face dataset with a known length. Can be pickled for worker processes."""

    def __init__(self, dataset: Any) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise DataError(
                f"a {type(dataset).__name__} has no rows by number; pass a datasets.Dataset"
            )
        if hasattr(dataset, "keys"):
            splits = ", ".join(map(str, dataset))
            raise DataError(f"this dataset has several splits; pass one of them: {splits}")
        self._dataset = dataset.with_format(None) if hasattr(dataset, "with_format") else dataset

    @staticmethod
    def name_of(dataset: Any) -> str:
        """A name for messages: that of the dataset, or of its type."""
        name = getattr(getattr(dataset, "info", None), "dataset_name", None)
        return str(name or type(dataset).__name__)

    @classmethod
    def from_folder(cls, path: Path) -> DatasetTable:
        """A dataset that `save_to_disk` wrote. Raises DataError if it has several splits."""
        if (path / "dataset_dict.json").is_file():
            splits = sorted(each.name for each in path.iterdir() if each.is_dir())
            raise DataError(f"{path} has several splits; name one of them: {', '.join(splits)}")
        datasets = _datasets("a Hugging Face dataset")
        try:
            return cls(datasets.load_from_disk(str(path)))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} can't be read as a dataset: {error}") from error

    @classmethod
    def from_parquet(cls, path: Path) -> DatasetTable:
        """The rows of a Parquet file, memory-mapped from a temporary Arrow file.

        The temporary file is removed with the table.
        """
        datasets = _datasets("a Parquet file")
        folder = tempfile.mkdtemp(prefix="vip-llava-rows-")
        try:
            dataset = datasets.Dataset.from_parquet(str(path), cache_dir=folder)
        except Exception as error:  # the library wraps errors of pyarrow in its own
            shutil.rmtree(folder, ignore_errors=True)
            raise DataError(f"{path} can't be read: {error.__cause__ or error}") from error
        table = cls(dataset)
        weakref.finalize(table, _remove, folder, os.getpid())
        return table

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int, /) -> Any:
        return self._dataset[index]


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # not in a forked worker
        shutil.rmtree(folder, ignore_errors=True)


def _datasets(what: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(f"{what} needs datasets: pip install 'vip-llava[train]'") from error
    return datasets
