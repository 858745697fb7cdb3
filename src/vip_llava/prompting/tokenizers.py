"""Text to token ids and back, with control tokens kept apart.

`PieceTokenizer` runs a sentencepiece model as the slow tokenizers of transformers did:
Vicuna checkpoints ship nothing else and their ids depend on it. `JsonTokenizer` wraps a transformers
tokenizer (`tokenizer.json`). Unlike transformers, both guarantee that `plain` never returns a
control token, whatever the text spells. This module does not know templates, images or labels.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vip_llava.errors import CheckpointError

__all__ = [
    "ControlToken",
    "JsonTokenizer",
    "Piece",
    "PieceTokenizer",
    "TextTokenizer",
    "as_text_tokenizer",
    "open_tokenizer",
]


@dataclass(frozen=True, slots=True)
class ControlToken:
    """A special token; `strip_left` and `strip_right` remove white space beside it."""

    text: str
    id: int
    strip_left: bool = False
    strip_right: bool = False


class Piece(NamedTuple):
    """A token and the characters it stands for; `start == end` for an added blank."""

    id: int
    start: int
    end: int


class TextTokenizer(ABC):
    """The interface that prompts, training and the engine use."""

    controls: Mapping[str, ControlToken]
    begin_ids: tuple[int, ...]
    """Ids that the tokenizer itself puts in front of a prompt (BOS)."""
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    pad_id: int | None

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids without control tokens; incomplete characters become U+FFFD."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the files from which `open_tokenizer` restores this tokenizer."""

    @abstractmethod
    def _plain(self, text: str, at_start: bool) -> list[Piece]:
        """As `plain`, but the result may contain control tokens that the text spells."""

    def plain(self, text: str, *, at_start: bool) -> list[Piece]:
        """Tokens of ordinary text; never a control token, even if the text spells one.

        Args:
            at_start: the text begins its prompt, or follows an image directly.
        """
        if not text:
            return []
        pieces = self._plain(text, at_start)
        if any(piece.id in self._forbidden for piece in pieces):
            pieces = self._character_by_character(text, at_start)
        return pieces

    def before_control(self, token: ControlToken) -> list[int]:
        """Ids that this tokenizer puts in front of a control token at the start of a text."""
        return []

    @cached_property
    def control_pattern(self) -> re.Pattern[str] | None:
        """Matches control tokens, the longest one where several start at the same place."""
        texts = sorted((text for text in self.controls if text), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts))) if texts else None

    @cached_property
    def _forbidden(self) -> frozenset[int]:
        # A tokenizer without byte fallback returns the unknown token for a rare character. MPT's
        # unknown token is also its end token, which ordinary text must not produce.
        rare = {self.unk_id} - {self.bos_id, self.eos_id}
        return frozenset(token.id for token in self.controls.values()) - rare

    def _character_by_character(self, text: str, at_start: bool) -> list[Piece]:
        """Tokenize each character alone, where a control token is also an ordinary word."""
        pieces: list[Piece] = []
        for index, letter in enumerate(text):
            for piece in self._plain(letter, at_start and index == 0):
                if piece.id in self._forbidden:
                    raise CheckpointError(
                        f"the tokenizer returns control token {piece.id} for the character {letter!r}"
                    )
                pieces.append(Piece(piece.id, index + piece.start, index + piece.end))
        return pieces


