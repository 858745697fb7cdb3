"""Conversations with images to tensors: views, placeholders, chat template, left padding.

The images that come in are already drawn on; regions serve only to choose focal views. Images
get into a prompt through `Conversation.image` or `.images` and in no other way: text that
spells `<image>` or a control token stays text. The processor does not draw, does not open files and runs no model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
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
from vip_llava.prompting.templates import Message, Template, get_template
from vip_llava.prompting.tokenization import IMAGE_ID, encode_prompt, encode_training
from vip_llava.prompting.tokenizers import as_text_tokenizer
from vip_llava.regions import Region

__all__ = ["IMAGE_END", "IMAGE_START", "Conversation", "Drawn", "FocalSettings", "Processor"]

IMAGE_START = "<im_start>"
IMAGE_END = "<im_end>"
"""Tokens around each image where a checkpoint was trained with `mm_use_im_start_end`."""


MarkFinder = Callable[[Image.Image, Sequence[str]], tuple[tuple[str, Region], ...]]
"""From an RGB image and the texts about it to the marks on it that the texts name, with their words."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """An image, RGB and drawn on, with its resolved regions.

    `bare` is the image without the marks, for focal views that are marked anew
    (`FocalSettings.fine`).
    """

    image: Image.Image
    regions: tuple[Region, ...] = ()
    bare: Image.Image | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns about images, RGB and already drawn on.

    `image` belongs to the first question. Several go into `images`, and each message of the
    user says how many of them are its own (`Message.images`); where none says so, all belong to
    the first question. `regions` and `bare` are of the first image, where that is not `Drawn`.
    """

    messages: tuple[Message, ...]
    image: Image.Image | None = None
    regions: tuple[Region, ...] = ()
    images: tuple[Image.Image | Drawn, ...] = ()
    bare: Image.Image | None = None

    @property
    def drawn(self) -> tuple[Drawn, ...]:
        """All images with their regions, whichever way they were given."""
        given = self.images if self.image is None else (self.image, *self.images)
        drawn = [each if isinstance(each, Drawn) else Drawn(each) for each in given]
        if given and not isinstance(given[0], Drawn):
            drawn[0] = Drawn(given[0], self.regions, self.bare)
        return tuple(drawn)

    @property
    def shown(self) -> tuple[Image.Image, ...]:
        """The images alone."""
        return tuple(each.image for each in self.drawn)


