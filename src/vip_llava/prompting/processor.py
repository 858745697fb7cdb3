"""Conversations with images to model inputs: views, image tokens, chat template, left padding.

Images come in drawn; their regions only choose focal views. An image gets into a prompt through
`Turn.images` and in no other way: text that spells `<image>` or a control token stays text. The
processor does not draw regions, open files or run a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from PIL import Image

from vip_llava.errors import CheckpointError, RequestError
from vip_llava.prompting.focal_views import (
    FocalSettings,
    fine_marks,
    focal_square,
    focal_view,
    view_captions,
    view_remarks,
)
from vip_llava.prompting.geometry import ImageGeometry
from vip_llava.prompting.templates import Template, get_template
from vip_llava.prompting.tokenization import IMAGE_ID, encode_prompt, encode_training
from vip_llava.prompting.tokenizers import as_text_tokenizer
from vip_llava.prompting.turns import MarkedImage, Turn, images_of
from vip_llava.regions import Region

__all__ = ["IMAGE_END", "IMAGE_START", "FocalSettings", "MarkFinder", "Processor"]

IMAGE_START = "<im_start>"
IMAGE_END = "<im_end>"
"""Tokens around each image where a checkpoint was trained with `mm_use_im_start_end`."""


MarkFinder = Callable[[Image.Image, Sequence[str]], tuple[tuple[str, Region], ...]]
"""From an RGB image and the texts about it to the marks on it that the texts name, with their words."""


class Processor:
    """Turns conversations into model inputs, and generated ids into text."""

    def __init__(
        self,
        tokenizer: Any,
        geometry: ImageGeometry,
        template: Template,
        image_token_id: int,
        tokens_per_view: int,
        focal: FocalSettings | None = None,
        use_start_end: bool = False,
        find_marks: MarkFinder | None = None,
    ) -> None:
        """`tokenizer`: a `TextTokenizer` or a transformers fast tokenizer.

        `tokens_per_view`: ids of `image_token_id` for each view. `focal`: also show a square
        around each region. `use_start_end`: put `<im_start>`, `<im_end>` around each view.
        `find_marks`: finds marks that were drawn on an image by hand, for focal views of them.
        Raises CheckpointError if the tokenizer lacks what the template or settings need.
        """
        self.tokenizer = as_text_tokenizer(tokenizer)
        self.geometry = geometry
        self.template = template
        self.image_token_id = image_token_id
        self.tokens_per_view = tokens_per_view
        self.focal = focal
        self.use_start_end = use_start_end
        self.find_marks = find_marks
        if tokens_per_view < 1:
            raise CheckpointError(f"a view needs at least one token, not {tokens_per_view}")
        missing = {IMAGE_START, IMAGE_END} - set(self.tokenizer.controls)
        if use_start_end and missing:
            raise CheckpointError(
                f"the model wants start and end tokens around an image, but its tokenizer has no "
                f"{' and no '.join(sorted(missing))}"
            )

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer: the end token and the template's own end mark."""
        ids = {self.tokenizer.eos_id}
        if mark := self.tokenizer.controls.get(self.template.stop):
            ids.add(mark.id)
        return frozenset(id_ for id_ in ids if id_ is not None)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Texts that end an answer where the template's end mark is no token of its own."""
        stop = self.template.stop
        return () if not stop or stop in self.tokenizer.controls else (stop,)

    @property
    def pad_id(self) -> int:
        """Id for padding; it is masked, so any id of the vocabulary does."""
        for id_ in (self.tokenizer.pad_id, self.tokenizer.eos_id, self.tokenizer.unk_id):
            if id_ is not None:
                return id_
        return 0

    def views(self, image: MarkedImage) -> list[Image.Image]:
        """The images that the model sees of one image: the drawn image, and a focal view a region."""
        drawn = image.shown
        views = [drawn]
        if self.focal is not None:
            for region in image.regions:
                square = focal_square(region, drawn.size, self.focal)
                marked = drawn
                if self.focal.fine and image.unmarked is not drawn:
                    marked = fine_marks(image.unmarked, image.regions, square)
                views.append(focal_view(marked, square, self.geometry.size, self.geometry.fill))
        return views

    def pixels(self, turns: Sequence[Turn]) -> torch.Tensor | None:
        """All views of a conversation in the order of its placeholders: float32 [N, 3, S, S].

        None for a conversation without images.
        """
        views = [view for image in images_of(turns) for view in self.views(image)]
        if not views:
            return None
        return torch.stack([torch.from_numpy(self.geometry.pixels(view)) for view in views])

    def encode(self, turns: Sequence[Turn]) -> tuple[list[int], str]:
        """Ids and text of a prompt that ends with an open answer.

        Each view is `tokens_per_view` times `image_token_id` in the ids and `<image>` in the text.

        Raises:
            RequestError: a conversation without a user turn.
            TemplateError: turns that the template can't hold.
        """
        encoded = encode_prompt(
            self.tokenizer, self.template, _with_open_answer(turns), **self._view_options()
        )
        return self._with_placeholders(encoded.expanded(self.tokens_per_view).ids), encoded.text

    def encode_training(
        self, turns: Sequence[Turn], *, max_length: int | None = None
    ) -> tuple[list[int], list[int]]:
        """Ids as from `encode`, and labels: answers are learned, all else is -100.

        `max_length` counts expanded views. Raises DataError if nothing would be learned.
        """
        ids, labels = encode_training(
            self.tokenizer,
            self.template,
            _with_open_answer(turns),
            **self._view_options(),
            tokens_per_view=self.tokens_per_view,
            max_length=max_length,
        )
        return self._with_placeholders(ids), labels

    def __call__(self, conversations: Sequence[Sequence[Turn]]) -> dict[str, torch.Tensor]:
        """Left-padded `input_ids` and `attention_mask` [B, T] and `pixel_values` [N, 3, S, S].

        N counts all views in row order; the key is absent when there are none.
        """
        if not conversations:
            raise RequestError("there is no conversation to process")
        rows = [self.encode(turns)[0] for turns in conversations]
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.pad_id, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, width - len(row) :] = torch.tensor(row, dtype=torch.long)
            mask[index, width - len(row) :] = 1
        inputs = {"input_ids": ids, "attention_mask": mask}
        pixels = [found for turns in conversations if (found := self.pixels(turns)) is not None]
        if pixels:
            inputs["pixel_values"] = torch.cat(pixels)
        return inputs

    def decode(self, ids: Sequence[int] | torch.Tensor) -> str:
        """The text of generated ids, without control tokens and surrounding white space."""
        listed = ids.tolist() if isinstance(ids, torch.Tensor) else list(ids)
        return self.tokenizer.decode(listed).strip()

    def to_config(self) -> dict[str, Any]:
        """The settings as JSON values, for `from_config`; the tokenizer is not among them."""
        return {
            "template": self.template.name,
            "image_token_id": self.image_token_id,
            "tokens_per_view": self.tokens_per_view,
            "use_start_end": self.use_start_end,
            "focal": None if self.focal is None else asdict(self.focal),
            "geometry": asdict(self.geometry),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tokenizer: Any) -> Processor:
        """The processor whose `to_config` is `config`, with its tokenizer.

        Raises CheckpointError for unknown, missing or wrong settings.
        """
        settings = dict(config)
        try:
            focal, geometry = settings.pop("focal"), dict(settings.pop("geometry"))
            for name in ("mean", "std"):
                geometry[name] = tuple(geometry[name])
            return cls(
                tokenizer,
                ImageGeometry(**geometry),
                get_template(settings.pop("template")),
                focal=None if focal is None else FocalSettings(**focal),
                **settings,
            )
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"processor settings can't be used: {error}") from None

    def _view_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"views": self._view_texts}
        if self.use_start_end:
            options |= {"image_start": IMAGE_START, "image_end": IMAGE_END}
        return options

    def _view_texts(self, turn: Turn) -> tuple[Sequence[str], str]:
        """The words in front of each view of a turn's images, and the text behind the last one."""
        captions: list[str] = []
        remark = ""
        for image in turn.images:
            captions.append(remark)
            remark = ""
            for caption, behind in zip(*self._focal_texts(image), strict=True):
                captions.append(remark + caption)
                remark = f"{behind}\n" if behind else ""
        return captions, remark + (turn.text or "")

    def _focal_texts(self, image: MarkedImage) -> tuple[Sequence[str], Sequence[str]]:
        """The words in front of and behind each focal view of an image, "" where there are none."""
        if self.focal is None:
            return (), ()
        captions = remarks = [""] * len(image.regions)
        size = image.shown.size
        if self.focal.named:
            captions = view_captions(image.regions, size, ranked=self.focal.ranked)
        if self.focal.told:
            remarks = view_remarks(image.regions, size)
        return captions, remarks

    def _with_placeholders(self, ids: Sequence[int]) -> list[int]:
        """Ids with the model's image token; ordinary text must not contain that token."""
        if self.image_token_id in ids:
            raise CheckpointError(
                f"id {self.image_token_id} stands for images but is also a token of ordinary text"
            )
        return [self.image_token_id if id_ == IMAGE_ID else id_ for id_ in ids]


def _with_open_answer(turns: Sequence[Turn]) -> list[Turn]:
    if all(turn.role == "system" for turn in turns):
        raise RequestError("a conversation needs at least one user turn")
    return [*turns, Turn("assistant", None)] if turns[-1].role == "user" else list(turns)
