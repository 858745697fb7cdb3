"""`ChatSession`: the conversation of `vip-llava chat`, its slash commands and its undo history.

It prints lists and confirmations on stderr. It does not read input.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from vip_llava.cli.inputs import save_image
from vip_llava.cli.region_options import SHAPE_OPTIONS, STYLES, region_from_text, style_from_text
from vip_llava.cli.terminal import note, stderr
from vip_llava.errors import RegionError, RequestError

if TYPE_CHECKING:
    from vip_llava.assistant import AnswerStream, Assistant
    from vip_llava.prompting.turns import MarkedImage, Turn
    from vip_llava.regions import Region

__all__ = ["HELP", "ChatSession"]

HELP = """\
/box 10,20,200,150   mark a region; also /ellipse /triangle /point /arrow
                     /scribble /contour /mask, written like the options of the
                     same name; color=lime alpha=200 width=3 may follow
/regions             list the regions and their names in a question
/save OUT.png        write the image as the model sees it
/undo                remove the last turn or region
/help                this list
/quit                end (so does Ctrl-D); Ctrl-C stops an answer"""


class ChatSession:
    """One conversation, its commands and its history.

    Args:
        sampling: keywords of `Chat.stream`, for every turn.
        unit: coordinates in commands are fractions 0..1 of the photo.
    """

    def __init__(
        self,
        assistant: Assistant,
        marked: MarkedImage,
        sampling: Mapping[str, Any],
        *,
        unit: bool = False,
    ) -> None:
        self.chat = assistant.chat(marked)
        self._assistant = assistant
        self._image = marked.unmarked
        self._sampling = dict(sampling)
        self._frame: Literal["pixel", "unit"] = "unit" if unit else "pixel"
        self._history: list[tuple[tuple[Region, ...], tuple[Turn, ...]]] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "regions": self._list_regions,
            "save": self._save,
            "undo": self._undo,
            "help": self._help,
        }

    def ask(self, question: str) -> AnswerStream:
        """Stream the next turn. The turn counts, for undo too, once its last piece was taken."""
        before = (self.chat.regions, self.chat.turns)
        stream = self.chat.stream(question, **self._sampling)
        keep_turn = stream.on_end

        def on_end(answer: Any) -> None:
            if keep_turn is not None:
                keep_turn(answer)
            self._history.append(before)

        stream.on_end = on_end
        return stream

    def command(self, line: str) -> None:
        """Run a line that begins with `/`. Raises RequestError for an unknown command."""
        name, _, rest = line[1:].partition(" ")
        name = name.strip().lower()
        if name in SHAPE_OPTIONS:
            self._add_region(name, rest.strip())
        elif name in self._commands:
            self._commands[name](rest.strip())
        else:
            known = ", ".join(f"/{each}" for each in (*SHAPE_OPTIONS, *self._commands, "quit"))
            raise RequestError(f"/{name}: unknown command; use one of {known}")

    def _add_region(self, name: str, text: str) -> None:
        try:
            geometry, style = _split_style(name, text)
            region = region_from_text(name, geometry, (self._image.size, self._frame), **style)
        except RegionError as error:  # name shapes and styles as they are typed here
            message = re.sub(r"^--(color|alpha|width) ", r"\1=", str(error))
            raise RegionError(re.sub(rf"^--{name}\b", f"/{name}", message)) from error
        before = (self.chat.regions, self.chat.turns)
        added = self.chat.add_region(region)
        self._history.append(before)
        note(_summary(added))

    def _list_regions(self, _rest: str) -> None:
        if not self.chat.regions:
            note("no regions yet; mark one with /box x1,y1,x2,y2")
        for region in self.chat.regions:
            note(_summary(region))

    def _save(self, rest: str) -> None:
        if not rest or rest == "-":
            raise RequestError("/save needs a file name, like /save drawn.png")
        image = self.chat.image
        assert image is not None  # a ChatSession always has a photo
        save_image(image, rest)

    def _undo(self, _rest: str) -> None:
        if not self._history:
            raise RequestError("/undo: there is no turn or region to remove")
        regions, turns = self._history.pop()
        what = "turn" if len(turns) < len(self.chat.turns) else "region"
        self.chat = self._assistant.chat(self._image, regions, history=turns)
        note(f"removed the last {what}")

    def _help(self, _rest: str) -> None:
        stderr().print(HELP, markup=False)


def _split_style(name: str, text: str) -> tuple[str, dict[str, Any]]:
    """The geometry's text and the style keywords of `10,20,30,40 color=red`."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise RegionError(f"/{name} {text}: {error}") from error
    style: dict[str, Any] = {}
    geometry = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in STYLES:
            style[key] = style_from_text(key, value)
        else:
            geometry.append(word)
    return " ".join(geometry), style


def _summary(region: Region) -> str:
    """One line: the name for questions, colour, shape and geometry of a region."""
    hidden = ("id", "shape", "frame", "color", "alpha", "width")
    parts = {key: value for key, value in region.to_json().items() if key not in hidden}
    geometry = " ".join(
        f"{value}" if key == region.shape else f"{key} {value}" for key, value in parts.items()
    )
    if len(geometry) > 90:
        geometry = geometry[:87] + "..."
    return f"<region:{region.id}> {region.color} {region.shape} {geometry}"
