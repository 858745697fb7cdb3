"""Prompts to token ids, with the places of images, and which ids training learns.

The ids of a prompt are those of the original program, which tokenizes the text between two images
in one go. Only the template's own text can become control tokens, and only a turn's `images` can
become images. Which tokens are learned follows from their character offsets in the prompt. This
module does not know pixels or models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vip_llava.errors import DataError
from vip_llava.prompting.templates import Span, Template, ViewsOf, one_view_each
from vip_llava.prompting.tokenizers import ControlToken, Piece, TextTokenizer, as_text_tokenizer
from vip_llava.prompting.turns import MarkedImage, Turn

__all__ = [
    "IGNORED_LABEL",
    "IMAGE_ID",
    "Encoded",
    "collate",
    "encode_prompt",
    "encode_spans",
    "encode_training",
    "training_turns",
]

IMAGE_ID = -200
"""Stands for one whole view in a list of ids; the same number as in the original."""
IGNORED_LABEL = -100


@dataclass(frozen=True, slots=True)
class Encoded:
    """Ids (a view is `IMAGE_ID`), for each whether training learns it, and the prompt as text."""

    ids: list[int]
    learned: list[bool]
    text: str = ""

    def expanded(self, tokens_per_view: int) -> Encoded:
        """A copy with each view as `tokens_per_view` times `IMAGE_ID`."""
        ids: list[int] = []
        learned: list[bool] = []
        for id_, counts in zip(self.ids, self.learned, strict=True):
            times = tokens_per_view if id_ == IMAGE_ID else 1
            ids += [id_] * times
            learned += [counts] * times
        return Encoded(ids, learned, self.text)


def encode_spans(tokenizer: TextTokenizer, spans: Sequence[Span], *, begin: bool = True) -> Encoded:
    """Ids of a prompt given as spans.

    Args:
        begin: put the tokenizer's own first token (BOS) in front.
    """
    ids: list[int] = list(tokenizer.begin_ids) if begin else []
    learned = [False] * len(ids)
    for chunk in _between_images(spans):
        if isinstance(chunk, Span):
            ids.append(IMAGE_ID)
            learned.append(False)
            continue
        for piece, counts in _encode_chunk(tokenizer, chunk):
            ids.append(piece.id)
            learned.append(counts)
    return Encoded(ids, learned, "".join(span.text for span in spans))


def encode_prompt(
    tokenizer: Any,
    template: Template,
    turns: Sequence[Turn],
    *,
    image_start: str = "",
    image_end: str = "",
    views: ViewsOf = one_view_each,
) -> Encoded:
    """Ids of a conversation in a template.

    Args:
        tokenizer: a `TextTokenizer` or a transformers fast tokenizer.
        image_start, image_end, views: see `Template.spans`.

    Raises:
        TemplateError: turns that the template can't hold.
    """
    text = as_text_tokenizer(tokenizer)
    spans = template.spans(turns, image_start=image_start, image_end=image_end, views=views)
    first = text.controls.get(template.begin)
    # One first token is enough where both the template and the tokenizer have one.
    doubled = first is not None and text.begin_ids[-1:] == (first.id,)
    return encode_spans(text, spans, begin=not doubled)


def encode_training(
    tokenizer: Any,
    template: Template,
    turns: Sequence[Turn],
    *,
    image_start: str = "",
    image_end: str = "",
    views: ViewsOf = one_view_each,
    tokens_per_view: int = 1,
    max_length: int | None = None,
) -> tuple[list[int], list[int]]:
    """Ids and labels of a training sample: the answers and their end marks are learned.

    Labels are the ids or `IGNORED_LABEL`; each view is `tokens_per_view` times `IMAGE_ID`.
    `max_length` cuts both.

    Raises:
        DataError: nothing would be learned, or the cut goes through an image.
        TemplateError: turns that the template can't hold.
    """
    form = template.trained_as or template
    encoded = encode_prompt(
        tokenizer, form, turns, image_start=image_start, image_end=image_end, views=views
    ).expanded(tokens_per_view)
    if not any(encoded.learned):
        raise DataError("no token of this conversation would be learned: it has no answer")
    ids, learned = encoded.ids[:max_length], encoded.learned[:max_length]
    if ids.count(IMAGE_ID) != encoded.ids.count(IMAGE_ID):
        raise DataError(f"max_length {max_length} cuts through the images of this conversation")
    if not any(learned):
        raise DataError(
            f"no token of this conversation would be learned: its first answer begins at token "
            f"{encoded.learned.index(True)} and max_length is {max_length}"
        )
    labels = [id_ if use else IGNORED_LABEL for id_, use in zip(ids, learned, strict=True)]
    return ids, labels


def training_turns(
    template: Template, turns: Sequence[Turn], images: Sequence[MarkedImage] = ()
) -> tuple[Turn, ...]:
    """The turns of a training row in the order that templates take, its images in the first one.

    A leading system turn is kept; a leading assistant turn is dropped, as in the original program.
    For stage 1 (`caption_only`) the question is dropped: the image is followed by its caption.

    Raises:
        DataError: user and assistant don't take turns, there is no user turn, or a caption row of
            another form.
    """
    head = list(turns[:1]) if turns and turns[0].role == "system" else []
    rest = list(turns[len(head) :])
    if not head and rest and rest[0].role != "user":
        del rest[0]
    for index, turn in enumerate(rest):
        if turn.role != ("assistant" if index % 2 else "user"):
            raise DataError(
                f"turn {index + 1} is the {turn.role}'s: user and assistant should take turns"
            )
    if not rest:
        raise DataError("the conversation has no user turn")
    if images:
        rest[0] = replace(rest[0], text=(rest[0].text or "").strip(), images=tuple(images))
    if template.caption_only:
        if len(head) + len(rest) != 2 or not rest[0].images:
            raise DataError("a caption row has two turns, and an image in the first")
        rest[0] = replace(rest[0], text="")
    return (*head, *rest)


def collate(
    samples: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    pad_id: int,
    max_length: int | None = None,
) -> dict[str, list[list[int]]]:
    """Pad (ids, labels) samples on the right: `input_ids`, `labels`, `attention_mask`, all [B, T].

    The mask follows from the lengths, so that a real token equal to `pad_id` is not masked.
    """
    cut = [(list(ids[:max_length]), list(labels[:max_length])) for ids, labels in samples]
    width = max((len(ids) for ids, _ in cut), default=0)
    batch: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
    for ids, labels in cut:
        missing = width - len(ids)
        batch["input_ids"].append(ids + [pad_id] * missing)
        batch["labels"].append(labels + [IGNORED_LABEL] * missing)
        batch["attention_mask"].append([1] * len(ids) + [0] * missing)
    return batch


def _between_images(spans: Sequence[Span]) -> Iterator[Span | list[Span]]:
    """Yield image spans, and the lists of spans before, between and after them."""
    chunk: list[Span] = []
    for span in spans:
        if span.kind == "image":
            yield chunk
            yield span
            chunk = []
        else:
            chunk.append(span)
    yield chunk


def _encode_chunk(tokenizer: TextTokenizer, chunk: Sequence[Span]) -> Iterator[tuple[Piece, bool]]:
    """Pieces of the text between two images, and whether each holds a supervised character."""
    text = "".join(span.text for span in chunk)
    learned: list[bool] = []
    for span in chunk:
        learned += [span.supervised] * len(span.text)
    learned.append(False)  # for a blank that the tokenizer adds at the end
    for start, end, control in _parts(tokenizer, chunk, text):
        if control is not None:
            if start == 0:
                for id_ in tokenizer.before_control(control):
                    yield Piece(id_, 0, 0), learned[0]
            yield Piece(control.id, start, end), learned[start]
            continue
        for piece in tokenizer.plain(text[start:end], at_start=start == 0):
            first, last = start + piece.start, start + piece.end
            # An added blank has no width; it counts with the character behind it.
            yield piece, any(learned[first : max(last, first + 1)])


def _parts(
    tokenizer: TextTokenizer, chunk: Sequence[Span], text: str
) -> list[tuple[int, int, ControlToken | None]]:
    """Split a chunk at control tokens that the template spells: (start, end, token or None)."""
    parts: list[tuple[int, int, ControlToken | None]] = []
    plain_from = 0
    left_stop = 0
    found = list(_controls(tokenizer, chunk, text))
    for index, (start, end, token) in enumerate(found):
        stop = start
        if token.strip_left:
            stop = plain_from + len(text[plain_from:start].rstrip())
        if stop > plain_from:
            parts.append((plain_from, stop, None))
        parts.append((start, end, token))
        plain_from = end
        if token.strip_right:
            left_stop = found[index + 1][0] if index + 1 < len(found) else len(text)
            plain_from = left_stop - len(text[end:left_stop].lstrip())
    if len(text) > plain_from:
        parts.append((plain_from, len(text), None))
    return parts


def _controls(
    tokenizer: TextTokenizer, chunk: Sequence[Span], text: str
) -> Iterator[tuple[int, int, ControlToken]]:
    """Control tokens inside contiguous template text."""
    pattern = tokenizer.control_pattern
    if pattern is None:
        return
    start = place = 0
    for span in [*chunk, Span("", "text")]:
        if span.kind == "text":
            for match in pattern.finditer(text, start, place):
                yield match.start(), match.end(), tokenizer.controls[match.group()]
            start = place + len(span.text)
        place += len(span.text)
