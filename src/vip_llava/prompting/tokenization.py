"""Prompts to ids, with images in place, and which of the ids training learns.

The ids of an ordinary prompt are those of the original, which tokenizes everything between two
images in one go; but here only the template's own words can become control tokens, and only a
message's `images` can become images. Which tokens are learned is read off the places of the
tokens in the text, not counted by tokenizing parts again. This module knows no tensors of
images and no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vip_llava.errors import DataError
from vip_llava.prompting.templates import IMAGE_TEXT, Message, Span, Template
from vip_llava.prompting.tokenizers import ControlToken, Piece, TextTokenizer, as_text_tokenizer

__all__ = [
    "IGNORED_LABEL",
    "IMAGE_ID",
    "Encoded",
    "collate",
    "encode_marked",
    "encode_prompt",
    "encode_spans",
    "encode_training",
    "record_messages",
]

IMAGE_ID = -200
"""Stands for one whole view in a list of ids; the number is that of the original."""
IGNORED_LABEL = -100


@dataclass(frozen=True, slots=True)
class Encoded:
    """Ids (a view is `IMAGE_ID`) and, for each of them, whether training learns it."""

    ids: list[int]
    learned: list[bool]

    def expanded(self, tokens_per_view: int) -> Encoded:
        """The same with each view as `tokens_per_view` times `IMAGE_ID`."""
        ids: list[int] = []
        learned: list[bool] = []
        for id_, counts in zip(self.ids, self.learned, strict=True):
            times = tokens_per_view if id_ == IMAGE_ID else 1
            ids += [id_] * times
            learned += [counts] * times
        return Encoded(ids, learned)


def encode_spans(tokenizer: TextTokenizer, spans: Sequence[Span], *, begin: bool = True) -> Encoded:
    """Ids of a prompt given as spans; `begin`: put the tokenizer's own first token in front."""
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
    return Encoded(ids, learned)


def encode_prompt(
    tokenizer: Any,
    template: Template,
    messages: Sequence[Message],
    *,
    image_start: str = "",
    image_end: str = "",
) -> Encoded:
    """Ids of a conversation in a template; `tokenizer` is ours or a transformers fast tokenizer.

    Raises TemplateError for messages that the template can't hold.
    """
    text = as_text_tokenizer(tokenizer)
    spans = template.spans(messages, image_start=image_start, image_end=image_end)
    first = text.controls.get(template.begin)
    # One first token is enough where both the template and the tokenizer have one.
    doubled = first is not None and text.begin_ids[-1:] == (first.id,)
    return encode_spans(text, spans, begin=not doubled)


def encode_marked(tokenizer: Any, prompt: str) -> list[int]:
    """Ids of a whole prompt string in which `<image>` and control tokens mean what they spell.

    For prompts from a trusted place only (a test, a file of one's own); never for typed text.
    """
    spans: list[Span] = []
    for index, text in enumerate(prompt.split(IMAGE_TEXT)):
        if index:
            spans.append(Span(IMAGE_TEXT, "image"))
        spans.append(Span(text))
    return encode_spans(as_text_tokenizer(tokenizer), spans).ids


def encode_training(
    tokenizer: Any,
    template: Template,
    messages: Sequence[Message],
    *,
    image_start: str = "",
    image_end: str = "",
    tokens_per_view: int = 1,
    max_length: int | None = None,
) -> tuple[list[int], list[int]]:
    """Ids and labels of a training sample: the answers and their end marks are learned.

    Labels are the ids or `IGNORED_LABEL`; each view is `tokens_per_view` times `IMAGE_ID`.
    `max_length` cuts both. Raises DataError if nothing would be learned or the cut goes through
    an image, and TemplateError for messages that the template can't hold.
    """
    form = template.trained_as or template
    encoded = encode_prompt(
        tokenizer, form, messages, image_start=image_start, image_end=image_end
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


def record_messages(
    template: Template,
    conversation: Sequence[Mapping[str, str]],
    *,
    has_image: bool,
    images: int | None = None,
) -> tuple[Message, ...]:
    """Messages of a training record's `conversations` (`from` human or gpt, `value`).

    With an image, a turn's `<image>` marker becomes its image, in front of the text; without
    one it stays text. Markers of one turn count once, as in the original; where `images` says
    that the record has several, each marker is one of them. A first turn that is not the human's is
    left out, as in the original, but for a system turn, which is kept.
    Raises DataError for other senders, a wrong order, a caption record of another form, or (with
    `images`) another number of markers than images.
    """
    messages: list[Message] = []
    turns = list(conversation)
    if turns and turns[0].get("from") == "system":
        messages.append(Message("system", str(turns.pop(0).get("value") or "")))
    elif turns and turns[0].get("from") != "human":
        del turns[0]
    begun = len(messages)
    each = images is not None and images > 1
    for index, turn in enumerate(turns):
        sender, value = turn.get("from"), turn.get("value")
        if sender not in ("human", "gpt") or not isinstance(value, str):
            raise DataError(f"turn {index + 1} should have a value, and from human or gpt")
        if (sender == "human") != (index % 2 == 0):
            raise DataError(f"turn {index + 1} is from {sender}: human and gpt should take turns")
        markers = value.count(IMAGE_TEXT) if has_image else 0
        if markers and sender == "gpt":
            raise DataError(f"turn {index + 1}: an answer can't hold an image")
        text = value.replace(IMAGE_TEXT, "").strip() if markers else value
        views = markers if each else min(markers, 1)
        messages.append(Message("user" if sender == "human" else "assistant", text, views))
    if len(messages) == begun:
        raise DataError("the conversation has no turn of a human")
    found = sum(message.images for message in messages)
    if has_image and images is not None and found != images:
        raise DataError(
            f"the conversation has {found} <image> marker{'s' * (found != 1)} "
            f"for {images} image{'s' * (images != 1)}"
        )
    if template.caption_only:
        if len(messages) != 2 or not messages[0].images:
            raise DataError("a caption record has two turns, and <image> in the first")
        messages[0] = Message("user", "", messages[0].images)
    return tuple(messages)


def collate(
    samples: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    pad_id: int,
    max_length: int | None = None,
) -> dict[str, list[list[int]]]:
    """Pad (ids, labels) samples on the right: `input_ids`, `labels`, `attention_mask`, all [B, T].

    The mask comes from the lengths, so that a token which happens to be `pad_id` still counts.
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
    """Images, and the lists of spans before, between and after them."""
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
    """Pieces of the text between two images, and whether each holds a learned character."""
    text = "".join(span.text for span in chunk)
    learned: list[bool] = []
    for span in chunk:
        learned += [span.supervised] * len(span.text)
    learned.append(False)  # for an added blank at the very end
    for start, end, control in _parts(tokenizer, chunk, text):
        if control is not None:
            if start == 0:
                for id_ in tokenizer.before_control(control):
                    yield Piece(id_, 0, 0), learned[0]
            yield Piece(control.id, start, end), learned[start]
            continue
        for piece in tokenizer.plain(text[start:end], at_start=start == 0):
            first, last = start + piece.start, start + piece.end
            # An added blank has no width; it belongs to what follows it.
            yield piece, any(learned[first : max(last, first + 1)])


def _parts(
    tokenizer: TextTokenizer, chunk: Sequence[Span], text: str
) -> list[tuple[int, int, ControlToken | None]]:
    """Cut a chunk at the control tokens that the template spelled: (start, end, token or None)."""
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
    """Control tokens inside stretches that the template wrote without a break."""
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
