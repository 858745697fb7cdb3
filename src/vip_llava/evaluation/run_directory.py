"""The folder of one run: what was asked of which model, the rows so far, and what others read.

    run.json       benchmark, data, model, settings, command, versions, hardware, times
    rows.jsonl     every row with all that is known about it, in the order in which it was asked
    answers.jsonl  the answers as the original writes them; of several groups answers/GROUP.jsonl
    scores.json    the scores
    images/      small copies of some drawn images, for the page

A run that was stopped goes on where it was; the folder refuses to go on with anything else. It
deliberately does not know how rows are asked or judged.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vip_llava.errors import DataError, RequestError
from vip_llava.evaluation.items import Row, Score
from vip_llava.evaluation.jsonl import whole_lines

__all__ = ["RunFolder", "answer_line", "slug"]

_SIDE = 320  # pixels of a kept image's longer side


class RunFolder:
    """One run's folder; `RunFolder.begin` makes or resumes one, `RunFolder.open` reads one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """A folder that a run wrote. Raises DataError for any other."""
        if not (path / "run.json").is_file():
            raise DataError(f"{path}: no run of an evaluation (there is no run.json)")
        return cls(path)

    @classmethod
    def begin(cls, path: Path, asked: Mapping[str, Any], about: Mapping[str, Any]) -> RunFolder:
        """The folder for a run that asks `asked`; a stopped run of the same goes on.

        asked: all that answers depend on. about: command, versions, hardware. Raises RequestError
        that says what differs if the folder holds another run, or other files.
        """
        folder = cls(path)
        if (path / "run.json").is_file():
            before = folder.about["asked"]
            same = json.loads(json.dumps(asked))
            other = [key for key in same if before.get(key) != same[key]]
            if other:
                raise RequestError(
                    f"{path} holds a run with another {other[0]} ({before.get(other[0])!r}, "
                    f"not {same[other[0]]!r}); name another folder"
                )
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RequestError(f"{path} holds something else; name a new folder")
        else:
            path.mkdir(parents=True, exist_ok=True)
            folder.write_json("run.json", {**about, "asked": dict(asked), "seconds": 0.0})
        return folder

    @property
    def about(self) -> dict[str, Any]:
        """The content of run.json. Raises DataError where it can't be read."""
        try:
            value = json.loads((self.path / "run.json").read_text("utf-8"))
            assert isinstance(value, dict) and isinstance(value["asked"], dict)
        except (OSError, ValueError, KeyError, AssertionError) as error:
            raise DataError(f"{self.path / 'run.json'} can't be read: {error}") from None
        return value

    def rows(self) -> list[Row]:
        """The rows so far, one for each id.

        A last line that a stopped program left incomplete is dropped, in the file too. Raises
        DataError for any other broken line.
        """
        path = self.path / "rows.jsonl"
        rows: dict[str, Row] = {}
        for number, line in enumerate(whole_lines(path), 1):
            try:
                row = Row.from_json(json.loads(line))
            except (ValueError, TypeError) as error:
                raise DataError(f"{path}, line {number}: {error}") from None
            rows[row.id] = row
        return list(rows.values())

    def add(self, rows: Sequence[Row], seconds: float) -> None:
        """Append rows, on the disk before this returns, and the time they took."""
        lines = "".join(json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rows)
        with (self.path / "rows.jsonl").open("a", encoding="utf-8") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        about = self.about
        about["seconds"] = round(about["seconds"] + seconds, 3)
        self.write_json("run.json", about)

    def keep_image(self, image: Image.Image, name: str) -> str:
        """Keep a copy of at most 320 pixels; its path in the folder."""
        small = image.copy()
        small.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        (self.path / "images").mkdir(exist_ok=True)
        # Ids hold slashes and what not; their hash is a safe and stable name.
        file = f"images/{hashlib.sha256(name.encode()).hexdigest()[:16]}.jpg"
        small.save(self.path / file, format="JPEG", quality=80)
        return file

    def finish(
        self, rows: Sequence[Row], scores: Iterable[Score], files: Mapping[str, str]
    ) -> None:
        """Write what is made from all rows: scores, the original's answers, further files."""
        model = str(self.about["asked"]["model"])
        groups = list(dict.fromkeys(row.group for row in rows))
        for group in groups:
            # One file a group, as the original has one a task or split; ids repeat across them.
            name = "answers.jsonl" if len(groups) == 1 else f"answers/{slug(group)}.jsonl"
            several = (answer_line(row, model) for row in rows if row.group == group)
            lines = (json.dumps(line, ensure_ascii=False) for line in several)
            self.write(name, "".join(f"{line}\n" for line in lines))
        self.write_json("scores.json", [score.to_json() for score in scores])
        for name, text in files.items():
            self.write(name, text)

    def forget_grades(self) -> None:
        """Take away a judge's scores, which are of other answers than those that came in now."""
        (self.path / "judged.json").unlink(missing_ok=True)

    def write_json(self, name: str, value: Any) -> None:
        """A JSON file, whole or not at all."""
        self.write(name, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    def write(self, name: str, text: str) -> None:
        """A text file, whole or not at all."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.part")
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)


def answer_line(row: Row, model: str) -> dict[str, Any]:
    """A row as an object of the original's answer files.

    `answer_id` depends on model, question and answer, so that a file can be made again; a row that
    failed has an empty text and says so in its metadata.
    """
    key = f"{model}\x1f{row.id}\x1f{row.answer}"
    metadata = {"failed": row.failed} if row.failed is not None else {}
    return {
        "question_id": row.facts.get("question_id", row.id),
        "prompt": row.question,
        "text": row.answer,
        "answer_id": hashlib.sha256(key.encode()).hexdigest()[:22],
        "model_id": model,
        "metadata": metadata,
    }


def slug(name: str) -> str:
    """A model's name as part of a file name: a slash or a colon would lead elsewhere."""
    kept = "".join(char if char.isalnum() or char in "._-" else "-" for char in name)
    return kept.strip("-.") or "model"
