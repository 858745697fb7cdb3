"""A conversation of several turns about one image.

It keeps the drawn image, its regions and the turns; every question takes the path of a single ask.
A turn that fails or is abandoned leaves the conversation as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Unpack

from vip_llava.errors import RequestError
from vip_llava.prompting.prepare import Sampling, as_turns
from vip_llava.prompting.turns import MarkedImage, Turn, as_regions, draw_images, open_images

if TYPE_CHECKING:
    from PIL import Image

    from vip_llava.answer import Answer
    from vip_llava.assistant import AnswerStream, Assistant
    from vip_llava.prompting.prepare import AskedImage, TurnLike
    from vip_llava.prompting.turns import RegionLike
    from vip_llava.regions import Region

__all__ = ["Chat"]


class Chat:
    """Made by `Assistant.chat`. Ask with `ask` or `stream`; `turns` is the conversation so far."""

    def __init__(
        self,
        assistant: Assistant,
        image: AskedImage,
        regions: Sequence[RegionLike] | RegionLike = (),
        history: Sequence[TurnLike] = (),
    ) -> None:
        self._assistant = assistant
        self._turns = as_turns(history)
        self._notes: tuple[str, ...] = ()  # on clipped regions; every answer repeats them
        self._image: MarkedImage | None = None
        if image is not None and not isinstance(image, MarkedImage):
            image, regions = MarkedImage(image, as_regions(regions)), ()
        if image is not None:
            self._image, self._notes = _draw(image)
        self._image, self._notes = self._with(regions)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All turns so far, oldest first, worded as the model reads them; without images."""
        return self._turns

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions so far, in pixels, each with its id and colour."""
        return () if self._image is None else self._image.regions

    @property
    def image(self) -> Image.Image | None:
        """The image with the regions so far drawn on it."""
        return None if self._image is None else self._image.shown

    def add_region(self, region: RegionLike) -> Region:
        """Draw one more region from now on; returns it with its id and colour filled in.

        Earlier regions keep their ids and colours, so that earlier answers stay true.
        """
        self._image, self._notes = self._with(region)
        return self.regions[-1]

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
        image, clipped = self._with(regions)
        before = self._turns
        stream = self._assistant.stream(image, question, history=before, **sampling)
        # The regions reach the request resolved, so their notes are added here.
        stream.prepared = replace(stream.prepared, notes=_joined(clipped, stream.prepared.notes))

        def remember(answer: Answer) -> None:
            if self._turns is not before:
                raise RequestError("another turn of this chat was finished in the meantime")
            asked = Turn("user", stream.prepared.question)
            self._turns = (*before, asked, Turn("assistant", answer.text))
            self._image, self._notes = image, clipped

        stream.on_end = remember
        return stream

    def _with(
        self, new: Sequence[RegionLike] | RegionLike
    ) -> tuple[MarkedImage | None, tuple[str, ...]]:
        """The image with more regions drawn on it, and the notes on all of them."""
        added = as_regions(new)
        if not added:
            return self._image, self._notes
        if self._image is None:
            raise RequestError("regions need an image to draw them on; this chat has none")
        image, notes = _draw(MarkedImage(self._image.unmarked, (*self._image.regions, *added)))
        return image, _joined(self._notes, notes)


def _draw(image: MarkedImage) -> tuple[MarkedImage, tuple[str, ...]]:
    drawn, notes = draw_images(open_images([image]))
    return drawn[0], _joined((), notes)


def _joined(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    """Both in order, each note once: resolving regions again repeats some notes."""
    return tuple(dict.fromkeys((*first, *second)))