_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_BLANK = "\u2581"
# A protobuf message merges with what is appended to it: normalizer_spec {add_dummy_prefix: false}.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class PieceTokenizer(TextTokenizer):
    """A sentencepiece model as transformers' slow `LlamaTokenizer` runs it.

    With `legacy` every run of text between control tokens starts with a blank, as in Vicuna's
    training; without it only the start of the prompt does, as Phi-3 needs it.
    """

    def __init__(
        self,
        model: bytes,
        *,
        legacy: bool = True,
        controls: Iterable[ControlToken] = (),
        add_bos: bool = True,
        bos: str | None = "<s>",
        eos: str | None = "</s>",
        unk: str = "<unk>",
        pad: str | None = None,
        special: Iterable[str] = (),
    ) -> None:
        """`special`: control tokens that need no blank in front at the start of a non-legacy prompt."""
        from sentencepiece import SentencePieceProcessor

        self._model = model
        self._processor = SentencePieceProcessor(model_proto=model)
        self._bare = SentencePieceProcessor(model_proto=model + _NO_DUMMY_PREFIX)
        self.legacy = legacy
        self.controls = {token.text: token for token in controls} or {
            text: ControlToken(text, self._processor.piece_to_id(text))
            for text in (unk, bos, eos)
            if text is not None
        }
        self._names = {"bos": bos, "eos": eos, "unk": unk, "pad": pad}
        self.bos_id, self.eos_id, self.unk_id, self.pad_id = (
            self._id(text) for text in (bos, eos, unk, pad)
        )
        self._add_bos = add_bos
        self.begin_ids = (self.bos_id,) if add_bos and self.bos_id is not None else ()
        self._special = frozenset(special) | {text for text in (bos, eos, unk, pad) if text}
        self._unk_text = unk
        self._unk_pieces = len(self._bare.encode(unk, out_type=str))

    @classmethod
    def from_folder(cls, folder: Path) -> PieceTokenizer:
        """Open `tokenizer.model` and read the control tokens from the JSON files beside it."""
        config = _read_json(folder / "tokenizer_config.json")
        names = {name: _name(config.get(f"{name}_token")) for name in ("bos", "eos", "unk", "pad")}
        tokens = [
            ControlToken(
                str(entry["content"]),
                int(index),
                bool(entry.get("lstrip")),
                bool(entry.get("rstrip")),
            )
            for index, entry in config.get("added_tokens_decoder", {}).items()
        ]
        added = _read_json(folder / "added_tokens.json")
        known = {token.text for token in tokens}
        tokens += [ControlToken(text, int(id_)) for text, id_ in added.items() if text not in known]
        model = (folder / "tokenizer.model").read_bytes()
        if not config.get("added_tokens_decoder"):
            tokens += cls(model).controls.values()
        return cls(
            model,
            legacy=bool(config.get("legacy", True)),
            controls=tokens,
            add_bos=bool(config.get("add_bos_token", True)),
            bos=names["bos"] or "<s>",
            eos=names["eos"] or "</s>",
            unk=names["unk"] or "<unk>",
            pad=names["pad"],
            special=[
                text for text in map(_name, config.get("additional_special_tokens") or []) if text
            ],
        )

    def save(self, folder: Path) -> None:
        """Write `tokenizer.model` and `tokenizer_config.json`."""
        (folder / "tokenizer.model").write_bytes(self._model)
        config: dict[str, Any] = {
            "tokenizer_class": "LlamaTokenizer",
            "legacy": self.legacy,
            "add_bos_token": self._add_bos,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "additional_special_tokens": sorted(self._special - set(self._names.values())),
            "added_tokens_decoder": {
                str(token.id): {
                    "content": token.text,
                    "lstrip": token.strip_left,
                    "rstrip": token.strip_right,
                    "normalized": False,
                    "single_word": False,
                    "special": True,
                }
                for token in self.controls.values()
            },
        }
        config |= {f"{name}_token": text for name, text in self._names.items()}
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (folder / "tokenizer_config.json").write_text(text, "utf-8")

    def decode(self, ids: Sequence[int]) -> str:
        # The unknown token is a control token and has no text.
        hidden = {token.id for token in self.controls.values()}
        size = self._processor.get_piece_size()
        text = self._processor.decode([id_ for id_ in ids if id_ not in hidden and 0 <= id_ < size])
        return str(text)

    def before_control(self, token: ControlToken) -> list[int]:
        if self.legacy or token.text in self._special:
            return []
        return [piece.id for piece in self._plain("", True)]

    def _plain(self, text: str, at_start: bool) -> list[Piece]:
        if self.legacy:
            return self._place(self._processor.encode(text, out_type=str), text, -1)
        written = text.replace(_BLANK, " ")
        begin = 0
        if at_start:
            written, begin = _BLANK + written, -1
        if written.startswith((_BLANK, " ")):
            # Encoded behind the unknown token's text, leading blanks are kept as they are.
            names = self._bare.encode(self._unk_text + written, out_type=str)[self._unk_pieces :]
        else:
            names = self._bare.encode(written, out_type=str)
        return self._place(names, text, begin)

    def _place(self, names: Sequence[str], text: str, begin: int) -> list[Piece]:
        """The characters of each piece; `begin` is -1 if the first one has an added blank."""
        pieces: list[Piece] = []
        place, missing = begin, 0
        for name in names:
            id_ = self._processor.piece_to_id(name)
            if _BYTE_PIECE.fullmatch(name):
                if not missing:
                    missing = len(text[place : place + 1].encode("utf-8", "replace")) or 1
                end = place + 1
                missing -= 1
                step = 0 if missing else 1
            else:
                end, step = place + len(name), len(name)
            pieces.append(Piece(id_, max(place, 0), min(max(end, 0), len(text))))
            place += step
        return pieces

    def _id(self, text: str | None) -> int | None:
        if text is None:
            return None
        if text in self.controls:
            return self.controls[text].id
        id_ = int(self._processor.piece_to_id(text))
        return id_ if self._processor.id_to_piece(id_) == text else None


