"""Whether things are still what they were taken for: the model's weights and parts, and views.

A close look at all of it takes longer than a request should wait. So where a device works on its own,
requests begin at once, and the look is taken while it works; they begin anew if it was wrong.

This module knows what to look at. What follows from a change, others know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vip_llava.engine.digests import Guesses, view_digests
from vip_llava.engine.portrait import Glance, portrait

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from transformers import PreTrainedModel

    from vip_llava.engine.encoder_cache import VisionCache
    from vip_llava.engine.runner_selection import Paths
    from vip_llava.engine.scheduler import Row

__all__ = ["Watch"]


class Watch:
    """Over one model, its ways to run, and the views of requests."""

    def __init__(
        self,
        model: PreTrainedModel,
        paths: Paths,
        vision: VisionCache,
        forget: Callable[[], None],
    ) -> None:
        """`forget`: called when what was kept from before is not to be used any more."""
        self._model, self._paths, self._vision, self._forget = model, paths, vision, forget
        self._seen, self._glance = portrait(model), Glance(model)
        self._settled = 0  # at so many recordings of images
        self._guesses = Guesses()

    @property
    def hasty(self) -> bool:
        """Whether a device works on its own, so that looks may be taken meanwhile."""
        return self._paths.prompts is not None and self._paths.looked

    def unmoved(self) -> bool:
        """Whether what was recorded may run now: everything that it reads still lies there."""
        return self._glance.same()

    def look(self) -> bool:
        """Notice if weights were changed or modules replaced or hooked into."""
        seen = portrait(self._model)
        changed = seen != self._seen
        if seen.weights != self._seen.weights:
            self._forget()
        if seen.parts != self._seen.parts or not self._paths.looked:
            known = self._paths.decode is not None
            self._paths.look()
            self._vision.look()
            self._glance = Glance(self._model)
            if known != (self._paths.decode is not None):  # more, or no more, than its weights
                self._forget()
        self._seen = seen
        return changed

    def settle(self) -> None:
        """transformers leaves hooks behind where it was asked for hidden states first: that is not
        to look like a change to the next request."""
        if self._vision.recorder.count != self._settled:
            self._settled = self._vision.recorder.count
            self.look()

    def views(self, pixel_values: Tensor | None) -> tuple[Tensor | None, list[bytes], bool]:
        """A request's views, their digests, and whether those are a guess. Any thread may ask."""
        if pixel_values is None:
            return None, [], False
        # A copy from a device waits for it, whatever is taken of it.
        guesses = self.hasty and pixel_values.device.type == "cpu"
        known = self._guesses.of(pixel_values) if guesses else None
        if known is not None:
            return pixel_values, known, True
        exact = self._exact(pixel_values)
        digests = view_digests(exact)
        if guesses:
            self._guesses.learn(pixel_values, digests)
        return exact, digests, False

    def guessed_right(self, row: Row) -> bool:
        """Make sure of a request's views. If they are others, it has to begin anew with them."""
        if not row.guessed or row.pixels is None:
            return True
        given, guess = row.pixels, row.views
        row.pixels, row.guessed = self._exact(given), False
        row.views = view_digests(row.pixels)
        if row.views == guess:
            return True
        self._guesses.learn(given, row.views)
        row.keys = []
        return False

    def _exact(self, pixel_values: Tensor) -> Tensor:
        """As the tower takes them: there may be less to hash and to send then."""
        return pixel_values.to(self._vision.dtype)
