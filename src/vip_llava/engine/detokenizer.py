"""Token ids to text, piece by piece, as they come.

A piece is handed out only when nothing that follows can change it: half a UTF-8 character, the
possible beginning of a stop text, and (with `trim`) white space that may turn out to be the end
are held back. The pieces joined are the final text, always.

This module knows no tokenizer, only a `decode(ids) -> str`, and no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["Decode", "TextStream"]

Decode = Callable[[Sequence[int]], str]

# What a decoder writes for bytes that are no whole character (yet).
_BROKEN = "\ufffd"
# Tokens that stay in front of new ones when decoding, so that spacing comes out as in one go.
_CONTEXT = 8
_WINDOW = 32


class TextStream:
    """The text of one row. `push` each token, then `finish`; `text` is what was handed out."""

    def __init__(self, decode: Decode, stops: Sequence[str] = (), *, trim: bool = False) -> None:
        """`trim`: leave out white space at both ends, as people expect of an answer."""
        self._decode = decode
        self._stops = tuple(stops)
        self._trim = trim
        self._window: list[int] = []  # the newest tokens: some context and the undecoded ones
        self._context = ""  # text of the part of the window that has been decoded
        self._held = ""  # decoded, but what follows may still change its fate
        self._pieces: list[str] = []
        self.stopped = False

    @property
    def text(self) -> str:
        """Everything that was handed out so far."""
        return "".join(self._pieces)

    def push(self, token: int) -> str:
        """Take the next token; returns the text that is now certain, often ''."""
        if self.stopped:
            raise RuntimeError("the text has ended at a stop text; no token may follow")
        self._window.append(token)
        decoded = self._decode(self._window)
        if decoded.endswith(_BROKEN):
            return ""
        self._held += _after(self._context, decoded)
        self._context = decoded
        self._shorten_window()
        return self._release()

    def finish(self) -> str:
        """The answer ends here without a stop text; returns what was held back.

        Bytes of a character that was never completed are no text and are left out.
        """
        if not self.stopped:
            decoded = self._decode(self._window).rstrip(_BROKEN) if self._window else ""
            self._held += _after(self._context, decoded)
            self._window.clear()
        held = self._held.rstrip() if self._trim else self._held
        self._held = ""
        return self._hand_out(held)

    def _shorten_window(self) -> None:
        """Decoding the newest tokens only keeps the cost of a token constant."""
        if len(self._window) < _WINDOW:
            return
        context = self._decode(self._window[-_CONTEXT:])
        # A context that is blank or starts inside a character would not decode as in one go.
        if context.strip() and _BROKEN not in context:
            del self._window[:-_CONTEXT]
            self._context = context

    def _release(self) -> str:
        begin = _first(self._held, self._stops)
        if begin is not None:
            self.stopped = True
            self._held = self._held[:begin]
            return self.finish()
        certain = len(self._held) - _open_stop(self._held, self._stops)
        if self._trim:
            certain = len(self._held[:certain].rstrip())
        piece, self._held = self._held[:certain], self._held[certain:]
        return self._hand_out(piece)

    def _hand_out(self, piece: str) -> str:
        if self._trim and not self._pieces:
            piece = piece.lstrip()
        if piece:
            self._pieces.append(piece)
        return piece


def _after(context: str, decoded: str) -> str:
    """What `decoded` says beyond its beginning `context`."""
    return decoded[len(context) :]


def _first(text: str, stops: Sequence[str]) -> int | None:
    """Where the earliest stop text begins, or None."""
    found = [begin for begin in (text.find(stop) for stop in stops) if begin >= 0]
    return min(found, default=None)


def _open_stop(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of a stop text."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        end = text[-length:]
        if any(stop.startswith(end) for stop in stops):
            return length
    return 0
