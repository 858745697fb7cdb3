"""Hashes of views: equal ones mean equal pixels, so what was made of them may be used again.

Hashing every pixel takes as long as a tenth of a short step on a fast GPU. Of a view that looks
like one seen before the hash can be guessed from a few pixels, if it is made sure while the GPU works.

This module knows tensors and bytes, and nothing of what they show.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Guesses", "view_digests"]

_SAMPLE = 4096
"""Numbers of a view that a guess is made by."""


def view_digests(pixel_values: Tensor) -> list[bytes]:
    """One hash for each view of `pixel_values` [N, 3, S, S] of any type."""
    kind = f"{pixel_values.dtype} {list(pixel_values.shape[1:])} ".encode()
    found = []
    for view in pixel_values.detach().cpu().contiguous():
        # Processors have instructions for this one, and nothing is copied for it.
        digest = hashlib.sha256(kind)
        digest.update(view.flatten().view(torch.uint8).numpy())
        found.append(digest.digest())
    return found


class Guesses:
    """What `view_digests` said of the views seen last. Any thread may ask."""

    def __init__(self, most: int = 1024) -> None:
        """`most`: so many views are remembered; the one longest unseen goes first."""
        self._most = most
        self._known: OrderedDict[bytes, bytes] = OrderedDict()

    def of(self, pixel_values: Tensor) -> list[bytes] | None:
        """A hash for each view, which may be wrong; None where one looks like none before."""
        found = [self._known.get(sample) for sample in _samples(pixel_values)]
        known = [digest for digest in found if digest is not None]
        return known if len(known) == len(found) else None

    def learn(self, pixel_values: Tensor, digests: Sequence[bytes]) -> None:
        """The hashes of these views are known."""
        for sample, digest in zip(_samples(pixel_values), digests, strict=True):
            self._known.pop(sample, None)
            self._known[sample] = digest
        while len(self._known) > self._most:
            try:
                self._known.popitem(last=False)
            except KeyError:  # another thread made room
                break


def _samples(pixel_values: Tensor) -> list[bytes]:
    """Of each view a hash of few numbers, spread over all of it."""
    size = pixel_values[:1].numel()
    # Odd, so that it is not one column of an image that is looked at.
    step = max(1, size // _SAMPLE) | 1
    return view_digests(pixel_values.detach().flatten(1)[:, ::step])