class Processor:
    """Makes model inputs of conversations, and text of the ids that a model gives."""

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

    def views(
        self,
        image: Image.Image,
        regions: Sequence[Region] = (),
        bare: Image.Image | None = None,
    ) -> list[Image.Image]:
        """The images that the model sees: `image`, and a focal square for each region.

        `bare` is the image without the marks; where it is not known, squares are cut from
        `image` as it is.
        """
        views = [image]
        if self.focal is not None:
            for region in regions:
                square = focal_square(region, image.size, self.focal)
                marked = image
                if bare is not None and self.focal.fine:
                    marked = fine_marks(bare, regions, square)
                views.append(focal_view(marked, square, self.geometry.size, self.geometry.fill))
        return views

    def all_views(self, conversation: Conversation) -> list[Image.Image]:
        """The views of all images of a conversation, in the order of its placeholders."""
        return [
            view
            for each in conversation.drawn
            for view in self.views(each.image, each.regions, each.bare)
        ]

    def messages(self, conversation: Conversation) -> tuple[Message, ...]:
        """The turns with the views of each image in front of its question and an open answer.

        Raises RequestError for a conversation without turns, an image without a question, or
        messages that speak of another number of images than there are.
        """
        messages = list(conversation.messages)
        if not messages or all(message.role == "system" for message in messages):
            raise RequestError("a conversation needs at least one message of the user")
        messages = self._with_views(_with_images(conversation, messages), conversation)
        if messages[-1].role == "user":
            messages.append(Message("assistant", None))
        return tuple(messages)

    def prompt_text(self, conversation: Conversation) -> str:
        """The prompt for people to read, with `<image>` once for each view."""
        return self.template.prompt(self.messages(conversation), **self._marks())

    def encode_one(self, conversation: Conversation) -> list[int]:
        """Ids of a conversation, each view as `tokens_per_view` ids of `image_token_id`."""
        encoded = encode_prompt(
            self.tokenizer, self.template, self.messages(conversation), **self._marks()
        )
        return self._placed(encoded.expanded(self.tokens_per_view).ids)

    def encode_training(
        self, conversation: Conversation, *, max_length: int | None = None
    ) -> tuple[list[int], list[int]]:
        """Ids as from `encode_one`, and labels: answers are learned, all else is -100.

        `max_length` counts expanded views. Raises DataError if nothing would be learned.
        """
        ids, labels = encode_training(
            self.tokenizer,
            self.template,
            self.messages(conversation),
            **self._marks(),
            tokens_per_view=self.tokens_per_view,
            max_length=max_length,
        )
        return self._placed(ids), labels

    def __call__(self, conversations: Sequence[Conversation]) -> dict[str, torch.Tensor]:
        """Left-padded `input_ids` and `attention_mask` [B, T] and `pixel_values` [N, 3, S, S].

        N counts all views in row order; the key is absent when there are none.
        """
        if not conversations:
            raise RequestError("there is no conversation to process")
        rows = [self.encode_one(conversation) for conversation in conversations]
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.pad_id, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, width - len(row) :] = torch.tensor(row, dtype=torch.long)
            mask[index, width - len(row) :] = 1
        inputs = {"input_ids": ids, "attention_mask": mask}
        pixels = [
            torch.from_numpy(self.geometry.pixels(view))
            for conversation in conversations
            for view in self.all_views(conversation)
        ]
        if pixels:
            inputs["pixel_values"] = torch.stack(pixels)
        return inputs

    def decode(self, ids: Sequence[int] | torch.Tensor) -> str:
        """The text of new ids, without control tokens and without blanks at its ends."""
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

    def _with_views(self, messages: Sequence[Message], conversation: Conversation) -> list[Message]:
        """Counts of images become counts of views: each image has its focal views behind it."""
        drawn = iter(conversation.drawn)
        counted: list[Message] = []
        for message in messages:
            captions: list[str] = []
            remark = ""
            said = message.captions or ("",) * message.images
            for each, caption in zip(islice(drawn, message.images), said, strict=True):
                captions.append(remark + caption)
                remark = ""
                for named, behind in zip(self._captions(each), self._remarks(each), strict=True):
                    captions.append(remark + named)
                    remark = f"{behind}\n" if behind else ""
            told = tuple(captions) if any(captions) else ()
            text = message.text if message.text is None else remark + message.text
            counted.append(Message(message.role, text, len(captions), told))
        return counted

    def _captions(self, drawn: Drawn) -> Sequence[str]:
        """The words in front of each focal view of an image, "" where there are none."""
        if self.focal is None:
            return ()
        if self.focal.named:
            return view_captions(drawn.regions, drawn.image.size, ranked=self.focal.ranked)
        return [""] * len(drawn.regions)

    def _remarks(self, drawn: Drawn) -> Sequence[str]:
        """The words behind each focal view of an image, "" where there are none."""
        if self.focal is None:
            return ()
        if self.focal.told:
            return view_remarks(drawn.regions, drawn.image.size)
        return [""] * len(drawn.regions)

    def _marks(self) -> dict[str, str]:
        if not self.use_start_end:
            return {}
        return {"image_start": IMAGE_START, "image_end": IMAGE_END}

    def _placed(self, ids: Sequence[int]) -> list[int]:
        """Ids with the model's placeholder for images; the text must not hold that id."""
        if self.image_token_id in ids:
            raise CheckpointError(
                f"id {self.image_token_id} stands for images but is also a token of ordinary text"
            )
        return [self.image_token_id if id_ == IMAGE_ID else id_ for id_ in ids]


def _with_images(conversation: Conversation, messages: Sequence[Message]) -> list[Message]:
    """The messages with the number of images of each."""
    there = len(conversation.shown)
    placed = sum(message.images for message in messages)
    if placed and not conversation.images:
        raise RequestError(
            "a message can't carry images of its own here; give the image of the "
            "conversation as Conversation.image, several as Conversation.images"
        )
    if conversation.image is not None and conversation.images:
        raise RequestError("give either Conversation.image or Conversation.images, not both")
    if placed and placed != there:
        raise RequestError(
            f"the messages speak of {placed} image{'s' * (placed != 1)}; "
            f"the conversation has {there}"
        )
    if placed or not there:
        return list(messages)
    asked = [index for index, message in enumerate(messages) if message.role == "user"]
    if not asked:
        raise RequestError("an image needs a message of the user that it belongs to")
    return [
        Message(message.role, message.text, there if index == asked[0] else 0)
        for index, message in enumerate(messages)
    ]