class JsonTokenizer(TextTokenizer):
    """A transformers tokenizer with a `tokenizers` backend (`tokenizer.json`)."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer`: a `PreTrainedTokenizerFast` or another class with the same backend."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise CheckpointError(
                f"{type(tokenizer).__name__} has no tokenizers backend; "
                "give a fast tokenizer, or open a folder with open_tokenizer"
            )
        self._tokenizer = tokenizer
        self.controls = {
            token.content: ControlToken(token.content, id_, token.lstrip, token.rstrip)
            for id_, token in tokenizer.added_tokens_decoder.items()
        }
        self.bos_id = tokenizer.bos_token_id
        self.eos_id = tokenizer.eos_token_id
        self.unk_id = tokenizer.unk_token_id
        self.pad_id = tokenizer.pad_token_id
        probe = backend.encode("x", add_special_tokens=True)
        marks = [*probe.special_tokens_mask, 0]
        self.begin_ids = tuple(probe.ids[: marks.index(0)])
        self._first, self._later = _bare_backends(json.loads(backend.to_str()))

    def save(self, folder: Path) -> None:
        """Write the files that transformers writes for this tokenizer."""
        self._tokenizer.save_pretrained(folder)

    def decode(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)

    def _plain(self, text: str, at_start: bool) -> list[Piece]:
        backend = self._first if at_start else self._later
        encoding = backend.encode(text, add_special_tokens=False)
        return [
            Piece(id_, start, end)
            for id_, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
        ]


def _bare_backends(settings: dict[str, Any]) -> tuple[Any, Any]:
    """Tokenizers without added tokens, for the start of a text and for what follows."""
    from tokenizers import Tokenizer

    settings |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    first = Tokenizer.from_str(json.dumps(settings))
    if not _never_prepend(settings.get("pre_tokenizer")):
        return first, first
    return first, Tokenizer.from_str(json.dumps(settings))


def _never_prepend(part: dict[str, Any] | None) -> bool:
    """Turn off, in place, a blank that is added only in front of the first text; True if there was one."""
    if part is None:
        return False
    changed = [_never_prepend(inner) for inner in part.get("pretokenizers", [])]
    if part.get("prepend_scheme") == "first":
        part["prepend_scheme"] = "never"
        return True
    return any(changed)


def as_text_tokenizer(tokenizer: Any) -> TextTokenizer:
    """`tokenizer` itself if it is a `TextTokenizer`, else a wrapped transformers tokenizer."""
    return tokenizer if isinstance(tokenizer, TextTokenizer) else JsonTokenizer(tokenizer)


def open_tokenizer(
    folder: Path, *, prefer: Literal["sentencepiece", "json"] = "sentencepiece"
) -> TextTokenizer:
    """The tokenizer of a model folder.

    Args:
        prefer: which file to use where both exist. The original program uses `tokenizer.model`,
            transformers' VipLlava uses `tokenizer.json`.

    Raises:
        CheckpointError: the folder has neither file, or a damaged one.
    """
    has_model = (folder / "tokenizer.model").is_file()
    has_json = (folder / "tokenizer.json").is_file()
    if not has_model and not has_json:
        raise CheckpointError(f"{folder} has neither tokenizer.model nor tokenizer.json")
    try:
        if has_model and (prefer == "sentencepiece" or not has_json):
            return PieceTokenizer.from_folder(folder)
        from transformers import PreTrainedTokenizerFast

        return JsonTokenizer(PreTrainedTokenizerFast.from_pretrained(folder))
    except CheckpointError:
        raise
    # Both libraries raise many kinds of exceptions for a damaged file.
    except Exception as error:
        raise CheckpointError(f"the tokenizer in {folder} can't be read: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return content


def _name(entry: Any) -> str | None:
    """The text of a token that is given as a string or as an added-token object."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) and entry else None
