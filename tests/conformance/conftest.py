"""The recorded results of the original: `VIP_LLAVA_GOLDEN`, or a folder beside the repository.

The suite runs on any folder of that format, with any number of cases. A test without a case is
skipped. Cases that are not compared, because this program refuses them by design or corrects a fault
of the original, are counted by kind; the counts are printed after the run.
"""

from __future__ import annotations

import functools
import gzip
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vip_llava.errors import DataError
from vip_llava.prompting.templates import IMAGE_TEXT, Template, get_template
from vip_llava.prompting.tokenization import (
    IGNORED_LABEL,
    IMAGE_ID,
    encode_training,
    training_turns,
)
from vip_llava.prompting.tokenizers import (
    ControlToken,
    JsonTokenizer,
    PieceTokenizer,
    TextTokenizer,
)
from vip_llava.prompting.turns import MarkedImage, Role, Turn

ROLES: dict[object, Role] = {"human": "user", "gpt": "assistant", "system": "system"}
BLANK = MarkedImage(Image.new("RGB", (1, 1)))
REPOSITORY = Path(__file__).resolve().parents[2]
#: (group, kind) -> number of cases, for the summary after the run.
Tally = Callable[[str, str], None]
_COUNTS = pytest.StashKey[Counter[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_COUNTS] = Counter()


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)  # in a worker of pytest-xdist
    if output is not None:
        output["recorded_cases"] = dict(session.config.stash[_COUNTS])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    counts = getattr(node, "workeroutput", {}).get("recorded_cases", {})
    node.config.stash[_COUNTS].update(counts)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    counts = config.stash[_COUNTS]
    if counts:
        terminalreporter.section("recorded cases")
        for name in sorted(counts):
            terminalreporter.write_line(f"{counts[name]:6d}  {name}")


@pytest.fixture(scope="session")
def tally(pytestconfig: pytest.Config) -> Tally:
    """`tally("tokens", "compared")` counts a case for the summary after the run."""
    counts = pytestconfig.stash[_COUNTS]

    def count(group: str, kind: str) -> None:
        counts[f"{group}: {kind}"] += 1

    return count


def recorded_cases(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a .jsonl file; none if the file does not exist."""
    if path.is_file():
        with path.open(encoding="utf-8") as lines:
            yield from (json.loads(line) for line in lines if line.strip())


def skip_without(cases: int, what: str) -> None:
    """Skip the test if the folder holds no case of its kind."""
    if not cases:
        pytest.skip(f"the folder of recorded results has no {what}")


def golden_folder() -> Path:
    """The folder of recorded results; it may not exist."""
    named = os.environ.get("VIP_LLAVA_GOLDEN")
    return Path(named) if named else REPOSITORY.parent / "shared" / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    folder = golden_folder()
    if not folder.is_dir():
        pytest.skip(f"no recorded results at {folder}: set VIP_LLAVA_GOLDEN to such a folder")
    return folder


@pytest.fixture(scope="session")
def family(golden: Path) -> Callable[[str], Path]:
    """`family("rendering")` is that family's folder, or the test is skipped with a reason."""

    def find(name: str) -> Path:
        folder = golden / name
        if not folder.is_dir():
            pytest.skip(f"the recorded results at {golden} have no family {name!r}")
        return folder

    return find


@pytest.fixture(scope="session")
def recorded_tokenizer(family: Callable[[str], Path]) -> Callable[[str], TextTokenizer]:
    """`recorded_tokenizer("sp_legacy")` is that stand-in, rebuilt from the recorded files."""
    folder = family("tokenizers")
    return functools.cache(lambda name: rebuilt_tokenizer(folder, name))


def rebuilt_tokenizer(folder: Path, name: str) -> TextTokenizer:
    config = json.loads((folder / name / "tokenizer_config.json").read_text("utf-8"))
    added = config["added_tokens_decoder"]
    if config["tokenizer_class"] == "LlamaTokenizer":
        return PieceTokenizer(
            (folder / "sentencepiece" / "tokenizer.model").read_bytes(),
            legacy=config["legacy"],
            add_bos=config["add_bos_token"],
            controls=[
                ControlToken(token["content"], int(id_), token["lstrip"], token["rstrip"])
                for id_, token in added.items()
            ],
            **{part: config[f"{part}_token"] for part in ("bos", "eos", "unk", "pad")},
        )
    return JsonTokenizer(rebuilt_backend(folder, name, config))


def rebuilt_backend(folder: Path, name: str, config: dict[str, Any]) -> Any:
    """The byte-level stand-ins; only `llama3_bos` puts a token in front by itself."""
    from tokenizers import AddedToken, Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    base = gzip.decompress((folder / "byte_bpe" / "base_tokenizer.json.gz").read_bytes())
    backend = Tokenizer.from_str(base.decode("utf-8"))
    tokens = sorted(config["added_tokens_decoder"].items(), key=lambda item: int(item[0]))
    backend.add_special_tokens(
        [AddedToken(token["content"], special=True, normalized=False) for _, token in tokens]
    )
    assert all(backend.token_to_id(token["content"]) == int(id_) for id_, token in tokens)
    byte_level = processors.ByteLevel(trim_offsets=False)
    backend.post_processor = byte_level  # type: ignore[assignment]
    if name == "llama3_bos":
        bos = config["bos_token"]
        front = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, backend.token_to_id(bos))],
        )
        backend.post_processor = processors.Sequence([byte_level, front])  # type: ignore[assignment]
    names = {
        part: config[part] for part in ("bos_token", "eos_token", "unk_token") if config.get(part)
    }
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


