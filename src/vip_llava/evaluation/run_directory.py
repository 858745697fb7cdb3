"""The directory of one run.

    run.json       benchmark, data, model, settings, command, versions, hardware, times
    rows.jsonl     every `ResultRow`, in the order in which the questions were asked
    answers.jsonl  the answers in the original's format; with several groups answers/GROUP.jsonl
    scores.json    the scores
    images/        small copies of some drawn images, for the page

An interrupted run can be resumed; a run with other settings is refused. It does not know how
questions are asked or scored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from vip_llava.errors import DataError, RequestError
from vip_llava.evaluation.jsonl import complete_lines
from vip_llava.evaluation.results import ResultRow, Score

__all__ = ["RunDirectory", "answer_record", "slug"]

_IMAGE_SIDE = 320  # pixels


class RunDirectory:
    """One run's directory. `create_or_resume` for a run, `open` to read one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """The directory of an earlier run. Raises DataError for any other directory."""
        if not (path / "run.json").is_file():
            raise DataError(f"{path}: not a run of an evaluation (it has no run.json)")
        return cls(path)

    @classmethod
    def create_or_resume(
        cls, path: Path, config: Mapping[str, Any], provenance: Mapping[str, Any]
    ) -> RunDirectory:
        """The directory for a run, new or with the rows of an interrupted run.

        config: everything that answers depend on. provenance: command, versions, hardware. Raises
        RequestError if the directory holds a run with another config (naming the first difference)
        or other files.
        """
        directory = cls(path)
        if (path / "run.json").is_file():
            before = directory.info["config"]
            now = json.loads(json.dumps(config))
            changed = [key for key in now if before.get(key) != now[key]]
            if changed:
                key = changed[0]
                raise RequestError(
                    f"{path} holds a run with another {key} ({before.get(key)!r}, not "
                    f"{now[key]!r}); choose another directory"
                )
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RequestError(f"{path} holds other files; choose a new directory")
        else:
            path.mkdir(parents=True, exist_ok=True)
            directory.write_json("run.json", {**provenance, "config": dict(config), "seconds": 0.0})
        return directory

    @property
    def info(self) -> dict[str, Any]:
        """The content of run.json. Raises DataError if it cannot be read."""
        try:
            value = json.loads((self.path / "run.json").read_text("utf-8"))
            if not (isinstance(value, dict) and isinstance(value["config"], dict)):
                raise TypeError("it must be an object with a config")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.path / 'run.json'} can't be read: {error}") from None
        return value

    def rows(self) -> list[ResultRow]:
        """The rows so far, the last one of each id.

        A truncated last line is removed, also from the file. Raises DataError for any other line
        that cannot be read.
        """
        path = self.path / "rows.jsonl"
        rows: dict[str, ResultRow] = {}
        for number, line in enumerate(complete_lines(path), 1):
            try:
                row = ResultRow(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise DataError(f"{path}, line {number}: not a result row: {error}") from None
            rows[row.id] = row
        return list(rows.values())

    def append(self, row: ResultRow) -> None:
        """Append a row to rows.jsonl."""
        with (self.path / "rows.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")

    def add_seconds(self, seconds: float) -> None:
        """Add to the time that the run has taken."""
        info = self.info
        info["seconds"] = round(info["seconds"] + seconds, 3)
        self.write_json("run.json", info)

    def save_image(self, image: Image.Image, item_id: str) -> str:
        """Save a copy of at most 320 pixels; returns its path within the directory."""
        small = image.copy()
        small.thumbnail((_IMAGE_SIDE, _IMAGE_SIDE), Image.Resampling.BICUBIC)
        (self.path / "images").mkdir(exist_ok=True)
        # Ids may hold slashes; their hash is a safe and stable file name.
        name = f"images/{hashlib.sha256(item_id.encode()).hexdigest()[:16]}.jpg"
        small.save(self.path / name, format="JPEG", quality=80)
        return name

    def finish(
        self, rows: Sequence[ResultRow], scores: Iterable[Score], files: Mapping[str, str]
    ) -> None:
        """Write what is computed from all rows: scores, the original's answer files, `files`."""
        model = str(self.info["config"]["model"])
        groups = list(dict.fromkeys(row.group for row in rows))
        for group in groups:
            # One file per group, as the original has one per task or split: ids repeat across them.
            name = "answers.jsonl" if len(groups) == 1 else f"answers/{slug(group)}.jsonl"
            records = (answer_record(row, model) for row in rows if row.group == group)
            lines = (json.dumps(record, ensure_ascii=False) for record in records)
            self.write(name, "".join(f"{line}\n" for line in lines))
        self.write_json("scores.json", [asdict(score) for score in scores])
        for name, text in files.items():
            self.write(name, text)

    def discard_judged_scores(self) -> None:
        """Remove a judge's scores, which are not of the answers that were added since."""
        (self.path / "judged.json").unlink(missing_ok=True)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file atomically."""
        self.write(name, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    def write(self, name: str, text: str) -> None:
        """Write a text file atomically."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.part")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)


def answer_record(row: ResultRow, model: str) -> dict[str, Any]:
    """A row as an object of the original's answer files.

    `answer_id` is a hash of model, id and answer, so that the same run gives the same file. A
    failed row has an empty text, and its reason in the metadata.
    """
    key = f"{model}\x1f{row.id}\x1f{row.answer}"
    return {
        "question_id": row.facts.get("question_id", row.id),
        "prompt": row.question,
        "text": row.answer,
        "answer_id": hashlib.sha256(key.encode()).hexdigest()[:22],
        "model_id": model,
        "metadata": {"failed": row.failed} if row.failed is not None else {},
    }


def slug(name: str) -> str:
    """A name as part of a file name: only letters, digits, dots, hyphens and underscores."""
    kept = "".join(char if char.isalnum() or char in "._-" else "-" for char in name)
    return kept.strip("-.") or "model"
