"""Rows of a data file as cards for a page: the images and prompts that training would use.

A card uses the code path of a training sample: the same marks for the same seed and epoch, the same
prompt and labels. With a processor, the card shows the prompt token by token and truncated like the
sample; without one, the template's text. This module writes no file and does not know HTML.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, cast

from vip_llava.data.html_page import Card, PromptPart
from vip_llava.data.reading import RowFile
from vip_llava.data.samples import SampleDataset
from vip_llava.errors import DataError, VipLlavaError
from vip_llava.prompting.processor import Processor
from vip_llava.prompting.templates import IMAGE_TEXT, get_template
from vip_llava.prompting.tokenization import IGNORED_LABEL
from vip_llava.prompting.turns import Turn, images_of

__all__ = ["Viewer", "token_parts"]

_BROKEN = "\ufffd"
_CONTEXT = 4  # preceding tokens that affect the decoding of one, such as its leading blank


class Viewer:
    """Makes cards of the rows of a file.

    Args:
        rows: the file.
        images: the folder of images.
        processor: shows tokens and focal views of this model.
        template: name of the chat template, used without a processor.
        seed: of the training run.
        epoch: of the training run.
        max_length: truncates the tokens.
    """

    def __init__(
        self,
        rows: RowFile,
        images: Path,
        *,
        processor: Processor | None = None,
        template: str = "llava_v1",
        seed: int = 0,
        epoch: int = 0,
        max_length: int | None = None,
    ) -> None:
        self.rows = rows
        self.processor = processor
        self.template = get_template(template) if processor is None else processor.template
        # `SampleDataset.conversation` uses only the template of its processor.
        conversing = processor or cast("Processor", SimpleNamespace(template=self.template))
        self.samples = SampleDataset(rows, images, conversing, seed=seed, max_length=max_length)
        self.samples.set_epoch(epoch)

    def card(self, index: int) -> Card:
        """The card of row number `index` (from 0), with the reason if the row is bad."""
        card = Card(where=f"row {index + 1}", id="")
        try:
            card = replace(card, id=str(self.rows.raw(index).get("id", "")))
            row = self.samples.row(index)
            card = replace(card, kind=row.kind)
            turns = self.samples.conversation(row, index)
            images = images_of(turns)
            shown = [each.shown for each in images]
            card = replace(
                card,
                images=tuple(
                    (f"{name}, {image.width} x {image.height}", image)
                    for name, image in zip(row.images, shown, strict=True)
                ),
                regions=tuple(region for each in images for region in each.regions),
            )
            if self.processor is None:
                return self._with_spans(card, turns)
            return self._with_tokens(card, turns, self.processor)
        except VipLlavaError as error:
            reason = str(error).removeprefix(f"{self.rows.where(index)}: ")
            return replace(card, problem=reason.removeprefix(f"id {card.id!r}: "))

    def length(self, index: int) -> int:
        """Tokens of the training sample of a row. Needs a processor.

        Raises a VipLlavaError if the row is bad, for example without an answer to learn.
        """
        assert self.processor is not None
        turns = self.samples.conversation(self.samples.row(index), index)
        return len(self._encoded(turns, self.processor)[0])

    def _encoded(self, turns: Sequence[Turn], processor: Processor) -> tuple[list[int], list[int]]:
        return processor.encode_training(turns, max_length=self.samples.max_length)

    def _with_spans(self, card: Card, turns: Sequence[Turn]) -> Card:
        form = self.template.trained_as or self.template
        parts = tuple(
            PromptPart(span.text, span.supervised, _KINDS[span.kind]) for span in form.spans(turns)
        )
        said = [part for part in parts if part.kind == "text"]
        words = sum(len(part.text.split()) for part in said)
        learned = sum(len(part.text.split()) for part in said if part.learned)
        if not learned:
            raise DataError("no turn has an answer to learn")
        return replace(card, parts=parts, facts=(f"{words} words", f"{learned} of them learned"))

    def _with_tokens(self, card: Card, turns: Sequence[Turn], processor: Processor) -> Card:
        ids, labels = self._encoded(turns, processor)
        learned = sum(label != IGNORED_LABEL for label in labels)
        facts = [f"{len(ids)} tokens", f"{learned} of them learned"]
        cut = len(processor.encode_training(turns)[0]) - len(ids)
        if cut:
            facts.append(f"{cut} more are cut off at {self.samples.max_length}")
        images = list(card.images)
        for image in images_of(turns)[:1]:
            close = processor.views(image)[1:]
            images += [(f"focal view {number}", view) for number, view in enumerate(close, 1)]
        return replace(
            card,
            images=tuple(images),
            parts=tuple(token_parts(processor, ids, labels)),
            tokens=True,
            facts=tuple(facts),
        )


_KINDS: dict[str, Literal["frame", "text", "image"]] = {
    "template": "frame",
    "text": "text",
    "image": "image",
}


def token_parts(
    processor: Processor, ids: Sequence[int], labels: Sequence[int]
) -> Iterator[PromptPart]:
    """A part for each token of a sample; the tokens of an image are one part.

    Tokens that are only part of a character are shown with those that complete it.
    """
    controls = {token.id: token.text for token in processor.tokenizer.controls.values()}
    place = 0
    while place < len(ids):
        end = place + 1
        learned = labels[place] != IGNORED_LABEL
        if ids[place] == processor.image_token_id:
            while end < len(ids) and ids[end] == processor.image_token_id:
                end += 1
            yield PromptPart(f"{IMAGE_TEXT} x {end - place}", learned, "image")
        elif ids[place] in controls:
            yield PromptPart(controls[ids[place]], learned, "frame")
        else:
            text = _text(processor, ids, place, end)
            while text.endswith(_BROKEN) and end < min(len(ids), place + 4):
                end += 1
                text = _text(processor, ids, place, end)
            yield PromptPart(text, learned)
        place = end


def _text(processor: Processor, ids: Sequence[int], start: int, end: int) -> str:
    """The text of tokens start..end after the preceding ones."""
    first = max(0, start - _CONTEXT)
    decode = processor.tokenizer.decode
    before, both = decode(ids[first:start]), decode(ids[first:end])
    return both[len(before) :] if both.startswith(before) else decode(ids[start:end])
