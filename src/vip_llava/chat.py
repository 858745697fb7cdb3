"""A conversation of several turns about one image.

Keeps the image, its regions and what was said; every turn goes the way of a single ask. A turn
that fails or is left early leaves the conversation as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Unpack

from vip_llava.errors import RequestError
from vip_llava.images import open_image
from vip_llava.prompting.prepare import Sampling, as_messages, as_regions
from vip_llava.prompting.templates import Message
from vip_llava.regions import Region, draw_resolved, resolve

if TYPE_CHECKING:
    from PIL import Image

    from vip_llava.answer import Answer
    from vip_llava.assistant import AnswerStream, Assistant
    from vip_llava.prompting.prepare import ImageInput, MessageLike, RegionLike

__all__ = ["Chat"]


class Chat:
    """Made by `Assistant.chat`. Ask with `ask` or `stream`; `messages` is what was said so far."""

    def __init__(
        self,
        assistant: Assistant,
        image: ImageInput,
        regions: Sequence[RegionLike] | RegionLike = (),
        history: Sequence[MessageLike] = (),
    ) -> None:
        self._assistant = assistant
        self._image = None if image is None else open_image(image)
        self._messages = as_messages(history)
        self._regions: tuple[Region, ...] = ()
        self._notes: tuple[str, ...] = ()  # what was clipped; every answer tells it
        self._regions, self._notes = self._with(regions)

    @property
    def messages(self) -> tuple[Message, ...]:
        """All turns so far, oldest first, worded as the model sees them."""
        return self._messages

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions so far, in pixels, each with its id and colour."""
        return self._regions

    @property
    def image(self) -> Image.Image | None:
        """The image with the regions so far drawn on it."""
        return None if self._image is None else draw_resolved(self._image, self._regions)

    def add_region(self, region: RegionLike) -> Region:
        """Draw one more region from now on; returns it with its id and colour filled in.

        Regions that are there keep theirs, so that what was said about them stays true.
        """
        self._regions, self._notes = self._with(region)
        return self._regions[-1]

    def ask(
        self,
        question: str,
        regions: Sequence[RegionLike] | RegionLike = (),
        **sampling: Unpack[Sampling],
    ) -> Answer:
        """The next turn; `regions` are added before it. Arguments as for `Assistant.ask`."""
        return self.stream(question, regions, **sampling).result()

    def stream(
        self,
        question: str,
        regions: Sequence[RegionLike] | RegionLike = (),
        **sampling: Unpack[Sampling],
    ) -> AnswerStream:
        """As `ask`, giving pieces of text; the turn counts once its last piece has been taken."""
        known, clipped = self._with(regions)
        before = self._messages
        stream = self._assistant.stream(self._image, question, known, history=before, **sampling)
        # The regions reach `ask` already clipped, so it has nothing to say about them itself.
        stream.prepared = replace(stream.prepared, notes=_joined(clipped, stream.prepared.notes))

        def remember(answer: Answer) -> None:
            if self._messages is not before:
                raise RequestError("another turn of this chat was finished in the meantime")
            asked = stream.prepared.conversation.messages[len(before)]
            self._messages = (*before, asked, Message("assistant", answer.text))
            self._regions, self._notes = known, clipped

        stream.on_end = remember
        return stream

    def _with(
        self, new: Sequence[RegionLike] | RegionLike
    ) -> tuple[tuple[Region, ...], tuple[str, ...]]:
        """The regions with new ones resolved behind them, and the notes on all of them."""
        added = as_regions(new)
        if not added:
            return self._regions, self._notes
        if self._image is None:
            raise RequestError("regions need an image to draw them on; this chat has none")
        resolution = resolve((*self._regions, *added), self._image.size)
        return resolution.regions, _joined(self._notes, resolution.notes)


def _joined(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    """Both in order, each note once: some are found again whenever regions are resolved."""
    return tuple(dict.fromkeys((*first, *second)))
