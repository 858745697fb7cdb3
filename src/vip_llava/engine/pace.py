"""How many tokens a step may have, so that nobody's answer stands still for long.

A step with prompts in it is what all answers wait for. The more tokens it has, the less of the time goes
into anything but arithmetic, so it has as many as the device has lately read within the time allowed.

This module counts and knows nothing of what is read.
"""

from __future__ import annotations

__all__ = ["STALL_SECONDS", "Pace"]

STALL_SECONDS = 0.1
"""So long a step may take, by what former steps took, while somebody is being answered."""


class Pace:
    """Of one engine."""

    def __init__(self, least: int, most: int) -> None:
        """`least` tokens are always allowed; `most` only where nobody would have to wait."""
        self.least, self.most = least, most
        self._rate = 0.0

    def tokens(self, answering: bool) -> int:
        """Most tokens of the next step; `answering`: whether somebody waits for its end."""
        if not answering:
            return self.most
        return max(self.least, min(self.most, int(self._rate * STALL_SECONDS)))

    def took(self, tokens: int, seconds: float) -> None:
        """So many tokens of prompts were read in a step that was waited for to its end."""
        # Few tokens tell nothing, and a step in which something was compiled little.
        if 2 * tokens > self.least and seconds > 0:
            self._rate = max(tokens / seconds, 0.9 * self._rate)