@dataclass(frozen=True)
class Version:
    """One recorded version: its template and tokenizer, and the faults that the original has there."""

    name: str
    template: Template
    tokenizer: TextTokenizer
    pad_id: int

    def turns(self, record: Mapping[str, Any]) -> tuple[Turn, ...]:
        """The record's turns; the `<image>` markers of a turn become one image in front of it."""
        turns = []
        for given in record["conversation"]:
            role, text = ROLES.get(given.get("from")), given.get("value")
            if role is None or not isinstance(text, str):
                raise DataError("a turn has a value, and is from human, gpt or system")
            marked = record["has_image"] and IMAGE_TEXT in text
            if marked and role != "user":
                raise DataError("an answer can't hold an image")
            if marked:
                text = text.replace(IMAGE_TEXT, "").strip()
            turns.append(Turn(role, text, (BLANK,) if marked else ()))
        return training_turns(self.template, turns)

    def encode(
        self, record: Mapping[str, Any], *, max_length: int | None = None
    ) -> tuple[list[int], list[int]]:
        marks = ("<im_start>", "<im_end>") if record.get("mm_use_im_start_end") else ("", "")
        return encode_training(
            self.tokenizer,
            self.template,
            self.turns(record),
            image_start=marks[0],
            image_end=marks[1],
            max_length=max_length,
        )

    def refusal(self, record: Mapping[str, Any]) -> str | None:
        """Why this program refuses a record by design, or None."""
        if "error" in record:
            return "the original raised an error"
        turns = record["conversation"]
        answers = [turn.get("value") or "" for turn in turns if turn["from"] == "gpt"]
        if record["has_image"] and any(IMAGE_TEXT in text for text in answers):
            return "an image in an answer"
        if self.template.caption_only and not record["has_image"]:
            return "a caption row without an image, whose text spells <image>"
        return None

    def spells_control(self, record: Mapping[str, Any]) -> bool:
        """A text holds a control token's name: a token for the original, text for us."""
        texts = [turn.text or "" for turn in self.turns(record)]
        return any(name in text for name in self.tokenizer.controls for text in texts)

    def leaves_answer_open(self, record: Mapping[str, Any]) -> bool:
        """An empty answer (the original reads it as "to be generated" and writes no end)."""
        return any(turn.text == "" and not turn.images for turn in self.turns(record))

    def ids_are_right(self, record: Mapping[str, Any]) -> bool:
        return not self.spells_control(record) and not self.leaves_answer_open(record)

    def with_faults(self, ids: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
        """Our sample with the original's fault at a begin token that the template spells.

        A tokenizer that puts it in front as well doubles it; with one that does not, the
        original takes it for the tokenizer's and drops the first token after each image.
        """
        if not self.template.begin:
            return ids, labels
        if self.tokenizer.begin_ids:
            return [*self.tokenizer.begin_ids, *ids], [IGNORED_LABEL, *labels]
        kept = [index for index in range(len(ids)) if not index or ids[index - 1] != IMAGE_ID]
        return [ids[index] for index in kept], [labels[index] for index in kept]

    @property
    def labels_drift(self) -> bool:
        """The generic `###` code, whose mask moves by a token with each turn."""
        return self.template.trained_as is not None


@pytest.fixture(scope="session")
def recorded_versions(
    family: Callable[[str], Path], recorded_tokenizer: Callable[[str], TextTokenizer]
) -> dict[str, Version]:
    facts = json.loads((family("tokens") / "versions.json").read_text("utf-8"))
    return {
        name: Version(
            name,
            get_template(fact["template"]),
            recorded_tokenizer(fact["tokenizer"]),
            fact["pad"],
        )
        for name, fact in facts.items()
    }
