"""Incremental detokenization: token ids to pieces of text.

A piece is released only when no later token can change it: an incomplete UTF-8 character, the
possible beginning of a stop string, and (with `trim`) white space that may be the end are held back.
The joined pieces always equal the final text.

This module knows no tokenizer, only a `decode(ids) -> str`, and no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["Decode", "TextStream"]

Decode = Callable[[Sequence[int]], str]

# What a decoder writes for bytes that are not a complete character.
_BROKEN = "\ufffd"
# Tokens decoded again before new ones, so that spacing equals that of decoding all at once.
_CONTEXT = 8
_WINDOW = 32


class TextStream:
    """The text of one sequence: `push` each token, then `finish`."""

    def __init__(self, decode: Decode, stops: Sequence[str] = (), *, trim: bool = False) -> None:
        """`stops`: strings that end the text. `trim`: strip white space at both ends."""
        self._decode = decode
        self._stops = tuple(stops)
        self._trim = trim
        self._window: list[int] = []  # the latest tokens: context and undecoded ones
        self._context = ""  # text of the decoded part of the window
        self._held = ""  # decoded, but not released yet
        self._pieces: list[str] = []
        self.stopped = False

    @property
    def text(self) -> str:
        """Everything released so far."""
        return "".join(self._pieces)

    def push(self, token: int) -> str:
        """Add the next token; returns the text that is final now, often ''."""
        if self.stopped:
            raise RuntimeError("the text ended at a stop string; no token may follow")
        self._window.append(token)
        decoded = self._decode(self._window)
        if decoded.endswith(_BROKEN):
            return ""
        self._held += _after(self._context, decoded)
        self._context = decoded
        self._trim_window()
        return self._release()

    def finish(self) -> str:
        """End the text; returns what was held back, without an incomplete character at the end."""
        if not self.stopped:
            decoded = self._decode(self._window).rstrip(_BROKEN) if self._window else ""
            self._held += _after(self._context, decoded)
            self._window.clear()
        held = self._held.rstrip() if self._trim else self._held
        self._held = ""
        return self._emit(held)

    def _trim_window(self) -> None:
        """Decode only the latest tokens, so that the cost of a token is constant."""
        if len(self._window) < _WINDOW:
            return
        context = self._decode(self._window[-_CONTEXT:])
        # A blank context, or one that starts inside a character, would decode differently.
        if context.strip() and _BROKEN not in context:
            del self._window[:-_CONTEXT]
            self._context = context

    def _release(self) -> str:
        begin = _find_stop(self._held, self._stops)
        if begin is not None:
            self.stopped = True
            self._held = self._held[:begin]
            return self.finish()
        certain = len(self._held) - _partial_stop_length(self._held, self._stops)
        if self._trim:
            certain = len(self._held[:certain].rstrip())
        piece, self._held = self._held[:certain], self._held[certain:]
        return self._emit(piece)

    def _emit(self, piece: str) -> str:
        if self._trim and not self._pieces:
            piece = piece.lstrip()
        if piece:
            self._pieces.append(piece)
        return piece


def _after(context: str, decoded: str) -> str:
    """`decoded` without its beginning `context`."""
    return decoded[len(context) :]


def _find_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the earliest stop string begins, or None."""
    found = [begin for begin in (text.find(stop) for stop in stops) if begin >= 0]
    return min(found, default=None)


def _partial_stop_length(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of a stop string."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        end = text[-length:]
        if any(stop.startswith(end) for stop in stops):
            return length
    return 0
